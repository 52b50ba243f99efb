"""Every operator on a CUDA device against the reference: integers exactly, floats bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from ptq4arvg import ops
from ptq4arvg.reference import gemm as reference_gemm
from ptq4arvg.reference import gemm_float as reference_gemm_float
from ptq4arvg.reference import gemm_quantize as reference_gemm_quantize
from ptq4arvg.reference import norm_quantize as reference_norm_quantize
from ptq4arvg.reference import quantize as reference_quantize

pytestmark = pytest.mark.gpu
BITS = (8, 6, 4)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# (M, N, K): decode rows, tile edges, all layers of a small model, sizes that no tile divides.
SIZES = [
    (1, 3072, 1024), (2, 16, 32), (7, 100, 70), (16, 4096, 1024), (32, 1024, 4096), (33, 64, 64),
    (64, 256, 256), (127, 129, 65), (128, 128, 128), (300, 3072, 1024), (1360, 1024, 4096),
    (8193, 1024, 256),
]  # fmt: skip


class Case:
    """Random arguments of a product, on the CPU; ``cuda`` moves what is a tensor."""

    def __init__(self, m: int, n: int, k: int, bits: int, tokens: int = 5, seed: int = 0) -> None:
        g = self.generator = torch.Generator().manual_seed(seed)
        self.bits, self.tokens = bits, tokens
        self.a = torch.randint(-128, 128, (m, k), generator=g, dtype=torch.int8)
        top = 2**bits - 1
        self.zero = None if bits == 8 else torch.randint(0, top + 1, (n,), generator=g).int()
        if bits == 8:
            codes = torch.randint(-127, 128, (n, k), generator=g)
        else:
            codes = torch.randint(0, top + 1, (n, k), generator=g) - self.zero[:, None]
        self.codes = codes.to(torch.int8)
        self.w_scale = torch.rand(n, generator=g) * 1e-3 + 1e-5
        self.a_scale = torch.rand(9, generator=g) * 1e-2 + 1e-4
        self.a_zero = torch.randint(-128, 128, (9,), generator=g).int()
        self.bias = torch.randn(n, generator=g)
        self.residual, self.gate = (
            torch.randn(rows, n, generator=g) for rows in (m, -(-m // tokens))
        )

    @property
    def rows(self) -> int:
        return len(self.a) // self.tokens * self.tokens

    def product(self, device: str, reference: bool, position: int = 4, **options):
        """The operator or the reference on whole images of ``tokens`` rows."""
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        a = self.a[: self.rows].to(device)
        pack = ops.reference.pack_weight if reference else ops.pack_weight
        zero = None if self.zero is None else self.zero.to(device)
        w = pack(self.codes.to(device), zero, self.bits)
        requantize = "out_bits" in options
        functions = (
            (reference_gemm, reference_gemm_quantize)
            if reference
            else (ops.gemm, ops.gemm_quantize)
        )
        return functions[requantize](
            a, w, self.a_scale.to(device), self.w_scale.to(device), self.a_zero.to(device),
            w_zero=zero, bias=self.bias.to(device), bits=self.bits, tokens=self.tokens,
            position=torch.tensor([position], dtype=torch.int32, device=device), **moved,
        )  # fmt: skip


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    different = actual.cpu() != expected
    assert not different.any(), f"{int(different.sum())} of {different.numel()} elements differ"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gemm(size, bits):
    case = Case(*size, bits, tokens=1 if size[0] < 5 else 5)
    same(case.product("cuda", False), case.product("cpu", True))
    assert ops.last_kernel() and "avx" not in ops.last_kernel()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("m", [*range(1, 41), 63, 64, 65, 129, 255, 257])
def test_every_small_m(m, bits):
    case = Case(m, 200, 136, bits, tokens=1)
    same(case.product("cuda", False), case.product("cpu", True))


@pytest.mark.parametrize("m", [10, 320])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_epilogue(activation, dtype, m):
    case = Case(m, 256, 128, 8)
    options = {"activation": activation, "residual": case.residual[: case.rows].to(dtype),
               "gate": case.gate.to(dtype), "out_dtype": dtype}  # fmt: skip
    same(case.product("cuda", False, **options), case.product("cpu", True, **options))


@pytest.mark.parametrize("m", [10, 320])
@pytest.mark.parametrize("out_bits", [8, 6])
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_requantization(activation, out_bits, m):
    case = Case(m, 256, 128, 6)
    zero = torch.randint(0, 2**out_bits, (9,), generator=case.generator).int()
    options = {"activation": activation, "out_bits": out_bits, "out_zero": zero,
               "out_inv_scale": torch.rand(9, generator=case.generator) * 20 + 1}  # fmt: skip
    same(case.product("cuda", False, **options), case.product("cpu", True, **options))


@pytest.mark.parametrize("rotation", [2, 4, 8, 16])
@pytest.mark.parametrize("size", [(10, 256, 128), (30, 48, 4096), (320, 272, 128)], ids=str)
def test_rotated_requantization(size, rotation):
    case = Case(*size, 6)
    zero = torch.randint(0, 64, (9,), generator=case.generator).int()
    options = {"activation": "gelu_tanh", "out_bits": 6, "out_zero": zero, "out_rotation": rotation,
               "out_inv_scale": torch.rand(9, generator=case.generator) * 5 + 0.2}  # fmt: skip
    same(case.product("cuda", False, **options), case.product("cpu", True, **options))


def kernels() -> list[str]:
    """The GEMM kernels of this build; none of them can be skipped by the choice."""
    return [
        kernel["name"].removeprefix("gemm.w8.") for kernel in ops.list_kernels()
        if kernel["device"] == "cuda" and kernel["op"] == "gemm" and kernel["weight_bits"] == 8
    ]  # fmt: skip


@contextmanager
def skipped_where_it_cannot_run() -> Iterator[None]:
    """Skip where the kernel that was asked for is another architecture's, or for fewer rows."""
    try:
        yield
    except ValueError as error:
        if "which takes 32 rows at most" in str(error) or "which cannot take M" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "size", [(1, 256, 512), (31, 1024, 4096), (64, 768, 3072), (300, 512, 1024)], ids=str
)
@pytest.mark.parametrize("kernel", kernels())
def test_every_kernel(kernel, size, bits, monkeypatch):
    monkeypatch.setenv("PTQ4ARVG_CUDA_KERNEL", kernel)
    case = Case(*size, bits, tokens=1)
    with skipped_where_it_cannot_run():
        actual = case.product("cuda", False)
    assert ops.last_kernel() == f"gemm.w{bits}.{kernel}"
    same(actual, case.product("cpu", True))
    zero = torch.randint(0, 256, (9,), generator=case.generator).int()
    options = {"out_bits": 8, "out_zero": zero,
               "out_inv_scale": torch.rand(9, generator=case.generator) * 20 + 1}  # fmt: skip
    for rotation in (0, 2, 4, 8, 16):
        options["out_rotation"] = rotation
        same(case.product("cuda", False, **options), case.product("cpu", True, **options))
    for _ in range(20):  # whatever order blocks add their sums up in
        same(case.product("cuda", False), actual.cpu())


