"""Switti: prompts, attention within a scale and to the text, decoding, published names."""

import math

import pytest
import torch
from torch.testing import assert_close

from ptq4arvg.models import build_model, list_models, load_model
from ptq4arvg.models.loading import load_strict_
from ptq4arvg.models.switti import FFN_NAMES, SwittiConfig
from tests.models.tiny import TINY

SIDES = TINY["switti"]["transformer"]["patch_nums"]


@pytest.fixture
def model():
    return build_model("switti-test", TINY["switti"], seed=0, dtype=torch.float64)


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_scale_after_scale_gives_the_logits_of_teacher_forcing(model):
    seen = []

    def greedy(logits, _scale):
        seen.append(logits)
        return logits.argmax(-1)

    labels = torch.tensor([0, 3])
    ids = model.sample_ids(labels, cfg=2.0, choose=greedy)
    parts = [
        logits.split([p * p for p in SIDES], 1)
        for logits in (
            model.replay(ids, labels),
            model.replay(ids, torch.full_like(labels, model.null_label)),
        )
    ]
    strength = [0.0, 1.0, 0.0]  # 2 s / 2 at scale s, and none at the last, unguided one
    for scale, t in enumerate(strength):
        conditional, empty = (part[scale] for part in parts)
        assert_close(seen[scale], (1 + t) * conditional - t * empty, atol=1e-10, rtol=1e-10)


@torch.inference_mode()
def test_a_position_sees_its_own_scale_and_the_text_only(model):
    inputs = seeded(1, 13, 8).double()  # scales of 4 and 9 positions
    labels = torch.tensor([1])
    before = model.transformer(labels, inputs)
    inputs[:, 2] += 1  # at the second scale
    after = model.transformer(labels, inputs)
    changed = (after != before).any(2)[0]
    assert changed.tolist() == [False] + [True] * 4 + [False] * 9


@torch.inference_mode()
def test_padding_is_not_read_and_words_are(model):
    net, ids = model.transformer, torch.zeros(1, 14, dtype=torch.long)
    label = int(net.prompt_mask[:-1].sum(1).argmin())  # the shortest
    words = int(net.prompt_mask[label].sum())
    assert 2 <= words < 6
    labels = torch.tensor([label])
    before = model.replay(ids, labels)
    net.prompt_states[label, words:] += 5
    assert torch.equal(model.replay(ids, labels), before)
    net.prompt_states[label, words - 1] += 5
    assert not torch.equal(model.replay(ids, labels), before)


def test_rotations_spread_every_scale_over_the_same_range(model):
    turns = model.transformer.rotations()[:, 0, 0]  # [T, d / 2]
    assert_close(turns.abs(), torch.ones(14, 12))
    corner = torch.polar(torch.tensor(1.0), torch.tensor(128.0))  # at frequency one
    assert torch.equal(turns[0], torch.ones(12, dtype=turns.dtype))
    for last in (4, 13):  # bottom right of the second and third scale
        assert_close(turns[last, [0, 6]], corner.expand(2), atol=1e-4, rtol=0)
    right_of_origin = turns[2]  # row 0, column 1 of the second scale: only columns turn
    assert torch.equal(right_of_origin[6:], torch.ones(6, dtype=turns.dtype))


def test_prompts_are_taken_as_given(model):
    states, pooled = seeded(3, 6, 40), seeded(3, 24)
    mask = torch.ones(3, 6)
    model.set_prompts(states, pooled, mask)
    assert model.num_classes == 2 and model.null_label == 2
    assert model.transformer.prompt_states.dtype == torch.float64
    assert model.transformer.prompt_mask.dtype == torch.bool
    assert not any("prompt" in name for name in model.state_dict()), "prompts are inputs"
    images = model.generate([0, 1], seed=1)
    assert images.shape == (2, 3, 6, 6)
    model.set_prompts(-states, pooled, mask)
    assert not torch.equal(model.generate([0, 1], seed=1), images)


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (((3, 5, 40), (3, 24), (3, 6)), r"states are \[3, 5, 40\]; wanted \[3, 6, 40\]"),
        (((3, 6, 40), (2, 24), (3, 6)), r"pooled are \[2, 24\]; wanted \[3, 24\]"),
        (((3, 6, 40), (3, 24), (3, 7)), r"mask are \[3, 7\]; wanted \[3, 6\]"),
    ],
    ids=["states", "pooled", "mask"],
)
def test_prompts_of_another_size(model, shapes, match):
    with pytest.raises(ValueError, match=match):
        model.set_prompts(*(torch.ones(shape) for shape in shapes))


def test_a_prompt_without_words(model):
    mask = torch.ones(3, 6)
    mask[1] = 0
    with pytest.raises(ValueError, match="a prompt has no token"):
        model.set_prompts(seeded(3, 6, 40), seeded(3, 24), mask)


def test_a_model_without_prompts_says_so():
    config = {**TINY["switti"]["transformer"], "stand_in_prompts": 0}
    model = build_model("switti-test", {**TINY["switti"], "transformer": config}, seed=0)
    assert model.num_classes == 0
    with pytest.raises(ValueError, match="the model has 0 classes"):
        model.generate([0])


def test_published_names(model):
    """Files hold the gated feed-forward in three parts, and buffers that follow from the sizes."""
    state, published = model.transformer.state_dict(), {}
    gate, up, down = FFN_NAMES
    for name, value in state.items():
        if name.endswith("w13.weight"):
            stem = name.removesuffix("w13.weight")
            published[f"{stem}{gate}.weight"], published[f"{stem}{up}.weight"] = value.chunk(2)
        else:
            published[name.replace("ffn.w2.", f"ffn.{down}.")] = value
    published |= {"lvl_1L": torch.zeros(1, 14), "attn_bias_for_masking": torch.zeros(1, 1, 14, 14)}
    other = build_model("switti-test", TINY["switti"], seed=1, dtype=torch.float64)
    load_strict_(other.transformer, published, "switti")
    assert all(torch.equal(v, state[n]) for n, v in other.transformer.state_dict().items())


def test_the_published_size():
    info = {m.name: m for m in list_models()}["switti"]
    assert info.parameters / 1e9 == pytest.approx(2.5, rel=0.05)  # sec. 4 of the paper
    assert (info.tokens, info.image_size) == (2240, 512)
    with pytest.raises(ValueError, match="switti is not bundled: give weights"):
        load_model("switti")
    with pytest.raises(ValueError, match="embed_dim is 50 for 2 heads; wanted a multiple of 8"):
        SwittiConfig(depth=1, num_heads=2, embed_dim=50)


def test_crops_are_told_in_pixels(model):
    net = model.transformer
    with torch.no_grad():
        net.crop_embed.weight.fill_(1 / 2048)
    made = net.crop_embed(torch.tensor([512.0, 1024.0, 0.0, 0.0], dtype=torch.float64))
    width = 48 // 8
    wanted = [1.0, 0.0, 0.0, -1.0, 0.0, 1.0, 0.0, 1.0]  # sine, cosine of each: 1/4, 1/2, 0, 0 turns
    assert_close(made[0, ::width], torch.tensor(wanted, dtype=torch.float64), atol=1e-12, rtol=0)
    assert math.isclose(made.abs().max().item(), 1.0)
