"""Where run_interpreted.sh has put the interpreter in CUDA's place, PyTorch's part is the CPU's.
On a GPU, a test that loses it ends the process, since no later one in it could pass."""

from __future__ import annotations

import os
import time

import pytest
import torch

if os.environ.get("PTQ4ARVG_INTERPRETED"):
    from tests.cuda.host_aten import HostAten

    if not torch.cuda.is_available():
        raise RuntimeError("PTQ4ARVG_INTERPRETED is set, but torch sees no CUDA device")
    MODE = HostAten()

    @pytest.fixture(autouse=True)
    def _host_aten():
        with MODE:
            yield


@pytest.fixture(autouse=True)
def _device_answers(request):
    yield
    if request.node.get_closest_marker("gpu") is None or not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            time.sleep(1)  # until the result of the test has been sent
            os._exit(1)  # another worker takes its place, with the GPU again
        pytest.exit(f"{request.node.nodeid} has lost the GPU: {error}", 1)
