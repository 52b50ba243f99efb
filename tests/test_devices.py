"""Devices by name: those that are there, those that are not, and what is no device."""

import pytest
import torch

import ptq4arvg
from ptq4arvg.devices import computing_device, usable_device
from ptq4arvg.distributed import local_device


def test_a_device_that_is_there():
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")
    assert usable_device("meta").type == "meta"


@pytest.mark.parametrize("name", ["cuda", "cuda:1", torch.device("cuda", 3)])
def test_a_gpu_that_is_not_there(monkeypatch, name, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for call in (
        usable_device, lambda name: ptq4arvg.load_model("rar-tiny", device=name),
        lambda name: ptq4arvg.load_quantized(tmp_path, device=name),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"device is '{name}', and torch .* sees 0 CUDA"):
            call(name)


def test_gpus_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_device("cuda").type == "cuda" and usable_device("cuda:1").index == 1
    with pytest.raises(ValueError, match="sees 2 CUDA"):
        usable_device("cuda:2")


def test_what_is_no_device():
    with pytest.raises(ValueError, match="device is 'gpu'; wanted cpu, cuda or cuda:NUMBER"):
        usable_device("gpu")


def test_a_device_to_compute_on():
    assert computing_device("cpu") == local_device("cpu") == torch.device("cpu")
    for call in (computing_device, local_device):
        for device in ("meta", torch.device("meta")):
            with pytest.raises(ValueError, match="device is 'meta'; wanted cpu, cuda or cuda:NUMB"):
                call(device)
