"""What the library says about itself."""

from __future__ import annotations

import torch

from ptq4arvg import ops


def test_build_info():
    info = ops.build_info()
    assert info["torch_target"] == "2.10"
    assert info["optimized"] is True
    assert info["torch_headers"].startswith("2.")
    assert set(info["available_isas"]) <= set(info["compiled_isas"])
    assert "scalar" in info["available_isas"]
    assert isinstance(info["cuda"], bool)
    assert bool(info["cuda_archs"]) == info["cuda"]


def test_version_is_the_package_version():
    import ptq4arvg

    assert ops.build_info()["version"] == ptq4arvg.__version__


def test_kernels_are_listed_once_each():
    kernels = ops.list_kernels()
    names = [kernel["name"] for kernel in kernels]
    assert len(set(names)) == len(names)
    for isa in ops.build_info()["compiled_isas"]:
        for bits in (8, 6, 4):
            assert f"gemm.w{bits}.{isa}" in names
            assert f"gemm_float.w{bits}.{isa}" in names
        assert {f"quantize.{isa}", f"norm_quantize.{isa}"} <= set(names)
    available = {kernel["isa"] for kernel in kernels if kernel["available"]}
    assert available >= set(ops.build_info()["available_isas"])
    assert all(kernel["weight_bits"] in (None, 4, 6, 8) for kernel in kernels)


def test_set_isa(isa):
    assert ops.isa() == isa
    assert ops.set_isa("scalar") == "scalar"
    assert ops.isa() == "scalar"
    default = ops.set_isa("")
    assert default in ops.build_info()["available_isas"]


def test_torch_ops_have_the_documented_names():
    for name in (
        "pack_weight", "unpack_weight", "quantize", "gemm", "gemm_quantize", "norm_quantize",
        "gemm_float",
    ):  # fmt: skip
        assert hasattr(torch.ops.ptq4arvg, name)
        assert hasattr(ops, name)
        assert hasattr(ops.reference, name)
