"""Quantized models in another dtype: scales and codes stay, what is in float follows."""

import copy

import pytest
import torch

import ptq4arvg
from ptq4arvg.nn import PackedLinear
from ptq4arvg.nn.dtype import keeping_dtype


@pytest.fixture(scope="module")
def made():
    model = ptq4arvg.load_model("rar-tiny")
    rows = ptq4arvg.calibrate(model, samples=4, keep=4)
    ptq4arvg.quantize_(model, "W8A8", "rtn", rows, attention="int8", decoder="W8A8")
    return model


def test_a_table_moves_without_its_numbers():
    moved = keeping_dtype(lambda x: x.to("meta", torch.bfloat16))(torch.zeros(2))
    assert moved.device.type == "meta" and moved.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_survive(made, dtype, tmp_path):
    model = copy.deepcopy(made).to(dtype)
    packed = [m for m in model.transformer.modules() if isinstance(m, PackedLinear)]
    for one, other in zip(packed, (m for m in made.transformer.modules()
                                   if isinstance(m, PackedLinear)), strict=True):  # fmt: skip
        assert one.dtype == dtype
        for name, buffer in other.named_buffers():
            assert torch.equal(one.get_buffer(name), buffer), name
    images = model.generate([3], seed=0)
    assert images.dtype == torch.float32 and images.isfinite().all()
    model.save_pretrained(tmp_path / "q")
    again = ptq4arvg.load_quantized(tmp_path / "q")
    assert torch.equal(again.generate([3], seed=0), images)


def test_there_and_back(made):
    model = copy.deepcopy(made)
    for parameter in model.parameters():  # what is in float then loses nothing
        parameter.data = parameter.data.bfloat16().float()
    wanted = model.generate([3], seed=0)
    assert torch.equal(model.bfloat16().float().generate([3], seed=0), wanted)


def test_simulations_too():
    model = ptq4arvg.load_model("rar-tiny")
    rows = ptq4arvg.calibrate(model, samples=4, keep=4)
    ptq4arvg.quantize_(model, "W8A8", "rtn", rows, pack=False)
    scale = model.transformer.blocks[0].attn.qkv.input_scale.clone()
    model.bfloat16()
    linear = model.transformer.blocks[0].attn.qkv
    assert torch.equal(linear.input_scale, scale) and linear.weight.dtype == torch.bfloat16
    assert model.generate([3], seed=0).isfinite().all()
