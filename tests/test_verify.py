"""The check of the integer path finds layers that compute something else."""

import pytest
import torch
from torch import nn

from ptq4arvg import ops, verify
from ptq4arvg.nn import Cursor, IntAttention, PackedLinear, Prologue
from ptq4arvg.numerics import LinearQuantization, affine_grid, quantize_weight
from ptq4arvg.verify import check_integer_path


def linear(cursor, w_bits=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    codes, w_scale, w_zero = quantize_weight(torch.randn(8, 8, generator=g), w_bits)
    scale, zero = affine_grid(torch.tensor([-3.0]), torch.tensor([3.0]), 6)
    group = torch.zeros(5, dtype=torch.int64)
    q = LinearQuantization(codes, w_scale, w_zero, None, scale, zero, group, w_bits, 6)
    return PackedLinear(q, cursor)


class Model(nn.Module):
    def __init__(self, *layers, visits=1):
        super().__init__()
        self.often = visits
        self.cursor = Cursor()
        self.transformer = nn.Sequential(*(make(self.cursor) for make in layers))
        self.tokenizer = nn.Module()
        self.tokenizer.decoder = nn.Identity()

    def visits(self, name):
        return self.often

    def replay(self, ids, labels):
        self.cursor.set(0, 5)
        x = torch.randn(len(ids), 5, 8, generator=torch.Generator().manual_seed(0))
        for _ in range(self.often):
            x = self.transformer(x)
        return x


ROWS = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)


def test_right_layers_pass():
    checks = check_integer_path(Model(linear, lambda c: nn.ReLU(), linear), *ROWS)
    assert [check.name for check in checks] == ["0", "2"]
    assert all(check.passed for check in checks)
    assert all(check.kernel.startswith("gemm.w6") for check in checks)


@pytest.mark.parametrize(("room", "unpacked"), [(2**20, [1, 1]), (8 * 8 * 8, [1, 3]), (0, [3, 3])])
def test_layers_that_run_often_are_unpacked_once_as_far_as_there_is_room(
    monkeypatch, room, unpacked
):
    monkeypatch.setattr(verify, "KEPT", room)
    model = Model(linear, linear, visits=3)
    counts = [0, 0]
    for i, module in enumerate(model.transformer):
        plain = module.canonical

        def canonical(i=i, plain=plain):
            counts[i] += 1
            return plain()

        monkeypatch.setattr(module, "canonical", canonical)
    assert all(check.passed for check in check_integer_path(model, *ROWS))
    assert counts == unpacked


def test_a_wrong_layer_is_found():
    model = Model(linear, linear)
    wrong = model.transformer[1]
    wrong.register_forward_hook(lambda module, args, output: output * 1.001)
    checks = check_integer_path(model, *ROWS)
    assert [check.passed for check in checks] == [True, False]


class Attention(nn.Module):
    """One head of 8 channels, of which q, k and v are the same; ``whole``: from one linear."""

    def __init__(self, whole):
        super().__init__()
        scale = torch.full((1, 8), 0.03)
        self.core, self.whole = IntAttention(scale, scale, scale, -scale), whole

    def forward(self, x):
        if self.whole:
            return self.core.attend(torch.stack([x, x, x], 2)[:, :, :, None], Prologue("rms"))
        x = x[:, None]  # [B, 1, t, d]
        return self.core(x, x, x)[:, 0]


@pytest.mark.parametrize("spoiled", ["", "q", "k", "v", "attention"])
@pytest.mark.parametrize("whole", [False, True])
def test_attention_in_integers_has_to_be_equal(monkeypatch, whole, spoiled):
    store = "store_qkv" if whole else "store_kv"
    right = {name: getattr(ops, name) for name in (store, "attention")}

    def attention(*args, **options):
        y = right["attention"](*args, **options)
        return y * (1 + 2**-22) if spoiled == "attention" else y

    def stored(*args, **options):
        q = right[store](*args, **options)
        if spoiled in ("k", "v"):
            args[(1 if whole else 2) + (spoiled == "v")].view(-1)[0] += 1
        return q * (1 + 2**-22) if spoiled == "q" and whole else q

    monkeypatch.setattr(ops, "attention", attention)
    monkeypatch.setattr(ops, store, stored)
    model = Model(linear, lambda _cursor: Attention(whole))
    core = model.transformer[1].core
    checks = check_integer_path(model, *ROWS)
    assert core.operators is ops
    assert [check.name for check in checks] == ["0", "1.core"]
    wrong = spoiled not in ("", "" if whole else "q")
    assert [check.passed for check in checks] == [True, not wrong]
    kernel = "store_kv." if wrong and spoiled != "attention" else "attention."
    assert checks[1].kernel.startswith(kernel)


def test_a_float_model_is_an_error():
    with pytest.raises(ValueError, match="no integer linears"):
        check_integer_path(Model(lambda c: nn.ReLU()), *ROWS)


@pytest.mark.parametrize("spoiled", [float("inf"), float("nan")])
def test_an_output_that_is_not_finite_fails(spoiled):
    model = Model(linear, linear)
    model.transformer[1].register_forward_hook(lambda _m, _args, output: output + spoiled)
    checks = check_integer_path(model, *ROWS)
    assert [check.passed for check in checks] == [True, False]
    assert checks[1].error == float("inf")


def test_outputs_of_nothing_but_zeros_pass():
    model = Model(linear)
    model.transformer[0].register_forward_pre_hook(lambda _m, args: torch.zeros_like(args[0]))
    (check,) = check_integer_path(model, *ROWS)
    assert check.passed and check.error == 0


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_layer_that_runs_more_than_once_keeps_its_worst(wrong):
    model, runs = Model(linear, visits=3), []

    def spoil(_module, _args, output):
        runs.append(len(runs))
        return output * 1.001 if runs[-1] == wrong else output

    model.transformer[0].register_forward_hook(spoil)
    (check,) = check_integer_path(model, *ROWS)
    assert runs == [0, 1, 2] and not check.passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bound_has_room_for_the_type_of_the_output(dtype):
    model = Model(linear)
    model.transformer[0].register_forward_pre_hook(lambda _m, args: args[0].to(dtype))
    (check,) = check_integer_path(model, *ROWS)
    assert check.passed and check.bound == verify.BOUND + torch.finfo(dtype).eps


@pytest.mark.parametrize("fused", [0, 1])
def test_fused_layers_are_an_error_and_no_hook_stays(fused):
    """The first gives codes, or the second reads some."""
    model = Model(linear, linear)
    first, second = model.transformer
    if fused:
        second.register_forward_pre_hook(lambda _m, args: second.quantize(args[0]))
    else:
        first.fuse("none", second)
    hooks = [list(module._forward_hooks) for module in model.transformer]
    with pytest.raises(ValueError, match=rf": {fused} is fused; call fuse\.unfuse_ first"):
        check_integer_path(model, *ROWS)
    assert [list(module._forward_hooks) for module in model.transformer] == hooks


def test_a_layer_that_does_not_run_is_an_error():
    class Idle(nn.Module):
        def __init__(self, cursor):
            super().__init__()
            self.linear = linear(cursor)

        def forward(self, x):
            return x

    with pytest.raises(RuntimeError, match=r"these layers did not run: 1\.linear$"):
        check_integer_path(Model(linear, Idle), *ROWS)
