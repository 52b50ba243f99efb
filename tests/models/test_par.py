"""PAR and LlamaGen beyond the records: sizes, loading, sampling, folding, half precision."""

import pytest
import torch
from torch import nn

from ptq4arvg.models import list_models, model_config
from ptq4arvg.models.loading import load_strict_
from ptq4arvg.models.par import PARConfig
from ptq4arvg.models.registry import build_model
from ptq4arvg.models.stress import stress_
from tests.par_cases import find_par_cases, small_model

# Parameters that the authors give (LlamaGen, table 1; PAR, table 1), in millions.
PUBLISHED = {
    "llamagen-b": 111, "llamagen-l": 343, "llamagen-xl": 775, "llamagen-xxl": 1400,
    "llamagen-3b": 3100, "par-xl-4x": 775, "par-xxl-4x": 1400, "par-3b-4x": 3100,
    "par-3b-16x": 3100,
}  # fmt: skip
# One token at a time, four, sixteen; heads of 20 and of 100 channels, neither a multiple of 8.
SHAPES = {
    "one": {},
    "four": {"parallel": 4, "grid": 6},
    "sixteen": {"parallel": 16, "grid": 8},
    "wide heads": {"parallel": 4, "embed_dim": 200},
}
BUILDERS = {
    **{name: lambda s=shape: small_model(**s).double() for name, shape in SHAPES.items()},
    **{case.name: lambda c=case: c.build(torch.float64) for case in find_par_cases()},
}


@pytest.fixture(params=SHAPES, scope="module")
def model(request):
    return small_model(**SHAPES[request.param])


@pytest.fixture(params=BUILDERS)
def build(request):
    """A function that builds a float64 model."""
    return BUILDERS[request.param]


def inputs(model, rows=3):
    generator = torch.Generator().manual_seed(3)
    vocabulary = model.config.vocab_size
    ids = torch.randint(vocabulary, (rows, model.tokens), generator=generator)
    return ids, torch.arange(rows) * model.null_label // (rows - 1)


def test_sizes_are_those_published():
    models = {info.name: info for info in list_models()}
    for name, millions in PUBLISHED.items():
        info = models[name]
        assert info.parameters / 1e6 == pytest.approx(millions, rel=0.02), name
        assert (info.tokens, info.image_size, info.licence) == (576, 384, "MIT")
        assert info.weights.endswith(".pt, vq_ds16_c2i.pt")
        parallel = int(name[name.rindex("-") + 1 : -1]) if name.endswith("x") else 1
        assert model_config(name)["transformer"]["parallel"] == parallel


def test_settings_are_those_published():
    """Guidance for the published figures; the constants of norms and of rotary positions."""
    guidance = {"par-xl-4x": 1.5, "par-xxl-4x": 1.435, "par-3b-4x": 1.345, "par-3b-16x": 1.5,
                "llamagen-b": 2.0, "llamagen-l": 2.0, "llamagen-xl": 1.75, "llamagen-xxl": 1.75,
                "llamagen-3b": 1.65}  # fmt: skip
    assert guidance.keys() == PUBLISHED.keys()
    for name, cfg in guidance.items():
        c = PARConfig(**model_config(name)["transformer"])
        assert (c.sampling["cfg"], c.norm_eps, c.rope_base) == (cfg, 1e-5, 10000.0), name


def test_linears_cover_every_matrix_product(model):
    specs = {spec.name: spec for spec in model.linears()}
    linears = {n for n, m in model.transformer.named_modules() if isinstance(m, nn.Linear)}
    assert set(specs) == linears
    for spec in specs.values():
        assert len(spec.groups) == len(spec.scale_groups) == model.tokens
        for groups in (spec.groups, spec.scale_groups):  # numbered without a gap
            assert set(groups) == set(range(max(groups) + 1))
        assert spec.sink == tuple(range(2 * model.config.parallel))


def test_groups_of_positions():
    spec = small_model(parallel=4, grid=6).linears()[0]
    assert spec.groups == (0, 1, 2, 3) + (4,) * 4 + (5,) * 28
    assert spec.scale_groups == (0, 1, 1, 1) + (2,) * 4 + (3,) * 8 + (4,) * 12 + (5,) * 8
    single = small_model().linears()[0]
    assert single.groups == (0, 1) + (2,) * 14
    assert single.scale_groups == (0,) + (1,) * 4 + (2,) * 4 + (3,) * 4 + (4,) * 3


@pytest.mark.parametrize("parallel", [0, -4, 2, 9, 16, 64])
def test_parallel_tokens_that_do_not_fit_the_grid(parallel):
    wanted = rf"parallel is {parallel} on a grid of 4; wanted a square number"
    with pytest.raises(ValueError, match=wanted):
        small_model(parallel=parallel)


