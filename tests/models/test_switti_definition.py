"""Switti's logits by the architecture's equations, from a state dict of random values alone."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from ptq4arvg.models import build_model
from tests.models.tiny import TINY

C, HEADS, SIDES = 48, 2, (1, 2, 3)
SIZE = C // HEADS  # channels of a head


@pytest.fixture(scope="module")
def model():
    made = build_model("switti-test", TINY["switti"], seed=0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    for name, value in made.transformer.named_parameters():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        # Norms around one, crop frequencies as small as published; q and k so small that the
        # epsilon of their norms matters.
        small = name.startswith("crop_embed") or "attn.to_" in name
        spread = 1e-3 if small else 0.3 if value.dim() == 1 else 0.15
        value.data = noise * spread + ("norm" in name and name.endswith(".weight"))
    return made


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def normal(x):
    return F.layer_norm(x, (C,), eps=1e-6)


def heads(x):
    return x.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)  # [B, t, C] -> [B, H, t, d]


def turned(x):
    """Rotary embedding: pairs of neighbouring channels turn, half of them with the column."""
    quarter = SIZE // 4
    angles = []
    for side in SIDES:
        unit = 128 / max(side - 1, 1)
        frequency = [unit / 10000 ** (4 * i / SIZE) for i in range(quarter)]
        angles += [
            [f * column for f in frequency] + [f * row for f in frequency]
            for row in range(side) for column in range(side)
        ]  # fmt: skip
    # The factors are complex64, so that is how far angles are exact.
    angle = torch.tensor(angles).double()
    even, odd = x[..., ::2], x[..., 1::2]
    a, b = even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()
    return torch.stack([a, b], -1).flatten(-2)


def attention(q, k, v, seen):
    scores = (q @ k.mT / math.sqrt(SIZE)).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)  # [B, H, t, d] -> [B, t, C]


def logits(state, words, pooled, mask, inputs):
    """words [B, L, text], pooled [B, P], mask [B, L]; inputs of the later scales -> [B, T, V]."""

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    scale = torch.cat([torch.full((side * side,), i) for i, side in enumerate(SIDES)])
    own = scale[:, None] == scale  # a position sees its own scale
    prompt = linear("text_pooler", pooled)
    turns = [2 * math.pi * size * state["crop_embed.weight"] for size in (512.0, 512.0, 0.0, 0.0)]
    crop = linear("crop_proj", torch.cat([part for t in turns for part in (t.sin(), t.cos())]))
    x = torch.cat([prompt[:, None] + state["pos_start"], linear("word_embed", inputs)], 1)
    x = x + state["lvl_embed.weight"][scale]
    for b in ("blocks.0", "blocks.1"):

        def norm(part, x, b=b):
            return rms(x, state[f"{b}.{part}.weight"])

        condition = F.silu(prompt + state[f"{b}.crop_cond_scales"] * crop)
        six = linear(f"{b}.ada_lin.1", condition).unflatten(-1, (6, C))[:, :, None]  # [B, 6, 1, C]
        gate1, gate2, scale1, scale2, shift1, shift2 = six.unbind(1)
        # Attention within the scale.
        y = norm("self_attention_norm1", x) * (1 + scale1) + shift1
        q, k, v = linear(f"{b}.attn.to_qkv", y).chunk(3, -1)
        q, k = (turned(heads(normal(part))) for part in (q, k))
        y = linear(f"{b}.attn.proj", attention(q, k, heads(v), own))
        x = x + norm("self_attention_norm2", y) * gate1
        # The prompt's words.
        q = linear(f"{b}.cross_attn.to_q", norm("cross_attention_norm1", x))
        k, v = linear(f"{b}.cross_attn.to_kv", norm("attention_y_norm", words)).chunk(2, -1)
        q, k = (heads(normal(part)) for part in (q, k))
        read = attention(q, k, heads(v), mask[:, None, None])
        x = x + norm("cross_attention_norm2", linear(f"{b}.cross_attn.proj", read))
        # The feed-forward.
        y = norm("ffn_norm1", x) * (1 + scale2) + shift2
        gate, value = linear(f"{b}.ffn.w13", y).chunk(2, -1)
        y = linear(f"{b}.ffn.w2", F.silu(gate) * value)
        x = x + norm("ffn_norm2", y) * gate2
    two = linear("head_nm.ada_lin.1", F.silu(prompt)).unflatten(-1, (2, C))[:, :, None]
    y = normal(x) * (1 + two[:, 0]) + two[:, 1]
    return linear("head", y)


def test_logits(model):
    net, generator = model.transformer, torch.Generator().manual_seed(3)
    inputs = torch.randn(3, 13, 8, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 4, model.null_label])
    words, pooled, mask = net.prompts(labels)
    wanted = logits(net.state_dict(), words, pooled, mask, inputs)
    assert wanted.std() > 0.1
    # Rotary factors are complex64.
    assert_close(net(labels, inputs), wanted, atol=1e-6, rtol=1e-6)
