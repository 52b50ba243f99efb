"""Attention over an int8 KV cache on a CUDA device: bit for bit what the CPU's operators give."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from ptq4arvg import ops
from ptq4arvg.reference_attention import HEAD_NORMS

pytestmark = pytest.mark.gpu
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# (images, heads, tokens, channels, positions, position): scales of VAR, steps of RAR with its four
# widths, of PAR, sizes that fill no tile, and a cache as long as it may be.
SIZES = [
    (1, 2, 1, 64, 40, 0), (2, 3, 5, 48, 60, 33), (2, 2, 20, 80, 64, 30), (4, 16, 1, 64, 680, 0),
    (4, 16, 16, 64, 680, 14), (4, 16, 256, 64, 680, 424), (2, 30, 169, 64, 680, 255),
    (8, 16, 1, 48, 257, 256), (8, 16, 1, 64, 257, 3), (8, 16, 1, 80, 257, 100),
    (8, 16, 256, 88, 257, 0), (6, 12, 4, 64, 257, 77), (6, 12, 16, 64, 577, 561),
    (3, 5, 63, 20, 99, 31), (2, 3, 65, 100, 300, 17), (3, 2, 130, 128, 400, 270),
    (1, 1, 20, 128, 65536, 65516),
]  # fmt: skip
SMALL = SIZES[2]


class Case:
    """Projections and tables at random, on the CPU; every method takes a device."""

    def __init__(
        self, images: int, heads: int, tokens: int, size: int, positions: int, position: int,
        dtype: torch.dtype = torch.float32, seed: int = 0,
    ) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(seed)
        self.tokens, self.sizes = tokens, (images, heads, positions, size)
        self.position = torch.tensor([position], dtype=torch.int32)
        qkv = torch.randn(images, positions, 3, heads, size, generator=g)
        qkv[:, :, 1:] += torch.randn(2, heads, size, generator=g)
        self.qkv = qkv.to(dtype)
        # Scales and shifts of keys, then of values.
        k_scale, v_scale = torch.rand(2, heads, size, generator=g) * 0.02 + 0.01
        k_shift, v_shift = torch.randn(2, heads, size, generator=g)
        tables = (k_scale, k_shift, v_scale, v_shift)
        self.tables = {device: [x.to(device) for x in tables] for device in ("cpu", "cuda")}

    def at(self, device: str, begin: int, count: int) -> list[Tensor]:
        """q, k and v of some positions, as views of what a linear layer gives: [B, H, t, d]."""
        return list(self.qkv[:, begin : begin + count].to(device).permute(2, 0, 3, 1, 4))

    def cache(self, device: str) -> tuple[Tensor, Tensor]:
        return ops.empty_kv_cache(*self.sizes, device=device)

    def store(self, device: str, cache: tuple[Tensor, Tensor], k: Tensor, v: Tensor, at: Tensor):
        ops.store_kv(k, v, *cache, *self.tables[device], at)

    def read(self, device: str, cache: tuple[Tensor, Tensor], q: Tensor, at: Tensor, **options):
        k_scale, _, v_scale, v_shift = self.tables[device]
        at = None if "limits" in options else at
        return ops.attention(q, *cache, k_scale, v_scale, v_shift, position=at, **options)

    def run(self, device: str, limits: Tensor | None = None, **options) -> list[Tensor]:
        """The cache after all positions up to the tokens' last one, and the tokens' output."""
        cache, begin = self.cache(device), int(self.position)
        if begin:
            _, k, v = self.at(device, 0, begin)
            self.store(device, cache, k, v, torch.zeros(1, dtype=torch.int32, device=device))
        at = self.position.to(device)
        q, k, v = self.at(device, begin, self.tokens)
        self.store(device, cache, k, v, at)
        if limits is not None:
            options["limits"] = limits.to(device)
        return [*cache, self.read(device, cache, q, at, **options)]


def same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        different = got.cpu() != wanted
        assert not different.any(), f"{int(different.sum())} of {different.numel()} differ"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_attention(size):
    case = Case(*size)
    actual = case.run("cuda")
    assert ops.last_kernel() == "attention.cuda"
    same(actual, case.run("cpu"))


@pytest.mark.parametrize("norm", HEAD_NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES[:10], ids=str)
def test_store_qkv(size, dtype, norm):
    """With everything that is done to q and k, vectors of another type than theirs."""
    case, g = Case(*size, dtype), torch.Generator().manual_seed(1)
    _, heads, tokens, channels, _, begin = size
    vectors = torch.randn(4, channels, generator=g).to(DTYPES[len(norm) % 3])
    names = ("q_weight", "q_bias", "k_weight", "k_bias")
    steps = {
        **dict(zip(names, vectors, strict=True)), "q_factors": torch.rand(heads, generator=g),
        "rotation": torch.randn(tokens, channels // 2, 2, generator=g), "position": case.position,
    }  # fmt: skip
    results = []
    for device in ("cuda", "cpu"):
        qkv, cache = case.qkv[:, begin : begin + tokens].to(device), case.cache(device)
        there = {name: x.to(device) for name, x in steps.items()}
        q = ops.store_qkv(qkv, *cache, *case.tables[device], norm=norm, **there)
        assert ops.last_kernel().startswith("store_kv.")
        results.append([*cache, q])
    same(*results)


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [3, 20])
def test_types(tokens, dtype, out_dtype):
    case = Case(2, 3, tokens, 88, 64, 30, dtype)
    same(case.run("cuda", out_dtype=out_dtype), case.run("cpu", out_dtype=out_dtype))


@pytest.mark.parametrize("tokens", [1, 7, 16, 17, 64, 100])
def test_limits(tokens):
    """A query's own number of keys: causal, at random, and one for all."""
    case = Case(2, 2, tokens, 64, 208, 100)
    causal = torch.arange(101, 101 + tokens).int()
    generator = torch.Generator().manual_seed(tokens)
    for limits in (
        causal,
        torch.randint(1, 100 + tokens + 1, (tokens,), generator=generator).int(),
        torch.full((tokens,), 37, dtype=torch.int32),
    ):
        same(case.run("cuda", limits=limits), case.run("cpu", limits=limits))