def test_heads_that_do_not_fit_the_width():
    with pytest.raises(ValueError, match=r"embed_dim is 40; wanted a multiple of 3, the number"):
        small_model(num_heads=3)
    with pytest.raises(ValueError, match=r"dimension of a head is 10; wanted a multiple of 4"):
        small_model(num_heads=4)


def published_state(model):
    """Weights as published files have them: w1 and w3 apart, with left-overs of decoding."""
    state = {}
    for name, value in model.transformer.state_dict().items():
        if name.endswith("w13.weight"):
            stem = name.removesuffix("w13.weight")
            state[f"{stem}w1.weight"], state[f"{stem}w3.weight"] = value.chunk(2)
        else:
            state[name] = value.clone()
    state["layers.0.attention.kv_cache.k_cache"] = torch.zeros(2, 2, 8, 20)
    state["layers.0.attention.kv_cache.v_cache"] = torch.zeros(2, 2, 8, 20)
    state["freqs_cis"] = torch.zeros(17, 10, 2)
    state["causal_mask"] = state["group_mask"] = torch.ones(17, 17, dtype=torch.bool)
    return state


def test_published_names_are_read(model):
    other = small_model(seed=2, **{f: getattr(model.config, f) for f in
                                   ("parallel", "grid", "embed_dim")})  # fmt: skip
    load_strict_(other.transformer, published_state(model), "golden")
    for name, value in model.transformer.state_dict().items():
        assert torch.equal(other.transformer.state_dict()[name], value), name


def test_published_names_are_checked():
    model = small_model()
    state = published_state(model)
    name = "layers.1.feed_forward.w3.weight"
    lost = {key: value for key, value in state.items() if key != name}
    with pytest.raises(ValueError, match=f"missing '{name}'"):
        load_strict_(model.transformer, lost, "golden")
    with pytest.raises(ValueError, match=rf"{name} is \[3, 40\], wanted \[64, 40\]"):
        load_strict_(model.transformer, {**state, name: state[name][:3]}, "golden")


def test_cached_decoding_equals_teacher_forcing(model):
    ids, labels = inputs(model)
    labels = labels.clamp_max(model.num_classes - 1)
    raster, seen = model.config.order.raster(), []
    parts = iter(ids[:, raster].split(model.config.order.steps, 1))

    def forced(logits, _step):
        seen.append(logits)
        return next(parts)

    assert torch.equal(model.sample_ids(labels, cfg=1, choose=forced), ids)
    replayed = model.replay(ids, labels)[:, raster]
    torch.testing.assert_close(torch.cat(seen, 1), replayed, atol=1e-5, rtol=1e-5)


def test_one_token_at_a_time_is_plain_raster_order():
    model = small_model()
    assert model.config.order.raster().tolist() == list(range(16))
    assert model.config.order.steps == [1] * 16
    assert torch.equal(model.transformer.mask(16), torch.ones(16, 16).tril().bool())
    assert not any("special" in name for name in model.transformer.state_dict())


def test_later_tokens_have_no_influence(model):
    ids, labels = inputs(model)
    before, order = model.replay(ids, labels), model.config.order
    at, step = order.tokens // 2, order.step(order.tokens)
    raster = order.raster()
    changed = ids.clone()
    changed[:, raster[at]] = (ids[:, raster[at]] + 1) % model.config.vocab_size
    moved = (model.replay(changed, labels) - before).abs().amax((0, 2))[raster] > 0
    # Token j is read at the position that is `parallel` later, by all of that step.
    assert torch.equal(moved, step >= step[at] + 1)


def test_an_image_depends_on_its_index_only(model):
    labels = torch.tensor([3, 0, 4, 1, 1, 2])
    together = model.sample_ids(labels, seed=9)
    for first, count in ((0, 1), (2, 3), (5, 1)):
        part = labels[first : first + count]
        assert torch.equal(
            model.sample_ids(part, seed=9, index=first), together[first : first + count]
        )
    assert not torch.equal(model.sample_ids(labels, seed=10), together)


def test_guidance_of_one_and_less_is_none(model):
    rows = []
    handle = model.transformer.output.register_forward_hook(
        lambda _m, _a, logits: rows.append(len(logits))
    )
    labels = torch.tensor([3, 0])
    first, second = (model.sample_ids(labels, cfg=cfg) for cfg in (0, 1))
    assert torch.equal(first, second) and set(rows) == {2}
    guided = model.sample_ids(labels, cfg=3)
    assert set(rows) == {2, 4} and not torch.equal(guided, first)
    handle.remove()


def test_images_and_labels(model):
    images = model.generate([1, 4], seed=0)
    side = model.tokenizer.config.image_size
    assert images.shape == (2, 3, side, side) and images.min() >= 0 and images.max() <= 1
    with pytest.raises(ValueError, match=r"small: label 5; wanted 0 to 4"):
        model.generate([5])


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_cache_is_gone(model, interrupted):
    def stop(logits, step):
        if interrupted and step == 2:
            raise KeyboardInterrupt
        return logits.argmax(-1)

    try:
        model.sample_ids(torch.tensor([1]), choose=stop)
    except KeyboardInterrupt:
        assert interrupted
    else:
        assert not interrupted
    assert all(block.attention.cache is None for block in model.transformer.layers)


