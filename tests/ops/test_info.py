"""What the library says about itself."""

from __future__ import annotations

import pytest
import torch

from ptq4arvg import _info, ops


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
            assert f"conv2d.w{bits}.{isa}" in names
            assert f"gemm_float.w{bits}.{isa}" in names
        for op in ("quantize", "norm_quantize", "attention", "store_kv", "quantize_map"):
            assert f"{op}.{isa}" in names
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
    for name in ("attention", "attention_quantize", "store_kv", "store_qkv"):
        assert hasattr(torch.ops.ptq4arvg, name)
        assert hasattr(ops, name)
        assert hasattr(ops.reference_attention, name)
    for name in ("conv2d", "quantize_map"):
        assert hasattr(torch.ops.ptq4arvg, name)
        assert hasattr(ops, name)
        assert hasattr(ops.reference_map, name)


KINDS = {
    "amx": {"amx_int8"},
    "vnni": {"avx512_vnni", "avx_vnni"},
    "avx2_maddubs": {"avx2"},
    "fma": {"avx2"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_measure_peak(kind):
    if not KINDS[kind] & set(ops.build_info()["available_isas"]):
        with pytest.raises(ValueError, match=f"kind is '{kind}', this processor has "):
            _info.measure_peak(kind, 1, 0.01)
        return
    rate = _info.measure_peak(kind, 1, 0.01)
    assert 1e8 < rate < 1e15
    assert _info.measure_peak(kind, 2, 0.01) > 1e8


def test_measure_peak_names_the_kinds():
    available = set(ops.build_info()["available_isas"])
    known = [kind for kind, isas in KINDS.items() if isas & available]
    with pytest.raises(ValueError, match=f"kind is 'warp', .* has {', '.join(known) or 'none'}$"):
        _info.measure_peak("warp", 1, 0.01)


@pytest.mark.parametrize(
    ("threads", "seconds"), [(0, 0.01), (1, 0.0), (1, -1.0), (1, float("nan"))]
)
def test_measurements_check_their_arguments(threads, seconds):
    with pytest.raises(ValueError, match="wanted 1 to 1024 threads and up to 60 seconds"):
        _info.measure_peak("fma", threads, seconds)
    with pytest.raises(ValueError, match="wanted 1 to 1024 threads and up to 60 seconds"):
        _info.measure_bandwidth(1 << 20, threads, seconds)


@pytest.mark.parametrize("bytes_", [4096, 100_000, 5_000_000])
def test_measure_bandwidth(bytes_):
    assert 1e7 < _info.measure_bandwidth(bytes_, 1, 0.01) < 1e14
    if bytes_ > 8192:
        assert _info.measure_bandwidth(bytes_, 2, 0.01) > 1e7


def test_measure_bandwidth_wants_a_page_a_thread():
    with pytest.raises(ValueError, match="at least 4096 bytes a thread, not 5000 for 2"):
        _info.measure_bandwidth(5000, 2, 0.01)
