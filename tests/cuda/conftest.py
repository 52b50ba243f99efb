"""Where run_interpreted.sh has put the interpreter in CUDA's place, PyTorch's part is the CPU's."""

from __future__ import annotations

import os

import pytest

if os.environ.get("PTQ4ARVG_INTERPRETED"):
    from tests.cuda.host_aten import HostAten

    MODE = HostAten()

    @pytest.fixture(autouse=True)
    def _host_aten():
        with MODE:
            yield
