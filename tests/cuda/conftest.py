"""Where run_interpreted.sh has put the interpreter in CUDA's place, PyTorch's part is the CPU's."""

from __future__ import annotations

import os

import pytest

if os.environ.get("PTQ4ARVG_INTERPRETED"):
    import torch

    from tests.cuda.host_aten import HostAten

    if not torch.cuda.is_available():
        raise RuntimeError("PTQ4ARVG_INTERPRETED is set, but torch sees no CUDA device")
    MODE = HostAten()

    @pytest.fixture(autouse=True)
    def _host_aten():
        with MODE:
            yield