@pytest.mark.parametrize("value", [(-128, 127), (127, 127), (-128, -127)])
@pytest.mark.parametrize("m", [16, 256])
def test_extremes(value, m):
    case = Case(m, 64, 4096, 8, tokens=1)
    case.a.fill_(value[0]), case.codes.fill_(value[1])
    same(case.product("cuda", False), case.product("cpu", True))


@pytest.mark.parametrize("bits", BITS)
def test_pack_and_unpack(bits):
    case = Case(1, 100, 70, bits)
    zero = None if case.zero is None else case.zero.cuda()
    packed = ops.pack_weight(case.codes.cuda(), zero, bits)
    same(ops.unpack_weight(packed, zero, bits, 100, 70), case.codes)


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 100), (2, 7, 1024), (4, 9, 4096)], ids=str)
def test_quantize(shape, dtype, bits):
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=g) * 3).to(dtype)
    inv_scale, zero = (
        torch.rand(9, generator=g) * 9 + 1,
        torch.randint(0, 2**bits, (9,), generator=g),
    )
    arguments = (x, inv_scale, zero.int(), bits)
    moved = [v.cuda() if isinstance(v, torch.Tensor) else v for v in arguments]
    same(ops.quantize(*moved, tokens=shape[1]), reference_quantize(*arguments, tokens=shape[1]))
    strided = ops.quantize(moved[0].transpose(0, 1).contiguous().transpose(0, 1), *moved[1:],
                           tokens=shape[1])  # fmt: skip
    same(strided, reference_quantize(*arguments, tokens=shape[1]))


