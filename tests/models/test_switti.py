"""Switti beyond what every family promises: prompts, scales apart, guidance, names, folding."""

import pytest
import torch
from torch.testing import assert_close

import ptq4arvg
from ptq4arvg.models import build_model, list_models, load_model, model_config
from ptq4arvg.models.loading import load_strict_
from ptq4arvg.models.switti import SwittiConfig
from tests.models.tiny import TINY

SCALES = (1, 4, 9)  # positions of each


def small(dtype=torch.float32, **more):
    config = TINY["switti"]
    transformer = {**config["transformer"], **more}
    return build_model("small", {**config, "transformer": transformer}, seed=0, dtype=dtype)


def prompts(model, count=4, seed=1):
    """(embeddings, pooled, mask) of ``count`` prompts, of different lengths; the last is empty."""
    c, g = model.config, torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, c.text_tokens, c.text_dim, generator=g)
    length = torch.tensor([*(2 + i % (c.text_tokens - 1) for i in range(count - 1)), 1])
    mask = torch.arange(c.text_tokens) < length[:, None]
    return embeddings, torch.randn(count, c.pooled_dim, generator=g), mask


@pytest.fixture(scope="module")
def model():
    made = small()
    made.set_prompts(*prompts(made))
    return made


def rows(model, n=3):
    ids = torch.randint(40, (n, model.tokens), generator=torch.Generator().manual_seed(3))
    return ids, torch.tensor([0, 1, model.null_label])[:n]


def test_sizes_are_those_published():
    models = {info.name: info for info in list_models() if info.family == "switti"}
    # Hugging Face counts 2.48 billion with the attention bias of 2240 * 2240 that we do not keep.
    assert models["switti-512"].parameters + 2240**2 == pytest.approx(2.48e9, abs=5e6)
    assert [(i.tokens, i.image_size) for i in models.values()] == [(2240, 512), (9451, 1024)]
    assert {info.licence for info in models.values()} == {"none stated"}
    with pytest.raises(ValueError, match=r"weights='Switti/model.safetensors', tokenizer='VQVAE-S"):
        load_model("switti-512")


def test_published_names_are_read(model):
    """gate_proj and up_proj apart, down_proj, and buffers that follow from the configuration."""
    source, other = small(num_classes=0), small(num_classes=0)
    state = {}
    for name, value in source.transformer.state_dict().items():
        stem = name.removesuffix("w13.weight")
        if stem != name:
            state[f"{stem}gate_proj.weight"], state[f"{stem}up_proj.weight"] = value.chunk(2)
        else:
            state[name.replace("w2.", "down_proj.")] = value.clone()
    assert {
        "word_embed.weight", "text_pooler.bias", "pos_start", "lvl_embed.weight", "head.weight",
        "crop_embed.weight", "crop_proj.weight", "head_nm.ada_lin.1.weight",
        "blocks.1.attn.to_qkv.bias", "blocks.1.cross_attn.to_kv.bias", "blocks.0.ada_lin.1.bias",
        "blocks.0.cross_attention_norm2.weight", "blocks.0.attention_y_norm.weight",
        "blocks.0.ffn.down_proj.weight", "blocks.0.crop_cond_scales",
    } <= state.keys()  # fmt: skip
    assert not any("prompts" in name or "norm1.bias" in name for name in state)
    state |= {"lvl_1L": torch.zeros(1, 14), "attn_bias_for_masking": torch.zeros(1, 1, 14, 14)}
    other.transformer.pos_start.zero_()
    load_strict_(other.transformer, state, "small")
    mine, theirs = source.transformer.state_dict(), other.transformer.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    del state["blocks.1.ffn.up_proj.weight"]
    with pytest.raises(ValueError, match=r"missing 'blocks\.1\.ffn\.up_proj\.weight'"):
        load_strict_(other.transformer, state, "small")


def test_heads_that_do_not_fit_the_width():
    with pytest.raises(ValueError, match=r"embed_dim is 48 with 8 heads; wanted a multiple of 8"):
        small(num_heads=8)
    with pytest.raises(ValueError, match=r"embed_dim is 36 with 3 heads; wanted a multiple of 8"):
        small(embed_dim=36, num_heads=3)


