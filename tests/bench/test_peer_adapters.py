"""Each adapter calls its library as the library wants it: stand-ins that insist on it."""

import copy
import os
import sys
import types

import pytest
import torch
from peer import Absent, Ours, Product, WrongResult, check
from peer_adapters import PEERS


def product(bits=8, m=20):
    torch.manual_seed(0)
    return Product.random(m, 128, 256, bits, "cpu")


def scaled_mm(a, b, a_scales, b_scales):
    """What CUTLASS's kernels insist on, and their product."""
    (m, k), n = a.shape, b.shape[1]
    assert a.dtype == b.dtype == torch.int8 and a.is_contiguous()
    assert b.shape == (k, n) and b.stride() == (1, k)  # column-major
    assert a_scales.dtype == b_scales.dtype == torch.float32
    assert a_scales.shape == (m, 1) and b_scales.numel() == n
    return (a.double() @ b.double()) * a_scales * b_scales.view(1, n)


@pytest.fixture
def operators():
    """Namespaces of operators that are gone after the test."""
    libraries = []

    def define(namespace, functions):
        library = torch.library.Library(namespace, "FRAGMENT")
        for schema, function in functions.items():
            library.define(schema)
            library.impl(schema.partition("(")[0], function, "CPU")
        libraries.append(library)

    yield define
    for library in libraries:
        library._destroy()


@pytest.fixture
def vllm(operators):
    def quantize(out, x, scale, azp):
        x = x.float()
        if azp is None:
            scale.copy_(x.abs().amax(1, keepdim=True) / 127)
        else:
            low, high = x.aminmax(dim=1, keepdim=True)
            scale.copy_((high - low) / 255)
            azp.copy_((-128 - low / scale).round())
        out.copy_(((x / scale).round() + (0 if azp is None else azp)).clamp(-128, 127))

    def plain(out, a, b, a_scales, b_scales, bias):
        assert bias is None
        out.copy_(scaled_mm(a, b, a_scales, b_scales))

    def with_zeros(out, a, b, a_scales, b_scales, azp_adj, azp, bias):
        assert azp_adj.dtype == azp.dtype == torch.int32 and azp_adj.shape == b.shape[1:]
        assert azp.numel() == len(a) and bias is None
        out.copy_(scaled_mm(a, b, a_scales, b_scales)
                  - (azp.view(-1, 1) * azp_adj) * a_scales * b_scales.view(1, -1))  # fmt: skip

    rest = "Tensor(a!) out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales"
    operators("_C", {
        f"cutlass_scaled_mm({rest}, Tensor? bias) -> ()": plain,
        f"cutlass_scaled_mm_azp({rest}, Tensor azp_adj, Tensor? azp, Tensor? bias) -> ()":
            with_zeros,
        "dynamic_scaled_int8_quant(Tensor(a!) out, Tensor x, Tensor(b!) scale, "
        "Tensor(c!)? azp) -> ()": quantize,
    })  # fmt: skip


@pytest.fixture
def sgl(operators):
    def int8(a, b, a_scales, b_scales, out_dtype, bias):
        assert bias is None and out_dtype == torch.bfloat16
        return scaled_mm(a, b, a_scales, b_scales).to(out_dtype)

    operators("sgl_kernel", {
        "int8_scaled_mm(Tensor mat_a, Tensor mat_b, Tensor scales_a, Tensor scales_b, "
        "ScalarType out_dtype, Tensor? bias) -> Tensor": int8,
    })  # fmt: skip


def modules(monkeypatch, **found):
    for name, members in found.items():
        parts = name.split("__")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        for key, value in members.items():
            setattr(sys.modules[".".join(parts)], key, value)


@pytest.fixture
def marlin(monkeypatch):
    def quantize(w, quant_type, group_size, act_order, input_dtype):
        assert (quant_type, group_size, act_order) == ("uint4b8", -1, False)
        assert input_dtype == torch.int8 and w.is_contiguous()
        scale = w.float().abs().amax(0, keepdim=True) / 7
        codes = (w.float() / scale).round()
        return w, codes, scale, "g_idx", "sort_indices", "rand_perm"

    def gemm(a, c, w, b_bias, scale, a_scales, global_scale, zeros, g_idx, perm, workspace, kind,
             m, n, k, is_k_full, use_atomic_add, use_fp32_reduce, is_zp_float):  # fmt: skip
        assert c is b_bias is global_scale is zeros is None and kind == "uint4b8"
        assert (g_idx, perm, workspace.dtype) == ("g_idx", "sort_indices", torch.int32)
        assert w.shape == (k, n) and a.shape == (m, k) and a.dtype == torch.int8
        assert is_k_full and use_fp32_reduce and not use_atomic_add and not is_zp_float
        return (a.double() @ w.double() * a_scales * scale).to(torch.bfloat16)

    folder = "vllm__model_executor__layers__quantization__utils"
    modules(monkeypatch, **{
        f"{folder}__marlin_utils_test": {"marlin_quantize": quantize},
        f"{folder}__marlin_utils": {
            "marlin_make_workspace_new": lambda device: torch.zeros(4, dtype=torch.int32)
        },
        "vllm__scalar_type": {"scalar_types": types.SimpleNamespace(uint4b8="uint4b8")},
        "vllm___custom_ops": {"marlin_gemm": gemm},
    })  # fmt: skip


