"""Run as a script: load a mapped model, quantize it and generate, and print by how many bytes the
process grew at most. Arguments: weight file, sizes of the transformer and tokenizer as JSON."""

import json
import sys

import torch

import ptq4arvg
from tests.models.published import publish


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def run(name: str, weights: str) -> None:
    """All that is measured."""
    model = ptq4arvg.load_model(
        name, weights=weights, tokenizer="random", dtype=torch.bfloat16, mmap=True
    )
    rows = ptq4arvg.calibrate(model, samples=2, keep=2)
    # GPTQ's products of one linear's inputs would be large beside so small a model.
    fast = {"gps": False, "smooth": 0.5, "weight_range": "minmax", "activation_range": "minmax",
            "rounding": "nearest"}  # fmt: skip
    ptq4arvg.quantize_(model, "W4A8", "ptq4arvg", rows, **fast)
    model.generate([0])


if __name__ == "__main__":
    small, large, sizes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    torch.set_num_threads(1)
    for name in ("small", "large"):
        publish(name, **sizes[name])
    run("small", small)  # libraries load what they need
    before = _status("VmRSS")
    run("large", large)
    print(_status("VmHWM") - before)
