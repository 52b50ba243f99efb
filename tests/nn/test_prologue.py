"""What comes before attention: by PyTorch's functions and by the operator."""

import pytest
import torch

from ptq4arvg import ops
from ptq4arvg.nn import Prologue
from ptq4arvg.nn.prologue import rotate
from ptq4arvg.reference_attention import HEAD_NORMS

B, T, H, D = 2, 7, 3, 20


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prologue(norm, rotation=True, **changes):
    turns = torch.polar(torch.ones(T, 1, 1, D // 2), 3 * random(T, 1, 1, D // 2))
    steps = {
        "eps": 1e-6, "rotation": turns if rotation else None, "q_factors": random(H, seed=1),
        "q_weight": random(D, seed=2), "q_bias": random(D, seed=3),
        "k_weight": random(D, seed=4), "k_bias": random(D, seed=5),
    }  # fmt: skip
    return Prologue(norm, **{**steps, **changes})


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("norm", HEAD_NORMS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_weight": None, "k_bias": None, "q_factors": None, "q_factor": 0.25},
        {"q_weight": None, "q_bias": None, "k_weight": None, "k_bias": None, "q_factors": None},
        {"k_weight": None, "k_bias": None},
    ],
)
def test_both_do_the_same(norm, rotation, changes):
    """Float32 by another order of steps: within some of its roundings."""
    qkv, how = random(B, T, 3, H, D, seed=6), prologue(norm, rotation, **changes)
    q, k, v = how.split(qkv)
    assert q.shape == k.shape == v.shape == (B, H, T, D)
    assert torch.equal(v, qkv[:, :, 2].transpose(1, 2))
    scale = (k.abs().max() / 120).expand(H, D)
    cache = ops.empty_kv_cache(B, H, T, D)
    zero, ones = torch.zeros(H, D), torch.ones(H, D)
    found = ops.store_qkv(qkv, *cache, scale, zero, ones, zero, **how.arguments())
    bound = 2e-6 * q.abs().max()
    assert (found.transpose(1, 2) - q).abs().max() < bound
    codes = ops.unpack_kv(*cache)[0][:, :, :T]
    assert (codes - k / scale[0, 0]).abs().max() < 0.5 + 1e-3


def test_double_precision_is_kept():
    x, turns = random(B, T, 2, H, D).double() / 3, prologue("none").rotation.cdouble()
    cosine, sine = (t[..., 0, :] for t in (turns.real, turns.imag))  # [T, 1, D / 2]
    a, b = x[..., ::2], x[..., 1::2]
    cosine, sine = cosine[:, None], sine[:, None]  # [T, 1, 1, D / 2]
    expected = torch.stack([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2)
    torch.testing.assert_close(rotate(x, turns), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("norm", HEAD_NORMS)
def test_in_place_is_the_same_but_for_what_was_there(norm, rotation):
    qkv, how = random(B, T, 3, H, D, seed=6), prologue(norm, rotation)
    expected = how.split(qkv)
    with torch.no_grad():
        found = how.split(qkv.clone(), in_place=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_is_written_over_where_a_gradient_is_wanted():
    qkv = random(B, T, 3, H, D).requires_grad_()
    before = qkv.detach().clone()
    how = Prologue("l2", q_factor=2.0)
    q, _, _ = how.split(qkv, in_place=True)
    q.sum().backward()
    assert torch.equal(qkv.detach(), before) and qkv.grad[:, :, 0].abs().max() > 0


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm is 'lyer'; wanted one of none, l2, layer, rms"):
        Prologue("lyer")