@pytest.fixture
def humming(monkeypatch):
    class Layer(torch.nn.Module):
        def __init__(self, shape_n, shape_k, weight_config, input_config, torch_dtype):
            super().__init__()
            assert input_config == {"dtype": "int8"} and torch_dtype == torch.bfloat16
            bits = int(weight_config["dtype"].removeprefix("int"))
            self.shape, self.top = (shape_n, shape_k), 2 ** (bits - 1) - 1

        def load_from_unquantized(self, weight):
            assert weight.shape == self.shape and weight.dtype == torch.bfloat16
            scale = weight.float().abs().amax(1, keepdim=True) / self.top
            self.register_buffer("codes", (weight.float() / scale).round())
            self.register_buffer("scale", scale)

        def transform(self):
            self.ready = True

        def forward(self, inputs, input_scale=None):
            assert self.ready and (inputs.dtype == torch.int8) == (input_scale is not None)
            scale = 1 if input_scale is None else input_scale
            y = inputs.double() @ self.codes.double().t() * scale * self.scale.t()
            return y.to(torch.bfloat16)

    modules(monkeypatch, humming__layer={"HummingLayer": Layer})


STAND_INS = {
    "vllm.scaled_mm": "vllm", "vllm.scaled_mm_azp": "vllm", "sgl.int8_scaled_mm": "sgl",
    "marlin.w4a8": "marlin", "humming.w8a8": "humming", "humming.w6a8": "humming",
    "humming.w4a8": "humming",
}  # fmt: skip


@pytest.mark.parametrize("name", STAND_INS)
def test_adapters_with_stand_ins(name, request):
    request.getfixturevalue(STAND_INS[name])
    peer = copy.copy(PEERS[name])
    peer.find(None)
    check(peer, product(peer.bits))


@pytest.mark.parametrize("name", STAND_INS)
def test_without_the_library_it_says_what_to_install(name):
    with pytest.raises(Absent, match=r"cannot be imported .*; type: pip install"):
        copy.copy(PEERS[name]).find(None)


def test_torch_needs_nothing():
    PEERS["torch.int_mm"].find(None)
    check(PEERS["torch.int_mm"], product())


def test_a_library_without_the_operator(operators, monkeypatch):
    modules(monkeypatch, sgl_kernel={})
    with pytest.raises(Absent, match=r"torch\.ops\.sgl_kernel has no int8_scaled_mm; type: pip"):
        PEERS["sgl.int8_scaled_mm"].find(None)


def test_libraries_of_a_folder_are_loaded(sgl, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    (tmp_path / "sgl.so").touch()
    PEERS["sgl.int8_scaled_mm"].find(tmp_path)
    assert loaded == [str(tmp_path / "sgl.so")]


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("m", [1, 20])
def test_ours(bits, m):
    check(Ours(bits), product(bits, m))


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_ours_early(bits, monkeypatch):
    seen, real = [], Ours.multiply

    def multiply(self, *arguments):
        seen.append(os.environ.get("PTQ4ARVG_CUDA_PDL"))
        return real(self, *arguments)

    monkeypatch.setattr(Ours, "multiply", multiply)
    monkeypatch.setenv("PTQ4ARVG_CUDA_PDL", "0")
    check(PEERS[f"early.w{bits}"], product(bits))
    assert seen == ["1", "1"] and os.environ["PTQ4ARVG_CUDA_PDL"] == "0"


@pytest.mark.parametrize("device", [None, (8, 9)])
def test_ours_early_wants_a_device_that_can(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: device)
    with pytest.raises(Absent, match="sm_90 and later"):
        PEERS["early.w8"].find(None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    PEERS["early.w8"].find(None)


@pytest.mark.parametrize("wrong", ["multiply", "quantize"])
def test_a_wrong_result_is_found(wrong, monkeypatch):
    peer = copy.copy(PEERS["torch.int_mm"])
    right = getattr(peer, wrong)
    broken = {
        "multiply": lambda *arguments: right(*arguments) * 1.02,
        "quantize": lambda p: (right(p)[0].roll(1, 1), *right(p)[1:]),
    }
    monkeypatch.setattr(peer, wrong, broken[wrong])
    given = {"multiply": "codes", "quantize": "floats"}[wrong]
    with pytest.raises(WrongResult, match=f"given {given}, its relative error is"):
        check(peer, product())


def test_what_is_not_a_number_is_wrong(monkeypatch):
    peer = copy.copy(PEERS["torch.int_mm"])
    nan = torch.full((20, 128), torch.nan)
    monkeypatch.setattr(peer, "multiply", lambda *_: nan)
    with pytest.raises(WrongResult, match="relative error is nan"):
        check(peer, product())
