"""`ptq4arvg doctor`: what this installation runs on, its kernels, what falls back and why."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from ..serialize import pretty_json

__all__ = ["diagnose", "run"]


def diagnose() -> dict[str, Any]:
    """Everything that `doctor` prints, as plain data. Never raises for what is missing."""
    import torch

    from .. import __version__

    found: dict[str, Any] = {
        "ptq4arvg": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    found["operators"] = _operators()
    found["cuda"] = _cuda(torch, found["operators"])
    found["bundled_models"] = _bundled()
    found["notes"] = _notes(found)
    return found


def _operators() -> dict[str, Any]:
    try:
        from .. import ops

        build = ops.build_info()
        isa = ops.isa()
        kernels = {
            k["name"]: k["op"]
            for k in ops.list_kernels()
            if k["device"] == "cpu" and k["isa"] == isa
        }
    except (ImportError, ValueError) as error:
        return {"loaded": False, "error": str(error)}
    return {
        "loaded": True,
        "isa": isa,
        "isa_forced": os.environ.get("PTQ4ARVG_CPU_ISA") or None,
        "isas_available": build["available_isas"],
        "isas_compiled": build["compiled_isas"],
        "kernels": sorted(kernels),
        "built_for_torch": build["torch_target"],
        "built_with_torch": build["torch_headers"],
        "compiler": build["compiler"],
        "cuda_built": build["cuda"],
        "cuda_archs": build["cuda_archs"],
    }


def _cuda(torch: Any, operators: dict[str, Any]) -> dict[str, Any]:
    device = torch.cuda.is_available()
    return {
        "torch_cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(0) if device else None,
        "kernels_built": bool(operators.get("cuda_built")),
    }


def _bundled() -> dict[str, bool]:
    """Bundled models, and whether their weights are there."""
    try:
        from ..models.registry import BUNDLED, DATA
    except (ImportError, ValueError):  # of the operators, which is told of already
        return {}
    return {name: (DATA / name / "transformer.safetensors").is_file() for name in BUNDLED}


def _notes(found: dict[str, Any]) -> list[str]:
    """What does not run as fast as it could, or at all, and what to do about it."""
    operators, cuda = found["operators"], found["cuda"]
    notes = []
    if not operators["loaded"]:
        return [f"the operators cannot be used: {operators['error']}"]
    fastest = operators["isas_compiled"][0] if operators["isas_compiled"] else operators["isa"]
    if operators["isa_forced"]:
        notes.append(f"PTQ4ARVG_CPU_ISA={operators['isa_forced']} forces the instruction set")
    elif fastest not in operators["isas_available"]:
        notes.append(
            f"this processor has no {fastest}; the {operators['isa']} kernels run, with the same "
            "results"
        )
    if operators["isa"] == "scalar":
        notes.append("the scalar kernels run: right, and many times slower than the others")
    if operators["isa"] == "neon_dotprod":
        notes.append(
            "the neon_dotprod kernels were tested in an emulator, never on an Arm processor"
        )
    if cuda["device"] and not cuda["kernels_built"]:
        notes.append(
            f"a CUDA device is there ({cuda['device']}), but this build has no CUDA kernels: "
            "quantized models run on the CPU"
        )
    elif not cuda["device"]:
        notes.append("no CUDA device: quantized models run on the CPU")
    notes.append(
        "norms, embeddings and the tokenizer are computed in floating point everywhere, attention "
        "products where a model was not quantized with attention=int8; all quantized linears are "
        "computed in integers"
    )
    missing = [name for name, there in found["bundled_models"].items() if not there]
    if missing or not found["bundled_models"]:
        what = ", ".join(missing) or "all of them"
        notes.append(f"bundled models are missing ({what}): install the package again")
    return notes


def _lines(found: dict[str, Any]) -> list[str]:
    operators, cuda = found["operators"], found["cuda"]
    lines = [
        f"ptq4arvg {found['ptq4arvg']}   python {found['python']}   {found['platform']}",
        f"torch     {found['torch']}, {found['threads']} threads",
    ]
    if operators["loaded"]:
        available = ", ".join(operators["isas_available"])
        lines += [
            f"operators built with torch {operators['built_with_torch']} headers for torch "
            f"{operators['built_for_torch']} and later, compiler {operators['compiler']}",
            f"CPU       {operators['isa']} in use; this processor can run {available}",
            f"kernels   {', '.join(operators['kernels'])}",
        ]
    device = cuda["device"] or "no device"
    archs = operators.get("cuda_archs")
    built = f"kernels for {archs}" if cuda["kernels_built"] else "no kernels built"
    lines.append(f"CUDA      {device}; {built}; torch's CUDA: {cuda['torch_cuda'] or 'none'}")
    there = [name for name, is_there in found["bundled_models"].items() if is_there]
    lines.append(f"bundled   {', '.join(there) or 'nothing'}")
    return lines + [f"note      {note}" for note in found["notes"]]


def run(as_json: bool) -> None:
    """Print the diagnosis; the operators failing to load is an error after all the rest."""
    found = diagnose()
    sys.stdout.write(pretty_json(found) if as_json else "\n".join(_lines(found)) + "\n")
    if not found["operators"]["loaded"]:
        raise ImportError(found["operators"]["error"])
