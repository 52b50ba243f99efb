"""Integer linears of other libraries, for bench/peers.py. None of the libraries is needed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from candidates import compile_once
from peer import OUT, Absent, Early, Peer, Product
from torch import Tensor

__all__ = ["PEERS"]


def _by_row(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric 8-bit codes and their scales [M, 1], from the largest magnitude of each row."""
    x = x.float()
    scale = x.abs().amax(1, keepdim=True) / 127
    return torch.round(x / scale).to(torch.int8), scale


def _quantize_by_row(x: Tensor) -> tuple[Tensor, Tensor]:
    """For libraries that leave it to torch: compiled where there is a GPU."""
    return compile_once(_by_row)(x) if x.is_cuda else _by_row(x)


def _import(module: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a wheel for another torch fails in its own way
        raise Absent(f"{module} cannot be imported ({error}); type: {install}") from None


def _find_ops(namespace: str, wanted: str, module: str, file: str, install: str,
              libraries: Path | None) -> None:  # fmt: skip
    """The operator ``wanted``, from a shared library of that folder, else from its package."""
    if libraries and (libraries / file).exists():
        torch.ops.load_library(str(libraries / file))
    elif not hasattr(getattr(torch.ops, namespace), wanted):
        _import(module, f"{install}, or give --libraries a folder with {file}")
    if not hasattr(getattr(torch.ops, namespace), wanted):
        raise Absent(f"torch.ops.{namespace} has no {wanted}; type: {install}")


class _Symmetric(Peer):
    """What takes int8 rows with a scale each, and the weight as it is."""

    def prepare(self, product: Product) -> Any:
        return product.w

    def quantize(self, product: Product) -> tuple[Tensor, ...]:
        return _quantize_by_row(product.x)


class IntMm(_Symmetric):
    """torch._int_mm, then the scales, by torch.compile on a GPU."""

    name, with_zero = "torch.int_mm", True

    def quantize(self, product: Product) -> tuple[Tensor, ...]:
        return *super().quantize(product), torch.zeros_like(product.a_zero)

    def multiply(self, weight: Any, product: Product, *codes: Tensor) -> Tensor:
        a, scale, zero = codes or (product.a, product.a_scale, product.a_zero)
        function = compile_once(_scaled_int_mm) if a.is_cuda else _scaled_int_mm
        return function(a, weight, scale, zero, product.w_scale, product.w_sum)


def _scaled_int_mm(a: Tensor, w: Tensor, scale: Tensor, zero: Tensor, w_scale: Tensor,
                   w_sum: Tensor) -> Tensor:  # fmt: skip
    acc = torch._int_mm(a, w.t()) - zero * w_sum
    return (acc.float() * (scale * w_scale)).to(OUT)


class VllmScaledMm(_Symmetric):
    """vLLM's CUTLASS kernels; its own kernel quantizes the input."""

    name, install = "vllm.scaled_mm", "pip install vllm"

    def find(self, libraries: Path | None) -> None:
        _find_ops("_C", "cutlass_scaled_mm", "vllm._custom_ops", "vllm.so", self.install, libraries)

    def quantize(self, product: Product) -> tuple[Tensor, ...]:
        codes = torch.empty_like(product.x, dtype=torch.int8)
        scale = torch.empty_like(product.a_scale)
        zero = torch.empty_like(product.a_zero) if self.with_zero else None
        torch.ops._C.dynamic_scaled_int8_quant(codes, product.x, scale, zero)
        return (codes, scale, zero) if self.with_zero else (codes, scale)

    def multiply(self, weight: Any, product: Product, *codes: Tensor) -> Tensor:
        a, scale = codes or (product.a, product.a_scale)
        out = torch.empty(len(a), len(weight), dtype=OUT, device=a.device)
        b_scale = product.w_scale[:, None]
        torch.ops._C.cutlass_scaled_mm(out, a, weight.t(), scale, b_scale, None)
        return out


class VllmScaledMmAzp(VllmScaledMm):
    """The same with a zero point for each row of the input."""

    name, with_zero = "vllm.scaled_mm_azp", True

    def multiply(self, weight: Any, product: Product, *codes: Tensor) -> Tensor:
        a, scale, zero = codes or (product.a, product.a_scale, product.a_zero)
        out = torch.empty(len(a), len(weight), dtype=OUT, device=a.device)
        torch.ops._C.cutlass_scaled_mm_azp(
            out, a, weight.t(), scale, product.w_scale[:, None], product.w_sum, zero, None
        )
        return out


class SglScaledMm(_Symmetric):
    """SGLang's CUTLASS kernels; torch quantizes the input."""

    name, install = "sgl.int8_scaled_mm", "pip install sglang-kernel"

    def find(self, libraries: Path | None) -> None:
        _find_ops("sgl_kernel", "int8_scaled_mm", "sgl_kernel", "sgl.so", self.install, libraries)

    def multiply(self, weight: Any, product: Product, *codes: Tensor) -> Tensor:
        a, scale = codes or (product.a, product.a_scale)
        return torch.ops.sgl_kernel.int8_scaled_mm(
            a, weight.t(), scale, product.w_scale[:, None], OUT, None
        )


class MarlinW4A8(_Symmetric):
    """vLLM's Marlin with int8 input: 4-bit weights, one scale a channel. It takes N in multiples of
    64 and K in multiples of 128; vLLM's own functions put the weight in its layout."""

    name, bits, install = "marlin.w4a8", 4, "pip install vllm"
    codes_error = floats_error = 0.15  # it quantizes the weight by itself, to 15 levels

    def find(self, libraries: Path | None) -> None:
        folder = "vllm.model_executor.layers.quantization.utils"
        self.vllm = _import("vllm._custom_ops", self.install)
        self.types = _import("vllm.scalar_type", self.install).scalar_types
        self.utils = _import(f"{folder}.marlin_utils", self.install)
        self.packing = _import(f"{folder}.marlin_utils_test", self.install)

    def prepare(self, product: Product) -> Any:
        found = self.packing.marlin_quantize(
            product.weight().t().contiguous(), self.types.uint4b8, -1, False, input_dtype=torch.int8
        )
        _, weight, scale, groups, order, _ = found
        return weight, scale, groups, order, self.utils.marlin_make_workspace_new(product.w.device)

    def multiply(self, weight: Any, product: Product, *codes: Tensor) -> Tensor:
        packed, w_scale, groups, order, workspace = weight
        a, scale = codes or (product.a, product.a_scale)
        m, k = a.shape
        return self.vllm.marlin_gemm(
            a, None, packed, None, w_scale, scale, None, None, groups, order, workspace,
            self.types.uint4b8, m, len(product.w), k, is_k_full=True, use_atomic_add=False,
            use_fp32_reduce=True, is_zp_float=False,
        )  # fmt: skip


class Humming(_Symmetric):
    """Humming's kernels, compiled when first called, with int8 input: weights of 8, 6 or 4 bits,
    one scale a channel. Its own kernel quantizes the input."""

    install = "pip install 'humming-kernels[cu13]'"

    def __init__(self, bits: int) -> None:
        self.name, self.bits = f"humming.w{bits}a8", bits
        # It quantizes the weight by itself; the grid's step is 2 / (2^bits - 1) of the range.
        self.codes_error = self.floats_error = {8: 0.03, 6: 0.05, 4: 0.15}[bits]

    def find(self, libraries: Path | None) -> None:
        self.layer = _import("humming.layer", self.install).HummingLayer

    def prepare(self, product: Product) -> Any:
        n, k = product.w.shape
        layer = self.layer(
            shape_n=n, shape_k=k, weight_config={"dtype": f"int{self.bits}"},
            input_config={"dtype": "int8"}, torch_dtype=OUT,
        ).to(product.w.device)  # fmt: skip
        layer.load_from_unquantized(product.weight())
        layer.transform()
        return layer

    def quantize(self, product: Product) -> tuple[Tensor, ...]:
        return (product.x,)  # in the layer's own call

    def multiply(self, weight: Any, product: Product, *codes: Tensor) -> Tensor:
        return weight(*codes) if codes else weight(product.a, input_scale=product.a_scale)


# All that bench/peers.py knows, by name.
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (*(Early(bits) for bits in (8, 6, 4)), IntMm(), VllmScaledMm(), VllmScaledMmAzp(),
                 SglScaledMm(), MarlinW4A8(), *(Humming(bits) for bits in (8, 6, 4)))
}  # fmt: skip
