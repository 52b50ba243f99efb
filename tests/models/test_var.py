"""What the golden tensors of VAR do not reach: other configurations, and states of other files."""

import math

import pytest
import torch
from torch.testing import assert_close

from ptq4arvg.models import build_model
from tests.models.tiny import TINY


def build(**sizes):
    config = {**TINY["var"], "transformer": {**TINY["var"]["transformer"], **sizes}}
    return build_model("var-test", config, seed=0, dtype=torch.float64)


def test_attention_without_unit_lengths_is_scaled_by_a_constant():
    net = build(attn_l2_norm=False).transformer
    attention, mask = net.blocks[0].attn, net.mask
    x = torch.randn(2, 14, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    qkv = attention.mat_qkv(x).view(2, 14, 3, 2, 24)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, T, 3, H, d] -> 3 of [B, H, T, d]
    scores = q @ k.mT * 0.25 / math.sqrt(24)
    probabilities = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    wanted = (probabilities @ v).transpose(1, 2).flatten(2)  # [B, H, T, d] -> [B, T, C]
    assert_close(attention.attend(x, mask), wanted, atol=1e-12, rtol=1e-12)


def test_q_and_k_have_unit_length_unless_said_otherwise():
    assert build().transformer.blocks[0].attn.l2_norm


def test_a_state_as_it_is_published():
    net, other = (build().transformer for _ in range(2))
    state, bias = {}, torch.arange(144, dtype=torch.float64)
    for name, value in net.state_dict().items():
        if name.endswith("mat_qkv.bias"):
            block = name.removesuffix("mat_qkv.bias")
            state |= {f"{block}q_bias": bias[:48], f"{block}v_bias": bias[96:]}
            state[f"{block}zero_k_bias"] = torch.zeros(48)
        else:
            state[name] = value
    state |= {"lvl_1L": torch.zeros(1, 14), "attn_bias_for_masking": torch.zeros(1, 1, 14, 14)}
    other.load_state_dict(state)
    wanted = torch.cat([bias[:48], torch.zeros(48), bias[96:]])
    assert torch.equal(other.blocks[1].attn.mat_qkv.bias, wanted)


@pytest.mark.parametrize("shared", [False, True])
def test_which_positions_share_a_transform(shared):
    of_role = {spec.role: spec.groups for spec in build(shared_aln=shared).linears()}
    of_scale, first = (0, *(1,) * 4, *(2,) * 9), (0, *(1,) * 13)
    assert of_role == {
        "ada_lin": (0,), "qkv": of_scale, "proj": first, "fc1": of_scale, "fc2": first,
        "head_ada_lin": (0,), "head": (0,) * 14,
    }  # fmt: skip


def test_a_shared_modulation_has_no_constant_to_absorb():
    model = build(shared_aln=True)
    ids, labels = torch.arange(14)[None], torch.tensor([3])
    model.fold_("blocks.0.ffn.fc1", *torch.full((2, 48), 2.0))
    before = model.replay(ids, labels)
    model.absorb_constant_("blocks.0.ffn.fc1")
    assert torch.equal(model.replay(ids, labels), before)


def test_a_model_of_one_scale_is_sampled_without_guidance():
    sides = {"patch_nums": [3]}
    parts = {part: {**TINY["var"][part], **sides} for part in ("transformer", "tokenizer")}
    model = build_model("var-test", {**TINY["var"], **parts}, seed=0)
    labels, seen = torch.tensor([3, 1]), []

    def choose(logits, scale):
        seen.append(logits)
        return logits.argmax(-1)

    model.sample_ids(labels, cfg=4.0, choose=choose)
    first = model.replay(torch.zeros(2, 9, dtype=torch.long), labels)
    assert_close(seen, [first], atol=1e-5, rtol=1e-5)
