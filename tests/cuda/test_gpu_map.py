"""Maps of codes and convolutions on a CUDA device: bit for bit what the CPU's operators give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ptq4arvg
from ptq4arvg import ops

pytestmark = pytest.mark.gpu
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# (images, height, width, channels, outputs, kernel): of VAR's tokenizer, of others, sizes that fill
# no tile, channels that TMA cannot copy.
SIZES = [
    (2, 16, 16, 640, 640, 3), (1, 32, 32, 640, 320, 3), (1, 64, 64, 160, 160, 3),
    (1, 48, 24, 128, 128, 3), (3, 7, 5, 96, 104, 3), (2, 9, 12, 48, 33, 5), (1, 8, 8, 20, 7, 3),
    (2, 5, 6, 32, 64, 1), (1, 1, 1, 16, 16, 3), (1, 300, 2, 64, 200, 2),
]  # fmt: skip


class Case:
    """A random map with what both operators take, on the CPU."""

    def __init__(
        self, images: int, height: int, width: int, channels: int, outputs: int, kernel: int,
        bits: int = 8, dtype: torch.dtype = torch.bfloat16,
    ) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g)

        self.kernel, self.bits, self.dtype = kernel, bits, dtype
        self.x = (3 * normal(images, height, width, channels) + 1).to(dtype)
        self.inv_scale, self.zero = torch.tensor([21.0]), torch.tensor([13], dtype=torch.int32)
        self.weight, self.bias = normal(channels), normal(channels)
        self.groups = max(d for d in (1, 2, 4, 8, 16, 32) if channels % d == 0)
        low, high = (-127, 128) if bits == 8 else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        shape = (outputs, kernel * kernel * channels)
        self.codes = torch.randint(low, high, shape, generator=g, dtype=torch.int8)
        self.w_scale = torch.rand(outputs, generator=g) + 0.5
        self.b = normal(outputs)
        self.residual = normal(images, height, width, outputs).to(dtype)

    def map(self, device: str, x: Tensor | None = None, **options) -> Tensor:
        given = {
            "groups": self.groups, "activation": "silu", "border": self.kernel // 2,
            "weight": self.weight.to(device), "bias": self.bias.to(device),
        } | options  # fmt: skip
        x = self.x.to(device) if x is None else x
        return ops.quantize_map(
            x, self.inv_scale.to(device), self.zero.to(device), self.bits, **given
        )

    def convolve(self, device: str, a: Tensor, **options) -> Tensor:
        scale, zero = 0.01 * torch.ones(1), torch.tensor([-115], dtype=torch.int32)
        packed = ops.pack_weight(self.codes.to(device), None, self.bits)
        given = {"bits": self.bits, "kernel_size": self.kernel, "out_dtype": self.dtype} | options
        return ops.conv2d(
            a, packed, scale.to(device), self.w_scale.to(device), zero.to(device), None, None,
            self.b.to(device), **given,
        )  # fmt: skip


def same(actual: Tensor, expected: Tensor) -> None:
    assert actual.is_cuda and actual.dtype == expected.dtype
    assert torch.equal(actual.cpu().view(torch.int8), expected.contiguous().view(torch.int8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_maps(size, dtype):
    case = Case(*size, dtype=dtype)
    same(case.map("cuda"), case.map("cpu"))
    assert ops.last_kernel() in ("quantize_map.cuda", f"quantize_map.{ops.isa()}")
    plain = {"groups": 0, "weight": None, "bias": None, "activation": "none", "scale": 2}
    same(case.map("cuda", **plain), case.map("cpu", **plain))


def test_maps_off_alignment():
    case = Case(2, 5, 7, 33, 8, 3)
    same(case.map("cuda"), case.map("cpu"))
    x = case.x.cuda().transpose(1, 2)
    same(case.map("cuda", x=x), case.map("cpu", x=case.x.transpose(1, 2)))


@pytest.mark.parametrize("bits", (8, 6, 4))
@pytest.mark.parametrize("size", SIZES)
def test_convolutions(size, bits):
    case = Case(*size, bits=bits)
    a = case.map("cpu")
    residual = case.residual if size[-1] % 2 else None
    given = {} if residual is None else {"residual": residual.cuda()}
    actual = case.convolve("cuda", a.cuda(), **given)
    op = "conv2d" if size[-1] > 1 else "gemm"  # patches of one pixel are rows
    assert ops.last_kernel().startswith(f"{op}.w{bits}.")
    same(actual, case.convolve("cpu", a, residual=residual))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_of_patches(dtype, monkeypatch):
    case = Case(1, 20, 9, 64, 320, 3, dtype=dtype)
    a = case.map("cpu")
    expected = case.convolve("cpu", a, activation="silu", residual=case.residual)
    kernels = [
        k["name"].removeprefix("conv2d.w8.")
        for k in ops.list_kernels()
        if k["device"] == "cuda" and k["op"] == "conv2d" and k["weight_bits"] == 8
    ]
    ran = 0
    for kernel in kernels:
        monkeypatch.setenv("PTQ4ARVG_CUDA_CONV_KERNEL", kernel)
        if "sm90" in kernel and torch.cuda.get_device_capability() != (9, 0):
            with pytest.raises(ValueError, match="cannot take"):
                case.convolve("cuda", a.cuda())
            continue
        found = case.convolve("cuda", a.cuda(), activation="silu", residual=case.residual.cuda())
        assert ops.last_kernel() == f"conv2d.w8.{kernel}"
        same(found, expected)
        ran += 1
    assert ran >= 1


def test_a_kernel_of_products_is_refused(monkeypatch):
    case = Case(*SIZES[4])
    for name in ("decode", "nonsense"):
        monkeypatch.setenv("PTQ4ARVG_CUDA_CONV_KERNEL", name)
        with pytest.raises(ValueError, match=r"CONV_KERNEL is .*wanted one of .*tiled"):
            case.convolve("cuda", case.map("cuda"))


def test_graph_and_side_stream():
    case = Case(2, 12, 10, 96, 160, 3)
    x, expected = case.x.cuda(), case.convolve("cpu", case.map("cpu"))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        same(case.convolve("cuda", case.map("cuda")), expected)
    graph = torch.cuda.CUDAGraph()
    fixed = [v.cuda() for v in (case.inv_scale, case.zero, case.weight, case.bias)]

    def call() -> Tensor:
        return ops.quantize_map(
            x, fixed[0], fixed[1], 8, groups=32, weight=fixed[2], bias=fixed[3], activation="silu",
            border=1,
        )  # fmt: skip

    with torch.cuda.graph(graph):
        y = call()
    x.copy_(case.x.flip(0))
    graph.replay()
    same(y, case.map("cpu").flip(0))


def test_decoders_come_close_on_both_devices():
    """What is not in integers rounds in another way on a GPU."""
    model = ptq4arvg.load_model("var-tiny")
    rows = ptq4arvg.calibrate(model, samples=8, keep=8, select="first")
    ptq4arvg.quantize_(model, "W8A8", calibration=rows, decoder="W8A8")
    with torch.inference_mode():
        expected = model.decode_rows(rows.ids[:2])
        found = model.to("cuda").decode_rows(rows.ids[:2].cuda()).cpu()
    assert ops.last_kernel() != ""
    mse = (found - expected).double().square().mean().item()
    assert mse < 1e-5  # 50 dB
