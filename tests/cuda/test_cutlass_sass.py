"""The tiled GEMMs without a GPU: what they compile to, and their epilogue on the host."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
CXX = os.environ.get("CXX") or "g++"
NVCC_FLAGS = ("-O3", "-std=c++20", "--expt-relaxed-constexpr", "--fmad=false", "-Xptxas", "-v")

# Of each kind one configuration, with codes as output, or floats of 16 bits where there are none:
# name -> (architecture, header, its settings, configuration, instruction). The first two are those
# of the base set.
KERNELS = {
    "sm80": (
        "80", "sm80_gemm.h", "", "Sm80Gemm<128, 128, 64, 64, 64, 5>", r"\bIMMA\.16832\.S8\.S8",
    ),
    "sm90": (
        "90a", "sm90_gemm.h", "", "Sm90Gemm<128, 128, 128, 2, Pingpong>",
        r"\bIGMMA\.64x128x32\.S8\.S8",
    ),
    "sm90 swapped, stream-K": (
        "90a", "sm90_gemm.h", "#define PTQ4ARVG_NO_EARLY_START\n",
        "Sm90Gemm<128, 32, 128, 1, StreamK, true>", r"\bIGMMA\.64x32x32\.S8\.S8",
    ),
    "sm90 patches": (
        "90a", "sm90_gemm.h", "#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED\n",
        "Sm90Gemm<128, 160, 64, 2, Cooperative, false, true>", r"\bIGMMA\.64x160x32\.S8\.S8",
    ),
}  # fmt: skip


def find_disassembler() -> str | None:
    """cuobjdump from PATH, from the toolkit, or from NVIDIA's PyPI package."""
    nvcc = shutil.which("nvcc")
    places = [Path(nvcc).resolve().parent] if nvcc else []
    places += [Path(folder, "nvidia", "cu13", "bin") for folder in sys.path if folder]
    folders = os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)])
    return shutil.which("cuobjdump", path=folders)


def find_cutlass() -> list[Path]:
    """CUTLASS's header folders; skips where there are none."""
    sys.path.insert(0, str(CSRC))
    try:
        from ptq4arvg_build.cuda import find_cutlass
    finally:
        sys.path.remove(str(CSRC))
    try:
        return find_cutlass(CSRC.parent)
    except RuntimeError:
        pytest.skip("needs the CUTLASS headers")


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request, tmp_path_factory) -> tuple[str, str, str]:
    """A kernel's name, its SASS and what the compiler said."""
    nvcc, disassembler = shutil.which("nvcc"), find_disassembler()
    if not nvcc or not disassembler:
        pytest.skip("needs nvcc and cuobjdump")
    arch, header, settings, config, _ = KERNELS[request.param]
    output = "bf16" if "patches" in request.param else "codes"
    folder = tmp_path_factory.mktemp("kernel")
    source = folder / "kernel.cu"
    source.write_text(
        f'{settings}#include "kernels/cuda/cutlass/{header}"\n'
        "namespace ptq4arvg::cuda {\n"
        "cudaError_t one(const CodesGemm& g) {\n"
        f"  return {config}::Launch<Output::{output}>::run(g);\n"
        "}\n}\n",
        encoding="utf-8",
    )
    cubin = folder / "kernel.cubin"
    include = [f"-I{CSRC}", *(f"-I{path}" for path in find_cutlass())]
    target = [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-cubin", str(source), "-o"]
    built = subprocess.run(
        [nvcc, *NVCC_FLAGS, *include, *target, str(cubin)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = built.stdout + built.stderr
    assert built.returncode == 0, said
    sass = subprocess.run(
        [disassembler, "-sass", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    return request.param, sass, said


@pytest.mark.slow
def test_tensor_core_instructions(kernel):
    name, sass, _ = kernel
    assert re.search(KERNELS[name][-1], sass)
    assert not re.search(r"\bDP4A\b|\bIDP\b", sass)


@pytest.mark.slow
def test_patches_are_found_by_tma(kernel):
    name, sass, _ = kernel
    assert bool(re.search(r"\bUTMALDG\.4D\.IM2COL\b", sass)) == (name == "sm90 patches")


@pytest.mark.slow
def test_registers_suffice(kernel):
    _, sass, said = kernel
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert spills and all(spill == ("0", "0") for spill in spills), spills
    assert not re.search(r"\b(LDL|STL)\b", sass)


@pytest.mark.slow
def test_no_calls(kernel):
    """A call would make ptxas serialize wgmma, and cost the others their registers."""
    name, sass, said = kernel
    calls = re.findall(r"\bCALL\.(\w+)", sass)
    # On sm_80 ptxas leaves the loop of the epilogue by one jump that it writes as a call of EXIT.
    assert calls == [] or (name == "sm80" and calls == ["REL"])
    assert "serialized" not in said


@pytest.mark.slow
def test_waits_for_earlier_kernels_where_it_may_start_early(kernel):
    name, sass, _ = kernel
    for instruction in ("ACQBULK", "PREEXIT"):
        assert bool(re.search(rf"\b{instruction}\b", sass)) == (name in ("sm90", "sm90 patches"))


def test_epilogue_arithmetic(tmp_path):
    if not shutil.which(CXX) or not (CSRC / "kernels").is_dir():
        pytest.skip(f"needs the source folder and {CXX}")
    program = tmp_path / "test_cutlass_epilogue"
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", f"-I{CSRC}"]
    source = HERE / "test_cutlass_epilogue.cpp"
    built = subprocess.run(
        [CXX, *flags, str(source), "-o", str(program)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == "ok"


@pytest.mark.slow
def test_coordinates_cover_each_tile_once(tmp_path):
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("needs nvcc")
    program = tmp_path / "test_cutlass_layout"
    include = [f"-I{CSRC}", *(f"-I{path}" for path in find_cutlass())]
    flags = ["-std=c++20", "-O1", "-w", "--expt-relaxed-constexpr"]
    flags += ["-gencode=arch=compute_80,code=sm_80"]
    source = HERE / "test_cutlass_layout.cu"
    built = subprocess.run(
        [nvcc, *flags, *include, str(source), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_configurations_are_listed():
    """Each file's configuration is in the table, and its measured resources are recorded."""
    folder = CSRC / "kernels" / "cuda" / "cutlass"
    if not folder.is_dir():
        pytest.skip("needs the source folder")
    names = {path.stem.removesuffix("_base") for path in folder.glob("*.cu")}
    declared = re.findall(r"TileConfig (sm\w+)\(\);", (folder / "table.h").read_text())
    listed = re.findall(r"\b(sm\w+)\(\),", (folder / "table.cpp").read_text())
    lines = (folder / "configs.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert sorted(declared) == sorted(listed) == sorted(names)
    outputs = {(row["config"], row["output"]) for row in rows}
    floats = ("f32", "f16", "bf16")
    assert outputs == {
        (name, out)
        for name in names
        for out in (floats if "patches" in name else ("codes", *floats))
    }
    assert all(row["spill_stores"] == row["spill_loads"] == "0" for row in rows)
    shared = {"sm80": 99 << 10, "sm90": 227 << 10}
    assert all(int(row["shared_bytes"]) <= shared[row["config"][:4]] for row in rows)