def test_half_precision(model):
    half = small_model(**{f: getattr(model.config, f) for f in ("parallel", "grid", "embed_dim")})
    half.to(torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.transformer.rotation, model.transformer.rotation)  # not rounded
    ids, labels = inputs(model)
    wanted = model.replay(ids, labels)
    assert (half.replay(ids, labels) - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert half.sample_ids(labels[:2]).shape == (2, model.tokens)


def transform(spec, linear, generator):
    scale = torch.randn(linear.in_features, generator=generator, dtype=torch.float64).exp()
    shift = torch.randn(linear.in_features, generator=generator, dtype=torch.float64)
    return scale, shift * spec.shift


def fold_and_compensate(model, spec, generator):
    """Fold a random transform; the linear undoes what its input went through. Returns it."""
    linear = model.transformer.get_submodule(spec.name)
    scale, shift = transform(spec, linear, generator)
    model.fold_(spec.name, scale, shift)
    linear.weight.data *= scale
    bias = linear.weight @ shift
    linear.bias = nn.Parameter(bias if linear.bias is None else linear.bias + bias)
    return scale, shift


def test_the_function_stays_whatever_is_folded(build):
    model, plain = build(), build()
    ids, labels = inputs(model)
    before = model.replay(ids, labels)
    generator = torch.Generator().manual_seed(0)
    specs = model.linears()
    order = torch.randperm(len(specs), generator=generator).tolist()
    with torch.no_grad():
        for i in [*order, *order[:3]]:  # any order, some twice
            fold_and_compensate(model, specs[i], generator)
        after = model.replay(ids, labels)
    assert (after - before).abs().max() < 1e-10 * before.abs().max().clamp_min(1)
    choose = lambda logits, _step: logits.argmax(-1)  # noqa: E731
    greedy = (m.sample_ids(labels[:1], choose=choose) for m in (model, plain))
    assert torch.equal(*greedy)


def linear_inputs(model, ids, labels):
    seen = {}
    handles = [
        model.transformer.get_submodule(spec.name).register_forward_pre_hook(
            lambda _m, args, name=spec.name: seen.__setitem__(name, args[0])
        )
        for spec in model.linears()
    ]
    model.replay(ids, labels)
    for handle in handles:
        handle.remove()
    return seen


def test_the_input_is_what_was_asked_for(build):
    model = build()
    before = linear_inputs(model, *inputs(model))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        folded = {s.name: fold_and_compensate(model, s, generator) for s in model.linears()}
        after = linear_inputs(model, *inputs(model))
    for name, (scale, shift) in folded.items():
        assert (after[name] - (before[name] / scale - shift)).abs().max() < 1e-9, name


def test_a_gated_product_takes_no_shift():
    model = small_model()
    name = "layers.0.feed_forward.w2"
    before = model.transformer.layers[0].feed_forward.w13.weight.clone()
    with pytest.raises(ValueError, match=rf"small: the input of '{name}' takes a scale, but no"):
        model.fold_(name, torch.ones(64), torch.ones(64))
    assert torch.equal(model.transformer.layers[0].feed_forward.w13.weight, before)
    with pytest.raises(ValueError, match=r"'layers\.9\.x'.*not a linear of this model"):
        model.fold_("layers.9.x", torch.ones(64), torch.zeros(64))


def test_a_stressed_model_is_an_ordinary_one(build):
    plain, stressed = build(), build()
    with torch.no_grad():
        stress_(stressed, 30)
    assert stressed.transformer.state_dict().keys() == plain.transformer.state_dict().keys()
    ids, labels = inputs(plain)
    a, b = plain.replay(ids, labels), stressed.replay(ids, labels)
    assert (a - b).abs().max() < 1e-10 * a.abs().max()
    reach = [
        linear_inputs(m, ids, labels)["layers.0.feed_forward.w13"].abs().amax((0, 1))
        for m in (stressed, plain)
    ]
    factors = reach[0] / reach[1]
    assert factors.max() > 10 * factors.median()


def test_building_from_a_published_configuration():
    config = model_config("par-3b-4x")
    small = {**config["transformer"], "depth": 1, "embed_dim": 200, "num_heads": 2, "hidden": 64,
             "vocab_size": 32}  # fmt: skip
    tokenizer = {"vocab_size": 32, "ch": 32, "ch_mult": (1,), "num_res_blocks": 1, "z_channels": 8}
    model = build_model("x", {**config, "transformer": small, "tokenizer": tokenizer}, seed=0)
    assert model.config.sampling.cfg == 1.345 and model.config.sampling.top_k == 0
    assert len(model.config.order.steps) == 147