@pytest.mark.parametrize("rotation", [0, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 32), (2, 7, 2048), (4, 9, 7168), (1, 2, 4128)], ids=str)
def test_gate_quantize(shape, dtype, rotation):
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=g) * 3).to(dtype)
    table = torch.rand(9, generator=g) * 9 + 1, torch.randint(0, 64, (9,), generator=g).int()
    moved = [v.cuda() for v in (x, *table)]
    for activation in ops.ACTIVATIONS:
        options = {"activation": activation, "tokens": shape[1], "rotation": rotation}
        same(ops.gate_quantize(*moved, 6, **options), ops.gate_quantize(x, *table, 6, **options))
    odd = x[..., :10].contiguous()[..., 1:-1]
    same(ops.gate_quantize(odd.cuda(), *moved[1:], 6, tokens=shape[1]),
         ops.gate_quantize(odd, *table, 6, tokens=shape[1]))  # fmt: skip


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("images", [4, 300])  # a block a row, a warp a row
@pytest.mark.parametrize("k", [64, 100, 1024, 1536, 2304])
def test_norm_quantize(k, images, dtype, rms):
    """Statistics may be summed in another order: a code may move by one, and seldom does."""
    g = torch.Generator().manual_seed(k)
    x = torch.randn(images, 9, k, generator=g).to(dtype)
    scale, shift = (torch.randn(images, 1, k, generator=g).to(dtype) * 0.1 for _ in range(2))
    inv_scale, zero = torch.rand(9, generator=g) * 9 + 9, torch.randint(0, 256, (9,), generator=g)
    arguments = {"x": x, "inv_scale": inv_scale, "zero": zero.int(), "bits": 8, "scale": scale,
                 "shift": shift, "constant": torch.ones(k), "eps": 1e-6, "rms": rms}  # fmt: skip
    moved = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
    off = (
        ops.norm_quantize(**moved).cpu().int() - reference_norm_quantize(**arguments).int()
    ).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 1e-4


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("m", [1, 5, 70])
def test_gemm_float(m, bits):
    case = Case(m, 96, 130, bits)
    x = torch.randn(m, 130, generator=case.generator)
    zero = None if case.zero is None else case.zero.cuda()
    packed = ops.pack_weight(case.codes.cuda(), zero, bits)
    actual = ops.gemm_float(x.cuda(), packed, case.w_scale.cuda(), w_zero=zero, bits=bits)
    dense = ops.reference.pack_weight(case.codes, case.zero, bits)
    expected = reference_gemm_float(x, dense, case.w_scale, w_zero=case.zero, bits=bits)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("m", [2, 40, 600])