def test_a_table_of_prompts_is_the_classes(model):
    assert (model.num_classes, model.null_label) == (3, 3)
    assert model.architecture["transformer"]["num_classes"] == 3
    assert model.transformer.config is model.config
    images = model.generate([0, 1, 2], seed=5)
    assert images.shape == (3, 3, 6, 6)
    with pytest.raises(ValueError, match="label 3; wanted 0 to 2"):
        model.generate([3])


def test_without_prompts_nothing_runs_and_the_error_says_what_to_call():
    bare = small(num_classes=0)
    ids = torch.zeros(1, bare.tokens, dtype=torch.long)
    for run in (
        lambda: bare.generate([0]),
        lambda: bare.replay(ids, torch.tensor([0])),
        lambda: ptq4arvg.calibrate(bare, samples=2, keep=2),
    ):
        with pytest.raises(ValueError, match=r"there are no prompts; call model\.set_prompts\("):
            run()


def test_tables_that_do_not_fit():
    model = small()
    before = model.config
    text, pooled, mask = prompts(model)
    for wrong, message in [
        ((text[:, :5], pooled, mask), r"embeddings \[4, 5, 40\]; wanted \[prompts, 6, 40\]"),
        ((text, pooled[:3], mask), r"pooled \[3, 24\]; wanted \[prompts, 24\]"),
        ((text, pooled, mask[:, :2]), r"mask \[4, 2\]; wanted \[prompts, 6\]"),
        ((text[:1], pooled[:1], mask[:1]), r"embeddings \[1, 6, 40\].*at least two"),
        ((text, pooled, mask & (torch.arange(4) != 2)[:, None]), "mask of prompt 2 hides every"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.set_prompts(*wrong)
    assert model.config is before and model.num_classes == 5


def test_hidden_positions_are_not_read(model):
    text, pooled, mask = prompts(model)
    ids, labels = rows(model)
    want = model.replay(ids, labels)
    other = small()
    other.set_prompts(text + 9 * ~mask[..., None], pooled, mask)
    assert torch.equal(other.replay(ids, labels), want)
    # The same words shown in full are another prompt, and so is a word that changes.
    other.set_prompts(text, pooled)
    assert not torch.allclose(other.replay(ids, labels), want)
    text[0, 1] += 1
    other.set_prompts(text, pooled, mask)
    changed = other.replay(ids, labels)
    assert not torch.allclose(changed[0], want[0]) and torch.equal(changed[1:], want[1:])


def test_the_cross_attention_reads_the_words_alone(model):
    net = model.transformer
    _, _, words = prompts(model)
    assert torch.equal(net.prompts.mask, words)
    assert not net.prompts.embeddings[~words].any() and net.prompts.embeddings[words].any(1).all()
    cross, text = net.blocks[1].cross_attn, net.condition(torch.arange(4)).text[1]
    x = torch.randn(4, 9, 48, generator=torch.Generator().manual_seed(6))
    got = cross(x, *text)
    for i, length in enumerate(words.sum(1).tolist()):
        k, v = (part[i : i + 1, :, :length] for part in text[:2])
        assert_close(got[i : i + 1], cross(x[i : i + 1], k, v, None), atol=1e-6, rtol=1e-5)


def test_a_checkpoint_keeps_its_prompts(tmp_path):
    model = small()
    model.set_prompts(*prompts(model, count=3))
    ptq4arvg.quantize_(model, "W6A6", calibration=ptq4arvg.calibrate(model, samples=8, keep=4))
    model.save_pretrained(tmp_path / "saved")
    again = ptq4arvg.load_quantized(tmp_path / "saved")
    assert again.num_classes == 2
    assert torch.equal(again.transformer.prompts.mask, model.transformer.prompts.mask)
    ids, labels = rows(model)
    assert torch.equal(again.replay(ids, labels), model.replay(ids, labels))
    # Other prompts can take their places in a quantized model.
    again.set_prompts(*prompts(again, count=6, seed=2))
    assert again.generate([4], seed=1).isfinite().all()


def forced(model, ids, cfg=0.0, **options):
    """Logits of every scale while ``sample_ids`` is made to choose ``ids``."""
    seen = []

    def choose(logits, scale):
        seen.append(logits)
        return ids.split(SCALES, 1)[scale]

    labels = torch.arange(len(ids)) % model.num_classes
    assert torch.equal(model.sample_ids(labels, cfg=cfg, choose=choose, **options), ids)
    return torch.cat(seen, 1)


def test_decoding_step_by_step_equals_teacher_forcing(model):
    ids, _ = rows(model)
    conditional = model.replay(ids, torch.arange(3))
    assert_close(forced(model, ids), conditional, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guided", [0, 1, 2, 3])
def test_guidance_ends_after_the_guided_scales(model, guided):
    ids, _ = rows(model)
    c, u = model.replay(ids, torch.arange(3)), model.replay(ids, torch.full((3,), 3))
    widths = []
    handle = model.transformer.head.register_forward_pre_hook(
        lambda _module, args: widths.append(len(args[0]))
    )
    got = forced(model, ids, cfg=4.0, guided_scales=guided)
    handle.remove()
    strength = [4.0 * i / 2 if i < guided else 0.0 for i in range(3)]
    t = torch.tensor(strength).repeat_interleave(torch.tensor(SCALES))[None, :, None]
    assert_close(got, (1 + t) * c - t * u, atol=1e-4, rtol=1e-4)
    assert widths == [6 if i < guided else 3 for i in range(3)]


def test_guided_scales_that_do_not_exist(model):
    assert model.config.guided_scales == 2
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=rf"guided_scales is {wrong}; wanted 0 to 3, the num"):
            model.generate([0], guided_scales=wrong)
    with pytest.raises(ValueError, match=r"guided_scales is 1\.5; wanted a whole number"):
        model.generate([0], guided_scales=1.5)
    config = SwittiConfig(**model_config("switti-512")["transformer"])
    assert (config.guided_scales, len(config.patch_nums), config.sampling.cfg) == (8, 10, 6.0)


def test_scales_do_not_see_each_other(model):
    """Logits of a scale depend on earlier ids through its own input alone: with that input kept,
    what stands at other scales is without effect."""
    inputs = torch.randn(2, 13, 8, generator=torch.Generator().manual_seed(4))
    other = inputs.clone()
    other[:, :4] += 1  # the second scale's
    a, b = (model.transformer(torch.tensor([0, 2]), x) for x in (inputs, other))
    assert torch.equal(a[:, :1], b[:, :1]) and not torch.allclose(a[:, 1:5], b[:, 1:5])
    assert_close(a[:, 5:], b[:, 5:], atol=1e-6, rtol=1e-5)


def test_the_text_is_read_once_per_image(model):
    calls = []
    handles = [
        block.cross_attn.to_kv.register_forward_pre_hook(
            lambda _module, args: calls.append(tuple(args[0].shape))
        )
        for block in model.transformer.blocks
    ]
    model.sample_ids(torch.tensor([0, 1]))
    for handle in handles:
        handle.remove()
    assert calls == [(4, 6, 40)] * 2
    assert model.cursor_of("blocks.0.cross_attn.to_kv") is model.transformer.text_cursor
    assert model.cursor_of("blocks.0.cross_attn.to_q") is model.cursor
    specs = {spec.name: spec for spec in model.linears()}
    to_kv = specs["blocks.1.cross_attn.to_kv"]
    assert to_kv.groups == to_kv.scale_groups == to_kv.finest == (0, 1, 1, 1, 1, 1)
    assert specs["blocks.1.cross_attn.to_q"].groups == (0,) + (1,) * 4 + (2,) * 9


def test_rotary_positions_make_all_scales_equally_large():
    """The corner opposite to the origin turns alike in all scales; columns come first."""
    config = SwittiConfig(2, 2, 48, patch_nums=(1, 2, 5))
    one, two, five = config.rotation("cpu").split([1, 4, 25])
    assert torch.equal(one, torch.ones(1, 12, dtype=torch.complex64))
    assert_close(two[-1], five[-1])
    assert_close(five[4, :6], five[20, 6:])  # last column of the first row, last row of the first
    assert_close(five[4, 6:], torch.ones(6, dtype=torch.complex64))
    assert_close(two[1, 0].angle(), torch.tensor(128.0).sin().atan2(torch.tensor(128.0).cos()))


def test_crop_condition_moves_the_blocks_and_not_the_head(model):
    net = small(torch.float64).transformer
    net.crop_embed["weight"].copy_(torch.linspace(0.001, 0.002, 6))
    labels = torch.tensor([0, 1])
    before = net.condition(labels)
    net.blocks[1].crop_cond_scales.add_(1)
    after = net.condition(labels)
    same = [all(map(torch.equal, a, b)) for a, b in zip(before.modulations, after.modulations,
                                                        strict=True)]  # fmt: skip
    assert same == [True, False, True]
    angle = 2 * torch.pi * 512 * torch.linspace(0.001, 0.002, 6, dtype=torch.float64)
    features = torch.cat([
        angle.sin(), angle.cos(), angle.sin(), angle.cos(),
        *(torch.zeros(6), torch.ones(6)) * 2,
    ])  # fmt: skip
    condition = net.text_pooler(net.prompts(labels)[1]) + net.crop_proj(features) * (
        net.blocks[1].crop_cond_scales
    )
    want = net.blocks[1].ada_lin(condition).view(2, 1, 6, 48).unbind(2)
    for a, b in zip(after.modulations[1], want, strict=True):
        assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_crop_features_of_half_precision_weights_turn_in_single_precision():
    net, seen = small(torch.bfloat16).transformer, []
    weight = net.crop_embed["weight"]
    weight.copy_(torch.linspace(0.1, 0.9, 6))  # hundreds of turns, of which bfloat16 knows nothing
    net.crop_proj.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    net.condition(torch.tensor([0]))
    angle = 2 * torch.pi * 512 * weight.float()
    assert torch.equal(seen[0][:12], torch.cat([angle.sin(), angle.cos()]).bfloat16())


def test_what_does_not_fold(model):
    scale, shift = torch.ones(128), torch.ones(128)
    with pytest.raises(ValueError, match=r"'head_nm.ada_lin.1' cannot be folded: .*SiLU\(prompt\)"):
        model.fold_("head_nm.ada_lin.1", scale[:48], shift[:48])
    with pytest.raises(ValueError, match=r"'blocks.0.ffn.w2' takes a scale, but no shift"):
        model.fold_("blocks.0.ffn.w2", scale, shift)


@pytest.mark.parametrize("kind", ["attn.proj", "cross_attn.proj", "cross_attn.to_kv", "ffn.w2"])
def test_a_fold_makes_the_input_what_it_says(kind):
    model, name = small(torch.float64), f"blocks.1.{kind}"
    k = model.transformer.get_submodule(name).in_features
    scale = torch.linspace(0.5, 2.0, k, dtype=torch.float64)
    shift = torch.full_like(scale, kind != "ffn.w2")
    ids, labels = rows(model)
    seen = []
    model.transformer.get_submodule(name).register_forward_pre_hook(
        lambda _module, args: seen.append(args[0])
    )
    model.replay(ids, labels)
    model.fold_(name, scale, shift)
    model.replay(ids, labels)
    before, after = seen
    assert_close(after, before / scale - shift, atol=1e-12, rtol=1e-12)


def test_the_constant_goes_into_the_bias_of_the_modulation():
    model = small(torch.float64)
    ids, labels = rows(model)
    names = ("blocks.0.attn.to_qkv", "blocks.0.ffn.w13", "blocks.0.cross_attn.to_q", "head")
    for name in names:
        model.fold_(name, torch.full((48,), 2.0), torch.full((48,), 0.5))
    folded = model.replay(ids, labels)
    for name in names:
        model.absorb_constant_(name)
    block, head = model.transformer.blocks[0], model.transformer.head_nm.norm
    assert block.self_attention_norm1.constant is block.ffn_norm1.constant is head.constant is None
    assert_close(model.replay(ids, labels), folded, atol=1e-11, rtol=1e-11)


def test_quantized_attention_decodes_as_it_replays():
    """The keys of a step are those of its own scale, so its grids are, too."""
    model = small()
    calibration = ptq4arvg.calibrate(model, samples=8, keep=4)
    ptq4arvg.quantize_(model, "W8A8", calibration=calibration, attention="simulated", pack=False)
    ids, _ = rows(model)
    assert_close(forced(model, ids), model.replay(ids, torch.arange(3)), atol=1e-4, rtol=1e-4)


def test_half_precision():
    model = small(torch.bfloat16)
    model.set_prompts(*prompts(model))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.transformer.prompts.embeddings.dtype == torch.bfloat16
    assert model.transformer.prompts.mask.dtype == torch.bool
    assert model.generate([2]).isfinite().all()
