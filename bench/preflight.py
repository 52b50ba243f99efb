#!/usr/bin/env python3
"""Say within seconds whether this machine can measure CUDA kernels; bench/gpu.sh begins with it.

    python bench/preflight.py

A line on the device and the build, status 0; or what is missing and what to type, status 2.
"""

from __future__ import annotations

import sys

import torch

BUILD = "PTQ4ARVG_BUILD=cuda python3 setup.py build_ext --inplace"


def problem() -> str | None:
    """What is missing, and what to do; None if nothing is."""
    try:
        from ptq4arvg import ops
    except ImportError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        return f"{error} This is Python {version}; with it, or another {version}, type: {BUILD}"
    build = ops.build_info()
    if not build["cuda"]:
        return f"ptq4arvg/_C.so was built without CUDA kernels; type: {BUILD}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    x = torch.linspace(-4, 4, 96).view(2, 48)
    scale, zero = torch.full((2,), 20.0), torch.full((2,), 128, dtype=torch.int32)
    wanted = ops.quantize(x, scale, zero, 8)
    try:
        found = ops.quantize(x.cuda(), scale.cuda(), zero.cuda(), 8).cpu()
    except RuntimeError as error:
        return f"the first kernel fails: {error}"
    if not torch.equal(found, wanted):
        return "the first kernel gives other codes than the CPU's; nothing that follows counts"
    return None


def main() -> int:
    """Print what was found; 2 where something is missing."""
    why = problem()
    if why:
        sys.stderr.write(f"preflight.py: {why}\n")
        return 2
    from ptq4arvg import ops

    archs = ops.build_info()["cuda_archs"]
    name = torch.cuda.get_device_name(0)
    sys.stdout.write(f"{name}, torch {torch.__version__}, kernels for {archs}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
