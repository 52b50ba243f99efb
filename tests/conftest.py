"""Shared set-up: paths, one thread per parallel worker, GPU tests skipped without a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# For zoo/ and bench/. At the end, so that an installed ptq4arvg comes before the source folder's.
sys.path.append(str(Path(__file__).resolve().parents[1]))

if os.environ.get("PYTEST_XDIST_WORKER"):
    # Before torch is imported: workers that each start a thread per core only wait for one another.
    for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_variable, "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where torch sees no CUDA device."""
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in gpu_tests:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))