@pytest.mark.parametrize("block", [0, 4, 16])
@pytest.mark.parametrize("size", SIZES[:14], ids=str)
def test_codes_of_the_next_layer(size, block):
    """By a table of places, and by one entry for all, with and without limits."""
    case, results = Case(*size, dtype=torch.bfloat16), []
    begin, tokens = size[5], size[2]
    block = block if size[3] % max(block, 1) == 0 else 4
    g = torch.Generator()
    for device in ("cuda", "cpu"):
        cache = case.cache(device)
        q, k, v = case.at(device, begin, tokens)
        case.store(device, cache, k, v, case.position.to(device))
        k_scale, _, v_scale, v_shift = case.tables[device]
        for entries in (begin + tokens, 1):
            g.manual_seed(entries)
            to = {
                "out_inv_scale": (torch.rand(entries, generator=g) * 20 + 2).to(device),
                "out_zero": torch.randint(0, 64, (entries,), generator=g).int().to(device),
                "out_position": case.position.to(device) if entries > 1 else None,
            }
            where = {"position": case.position.to(device)}
            if entries == 1:
                where = {"limits": torch.arange(1, tokens + 1, device=device).int()}
            codes = ops.attention_quantize(
                q, *cache, k_scale, v_scale, v_shift, **to, **where, out_bits=6, out_rotation=block
            )
            assert ops.last_kernel().startswith("attention.")
            results.append(codes)
    same(results[:2], results[2:])


@pytest.mark.parametrize("tokens", [2, 40])
def test_extremes(tokens):
    """Queries of zeros and of almost nothing, codes at both ends, and one key above all others."""
    case = Case(1, 2, tokens, 128, 320, 200)
    case.qkv *= 1000
    case.qkv[:, 200, 0], case.qkv[:, 201, 0] = 0, 1e-34
    same(case.run("cuda"), case.run("cpu"))


@pytest.mark.parametrize("tokens", [1, 20])
def test_queries_that_are_not_finite(tokens):
    case = Case(1, 2, tokens, 48, 64, 10)
    for bad in (float("nan"), float("inf")):
        case.qkv[0, 10, 0, 1, 5] = bad
        out = case.run("cuda")[-1].cpu().unflatten(2, (2, 48))
        assert out[0, 0, 1].isnan().all() and not out[0, 0, 0].isnan().any()
        assert not out[0, 1:].isnan().any()


@pytest.mark.skipif(
    bool(os.environ.get("PTQ4ARVG_INTERPRETED")), reason="operators get copies without gaps there"
)
def test_images_with_gaps_between_them():
    case = Case(*SMALL)
    whole = [torch.cat([x, x], 1)[:, : x.shape[1]] for x in case.cache("cuda")]
    assert not whole[0].is_contiguous()
    begin = int(case.position)
    q, k, v = case.at("cuda", begin, case.tokens)
    case.store("cuda", whole, k, v, case.position.cuda())
    out = case.read("cuda", whole, q, case.position.cuda())
    cache = case.cache("cpu")
    q, k, v = case.at("cpu", begin, case.tokens)
    case.store("cpu", cache, k, v, case.position)
    same([*whole, out], [*cache, case.read("cpu", cache, q, case.position)])


@pytest.mark.parametrize("early", ["0", "1"])
@pytest.mark.parametrize("tokens", [1, 4, 18])
def test_positions_change_between_replays(tokens, early, monkeypatch):
    monkeypatch.setenv("PTQ4ARVG_CUDA_PDL", early)
    case = Case(2, 4, tokens, 64, 96, 0, torch.float16)
    cache, expected_cache = case.cache("cuda"), case.cache("cpu")
    at = torch.zeros(1, dtype=torch.int32, device="cuda")
    inputs = [x.clone() for x in case.at("cuda", 0, tokens)]

    def step():
        q, k, v = inputs
        case.store("cuda", cache, k, v, at)
        return case.read("cuda", cache, q, at)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for begin in range(0, 96 - tokens, tokens):
        for here, given in zip(inputs, case.at("cuda", begin, tokens), strict=True):
            here.copy_(given)
        at.fill_(begin)
        out.zero_()
        graph.replay()
        q, k, v = case.at("cpu", begin, tokens)
        position = torch.tensor([begin], dtype=torch.int32)
        case.store("cpu", expected_cache, k, v, position)
        expected = case.read("cpu", expected_cache, q, position)
        same([*cache, out], [*expected_cache, expected])


@pytest.mark.parametrize("size", [(8, 16, 1, 64, 257, 256), (4, 16, 256, 64, 680, 424)], ids=str)
def test_twenty_runs_are_equal(size):
    case = Case(*size, torch.bfloat16)
    first = [x.cpu() for x in case.run("cuda")]
    for _ in range(20):
        same(case.run("cuda"), first)