def test_one_graph_serves_every_position(m):
    case = Case(m, 512, 256, 6, tokens=1)
    position = torch.zeros(1, dtype=torch.int32, device="cuda")
    packed = ops.pack_weight(case.codes.cuda(), case.zero.cuda(), 6)
    a, a_scale, w_scale, a_zero, zero = (
        t.cuda() for t in (case.a, case.a_scale, case.w_scale, case.a_zero, case.zero)
    )

    def run():
        return ops.gemm(a, packed, a_scale, w_scale, a_zero, w_zero=zero, bits=6, tokens=1,
                        position=position)  # fmt: skip

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for at in (0, 8, 3):
        position.fill_(at)
        graph.replay()
        torch.cuda.synchronize()
        case.bias.zero_()
        same(out, case.product("cpu", True, position=at))


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("m", [1, 16, 40, 600])
def test_kernels_that_start_early_give_the_same(m, bits, graph, monkeypatch):
    """A chain in which every kernel reads what the one before has written. Before sm_90 the
    variable changes nothing."""
    k = 512
    cases = [Case(m, k, k, bits, tokens=1, seed=seed) for seed in range(3)]
    zeros = [None if case.zero is None else case.zero.cuda() for case in cases]
    weights = [
        (ops.pack_weight(case.codes.cuda(), zero, bits), case.w_scale.cuda(), zero)
        for case, zero in zip(cases, zeros, strict=True)
    ]
    x = torch.randn(m, k, generator=cases[0].generator).cuda()
    inv_scale, a_scale = torch.full((m,), 20.0).cuda(), torch.full((m,), 0.05).cuda()
    level = torch.full((m,), 128, dtype=torch.int32).cuda()

    def run():
        y = x
        for number, (w, w_scale, zero) in enumerate(weights * 4):
            quantize = ops.quantize if number % 2 else ops.norm_quantize
            a = quantize(y, inv_scale, level, 8, tokens=m)
            # The product before this one has written them.
            added = {"residual": y, "gate": y[:1]} if number % 3 else {}
            y = ops.gemm(a, w, a_scale, w_scale, w_zero=zero, bits=bits, tokens=m, **added)
        return y

    expected = run().cpu()
    monkeypatch.setenv("PTQ4ARVG_CUDA_PDL", "1")
    same(run(), expected)
    if not graph:
        for _ in range(50):
            same(run(), expected)
        return
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out = run()
    for _ in range(50):
        out.zero_()
        captured.replay()
        same(out, expected)


def test_a_bad_value_for_early_starts(monkeypatch):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("kernels start early on sm_90 and later")
    monkeypatch.setenv("PTQ4ARVG_CUDA_PDL", "yes")
    with pytest.raises(ValueError, match="PTQ4ARVG_CUDA_PDL is 'yes'; wanted 1"):
        Case(1, 64, 64, 8, tokens=1).product("cuda", False)


@pytest.mark.parametrize("kernel", kernels())
def test_every_kernel_in_a_graph(kernel, monkeypatch):
    """Few tiles of great depth, which stream-K shares among blocks, through a workspace that each
    replay has to clear anew."""
    monkeypatch.setenv("PTQ4ARVG_CUDA_KERNEL", kernel)
    case = Case(31, 1024, 4096, 8, tokens=1)
    packed = ops.pack_weight(case.codes.cuda(), None, 8)
    a, a_scale, w_scale = case.a.cuda(), case.a_scale.cuda(), case.w_scale.cuda()
    with skipped_where_it_cannot_run():
        expected = ops.gemm(a, packed, a_scale, w_scale, tokens=1).cpu()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.gemm(a, packed, a_scale, w_scale, tokens=1)
    for _ in range(50):
        out.zero_()
        graph.replay()
        same(out, expected)


@pytest.mark.parametrize("size", [(3, 1024, 4096), (200, 1024, 4096)], ids=str)
def test_a_hundred_runs_are_equal(size):
    case = Case(*size, 4, tokens=1)
    first = case.product("cuda", False)
    assert all(torch.equal(case.product("cuda", False), first) for _ in range(100))


def test_the_bundled_model_runs_in_integers_on_the_device(tmp_path):
    import ptq4arvg

    model = ptq4arvg.load_model("var-tiny")
    rows = ptq4arvg.calibrate(model, samples=8, keep=4)
    ptq4arvg.quantize_(model, "W6A6", calibration=rows)
    logits = model.replay(rows.ids, rows.labels)
    model.save_pretrained(tmp_path / "q")
    loaded = ptq4arvg.load_quantized(tmp_path / "q", device="cuda")
    for moved in (loaded, model.to("cuda")):
        other = moved.replay(rows.ids.cuda(), rows.labels.cuda()).cpu()
        assert (other - logits).square().sum() < 1e-3 * logits.square().sum()
        assert moved.generate([3, 7]).shape == (2, 3, 32, 32)
    assert torch.equal(model.to("cpu").replay(rows.ids, rows.labels), logits)
