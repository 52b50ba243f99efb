"""MAR's adapter: folding, what is quantized, its own random streams, replay over the schedule."""

import itertools
import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ptq4arvg.models import build_model, list_models, load_model, model_config
from ptq4arvg.models.diffloss import respaced_schedule
from ptq4arvg.models.mar import FAMILY, ImageNoise, mask_sizes
from ptq4arvg.models.mar_net import MARConfig
from ptq4arvg.models.stress import stress_
from tests.golden_mar import find_mar_cases

CASES = find_mar_cases()
pytestmark = pytest.mark.skipif(not CASES, reason="no MAR configuration in the golden folder")
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

# Parameters that the authors of MAR give (Li et al. 2024, table 4), in millions.
PUBLISHED = {"mar-b": 208, "mar-l": 479, "mar-h": 943}
SMALL = {"embed_dim": 32, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2, "diff_width": 32,
         "diff_depth": 1, "num_classes": 5, "grid": 4, "z_channels": 4, "buffer": 3,
         "diffusion_steps": 6, "num_iter": 4}  # fmt: skip
TOKENIZER = {"z_channels": 4, "ch": 32, "ch_mult": (1,), "num_res_blocks": 1, "latent_side": 4}


def small(**changes):
    """A model of the smallest sizes with random weights."""
    patch = changes.get("patch", 1)
    tokenizer = TOKENIZER | {"latent_side": 4 * patch}
    config = {"family": "mar", "transformer": SMALL | changes, "tokenizer": tokenizer}
    return build_model("mar-small", config, seed=0)


def inputs(model, rows=3):
    """Rows with an order, the last one unconditional."""
    g = torch.Generator().manual_seed(3)
    c = model.config
    tokens = torch.randn(rows, c.tokens, c.channels, generator=g)
    place = torch.stack([torch.randperm(c.tokens, generator=g) for _ in range(rows)])
    labels = torch.tensor([*range(rows - 1), model.null_label])
    return torch.cat([tokens, place[..., None].float()], -1), labels


def transform(k, generator):
    scale = torch.exp(torch.randn(k, generator=generator, dtype=torch.float64))
    return scale, torch.randn(k, generator=generator, dtype=torch.float64)


def fold_and_compensate(model, name, scale, shift):
    """Fold into the input of a linear, and let the linear undo it."""
    linear = model.transformer.get_submodule(name)
    model.fold_(name, scale, shift)
    weight = linear.weight.data
    linear.bias.data += weight @ (shift * scale)
    linear.weight.data = weight * scale


@each_case
def test_the_function_stays_whatever_is_folded(case):
    model = case.build(torch.float64)
    before, sampled = model.replay(*inputs(model)), model.sample_ids(torch.tensor([1]), seed=4)
    generator = torch.Generator().manual_seed(0)
    foldable = [spec for spec in model.linears() if spec.fold]
    assert {spec.role for spec in foldable} == {"qkv", "proj", "fc1", "diff_fc1", "diff_cond"}
    order = torch.randperm(len(foldable), generator=generator).tolist()
    for i in [*order, *order[:3]]:  # any order, some twice
        linear = model.transformer.get_submodule(foldable[i].name)
        fold_and_compensate(model, foldable[i].name, *transform(linear.in_features, generator))
    after = model.replay(*inputs(model))
    assert (after - before).abs().max() < 1e-10 * before.abs().max().clamp_min(1)
    # The noisiest step multiplies rounding by 1 / sqrt(alpha_bar), thousands.
    again = model.sample_ids(torch.tensor([1]), seed=4)
    assert (again - sampled).abs().max() < 1e-6 * sampled.std()


@each_case
def test_the_input_is_what_was_asked_for(case):
    model = case.build(torch.float64)
    specs, seen = [spec for spec in model.linears() if spec.fold], {}

    def record(stage):
        handles = [
            model.transformer.get_submodule(spec.name).register_forward_pre_hook(
                lambda _m, args, key=(stage, spec.name): seen.__setitem__(key, args[0])
            )
            for spec in specs
        ]
        model.replay(*inputs(model))
        for handle in handles:
            handle.remove()

    record("before")
    generator, transforms = torch.Generator().manual_seed(1), {}
    for spec in specs:
        linear = model.transformer.get_submodule(spec.name)
        transforms[spec.name] = transform(linear.in_features, generator)
        fold_and_compensate(model, spec.name, *transforms[spec.name])
    record("after")
    for spec in specs:
        scale, shift = transforms[spec.name]
        wanted = seen["before", spec.name] / scale - shift
        assert (seen["after", spec.name] - wanted).abs().max() < 1e-8, spec.name


@each_case
def test_an_absorbed_constant_changes_nothing(case):
    model = case.build(torch.float64)
    before = model.replay(*inputs(model))
    generator = torch.Generator().manual_seed(2)
    for spec in model.linears():
        if spec.fold and spec.norm:
            linear = model.transformer.get_submodule(spec.name)
            fold_and_compensate(model, spec.name, *transform(linear.in_features, generator))
            norm = model.transformer.get_submodule(spec.norm)
            assert (norm.constant is None) == (spec.role != "diff_fc1")
            model.absorb_constant_(spec.name)
            assert norm.constant is None
    assert (model.replay(*inputs(model)) - before).abs().max() < 1e-9


@each_case
def test_stress_leaves_the_function_and_makes_outliers(case):
    plain, stressed = case.build(torch.float64), case.build(torch.float64)
    stress_(stressed, 30)
    a, b = plain.replay(*inputs(plain)), stressed.replay(*inputs(stressed))
    assert (a - b).abs().max() < 1e-10 * a.abs().max()
    norm = "decoder_blocks.0.norm1"
    gains = [model.transformer.get_submodule(norm).weight.abs() for model in (plain, stressed)]
    assert not torch.equal(*gains)
    assert plain.transformer.state_dict().keys() == stressed.transformer.state_dict().keys()


def test_what_cannot_be_folded_says_why():
    model = small()
    one, zero = torch.ones(32), torch.zeros(32)
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.fc2.*output of GELU"):
        model.fold_("encoder_blocks.0.mlp.fc2", one, zero)
    with pytest.raises(ValueError, match=r"res_blocks\.0\.mlp\.2.*output of SiLU"):
        model.fold_("diffloss.net.res_blocks.0.mlp.2", one, zero)


@pytest.mark.parametrize("name", PUBLISHED)
def test_linears_cover_every_matrix_product(name):
    config = model_config(name)
    less = {"embed_dim": 32, "num_heads": 2, "encoder_depth": 2, "decoder_depth": 1,
            "diff_width": 32, "diff_depth": 2}  # fmt: skip
    tokenizer = {**config["tokenizer"], "ch": 32}
    model = build_model(name, {**config, "transformer": config["transformer"] | less,
                               "tokenizer": tokenizer})  # fmt: skip
    specs = {spec.name: spec for spec in model.linears()}
    linears = {path for path, m in model.transformer.named_modules() if isinstance(m, nn.Linear)}
    assert linears - set(specs) == set(model.kept_in_float)
    assert set(specs) <= linears
    for spec in specs.values():
        slots = 100 if spec.name.startswith("diffloss.") else 64 + 256
        wanted = 1 if spec.role == "diff_cond" else slots
        assert len(spec.groups) == len(spec.scale_groups) == wanted
    head = specs["diffloss.net.res_blocks.0.mlp.0"]
    assert head.sink == (99,) and specs["decoder_blocks.0.mlp.fc1"].sink == ()
    qkv = specs["encoder_blocks.0.attn.qkv"]
    assert len(set(qkv.groups)) == len(set(qkv.finest)) == 65  # the buffer's, and all others
    assert qkv.scale_groups == (0,) * 64 + (1,) * 256


def test_sizes_are_those_published():
    models = {info.name: info for info in list_models()}
    for name, millions in PUBLISHED.items():
        assert models[name].parameters / 1e6 == pytest.approx(millions, rel=0.01), name
        assert (models[name].tokens, models[name].image_size) == (256, 256)
        assert models[name].licence == "MIT"


@pytest.mark.parametrize(("steps", "runs"), [(6, (1,) * 6), (25, (3, 2) * 5), (100, (10,) * 10)])
def test_diffusion_steps_are_in_ten_runs_or_alone(steps, runs):
    spec = next(s for s in small(diffusion_steps=steps).linears() if s.role == "diff_fc1")
    assert spec.groups == tuple(range(steps))
    assert spec.scale_groups == tuple(i for i, count in enumerate(runs) for _ in range(count))


def test_settings_are_those_published():
    """Guidance for the published figures; iterations, temperature and diffusion of all sizes."""
    for name, cfg in {"mar-b": 2.9, "mar-l": 3.0, "mar-h": 3.2}.items():
        c = MARConfig(**model_config(name)["transformer"])
        assert c.sampling["cfg"] == cfg
        assert (c.num_iter, c.temperature, c.cfg_schedule) == (64, 1.0, "linear")
        assert (c.diffusion_steps, c.noisiest_step, c.norm_eps) == (100, 999, 1e-6)


@each_case
def test_an_image_depends_on_its_index_only(case):
    model = case.build(torch.float64)
    labels = torch.tensor([3, 7, 0, 5, 2])
    together = model.sample_ids(labels, seed=9)
    for first, count in ((0, 1), (2, 3)):
        alone = model.sample_ids(labels[first : first + count], seed=9, index=first)
        wanted = together[first : first + count]
        assert (alone - wanted).abs().max() < 1e-6 * wanted.std()
    assert torch.equal(model.sample_ids(labels, seed=9), together)
    assert not torch.equal(model.sample_ids(labels, seed=10), together)


def test_generation_gives_images_and_leaves_the_global_generator_alone():
    model, state = small(), torch.get_rng_state()
    images = model.generate([0, 4, 2], seed=1, batch_size=2)
    assert images.shape == (3, 3, 4, 4) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    model.replay(*inputs(model))
    assert torch.equal(torch.get_rng_state(), state)


def test_options_of_generation():
    model, calls = small(), []
    handle = model.transformer.encoder_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    default = model.generate([1])
    model.generate([1], num_iter=7)
    handle.remove()
    assert len(calls) == 4 + 7
    assert torch.equal(model.generate([1], cfg=2.9, num_iter=4, temperature=1.0), default)
    for other in ({"temperature": 0.5}, {"temperature": 0}, {"cfg": 1.0}, {"cfg": 0},
                  {"num_iter": 16}):  # fmt: skip
        assert not torch.equal(model.sample_ids(torch.tensor([1]), **other),
                               model.sample_ids(torch.tensor([1])))  # fmt: skip
    with pytest.raises(
        ValueError, match=r"no sampling option 'top_k'; wanted cfg or one of num_it"
    ):
        model.generate([1], top_k=5)
    with pytest.raises(ValueError, match=r"no sampling option 'num_iters'.*Closest: 'num_iter'"):
        model.generate([1], num_iters=5)
    with pytest.raises(ValueError, match="num_iter is 17; wanted 1 to 16"):
        model.generate([1], num_iter=17)
    with pytest.raises(ValueError, match=r"num_iter is 2\.5; wanted a whole number"):
        model.generate([1], num_iter=2.5)
    with pytest.raises(ValueError, match="mar-small: temperature is 'hot'; wanted 0 or more"):
        model.generate([1], temperature="hot")


def test_other_families_refuse_these_options():
    with pytest.raises(ValueError, match=r"no sampling option 'num_iter'; .*top_k, top_p"):
        load_model("var-tiny").generate([1], num_iter=5)


def test_guidance_of_one_is_no_guidance():
    """The guided path at the strength of the conditional rows alone gives the unguided tokens."""
    model = small(cfg_schedule="constant").to(torch.float64)
    head = model.transformer.diffloss
    g = torch.Generator().manual_seed(0)
    z = torch.randn(6, 32, generator=g, dtype=torch.float64)
    noise = torch.randn(6, 3, 4, generator=g, dtype=torch.float64)  # [S, R, C]
    with torch.inference_mode():
        times = head.times()
        guided, plain = head.sample(z, noise, times, cfg=1.0), head.sample(z[:3], noise, times)
    assert_close(guided, plain)
    assert model._strength(2.5, 10) == 2.5


def test_guidance_of_less_than_one_is_away_from_the_class():
    model, labels = small(), torch.tensor([1])
    less, none, more = (model.sample_ids(labels, cfg=cfg) for cfg in (0.9, 1.0, 1.1))
    assert ((none - less) * (more - none)).sum() > 0  # one way


def test_noise_of_an_image_does_not_depend_on_the_others():
    three, last = ImageNoise(3, seed=5), ImageNoise(1, seed=5, index=2)
    orders = three.orders(16)
    assert torch.equal(orders[2:], last.orders(16))
    assert torch.equal(orders.sort(1).values, torch.arange(16).expand(3, -1))
    assert torch.equal(three.draw(4, 2, 8)[:, 2:], last.draw(4, 2, 8))
    assert not torch.equal(orders[0], orders[1])


@pytest.mark.parametrize(("tokens", "num_iter"), [(256, 64), (256, 256), (16, 4), (16, 1)])
def test_mask_schedule(tokens, num_iter):
    sizes = mask_sizes(tokens, num_iter)
    assert len(sizes) == num_iter + 1 and sizes[0] == tokens and sizes[-1] == 0
    counts = [a - b for a, b in itertools.pairwise(sizes)]
    assert min(counts) >= 1
    if (tokens, num_iter) == (256, 64):  # tokens the encoder sees beside its buffer
        seen = [tokens - size for size in sizes[:-1]]
        assert seen[:3] == [0, 1, 2] and seen[-1] == 250


@pytest.mark.parametrize("num_iter", [0, 17])
def test_an_impossible_schedule(num_iter):
    with pytest.raises(ValueError, match=f"num_iter is {num_iter}; wanted 1 to 16"):
        mask_sizes(16, num_iter)


def test_bad_settings():
    with pytest.raises(ValueError, match=r"cfg_schedule is 'cosine'; wanted one of linear, const"):
        MARConfig(8, 1, 1, 1, 8, 1, cfg_schedule="cosine")
    for steps in (1, 1001):
        with pytest.raises(ValueError, match=f"diffusion_steps is {steps}; wanted 2 to 1000"):
            respaced_schedule(steps)
    for noisiest in (8, 1000):
        with pytest.raises(ValueError, match=f"noisiest is {noisiest}; wanted 9 to 999"):
            respaced_schedule(10, noisiest)


@pytest.mark.parametrize(
    ("num_iter", "visited"),
    [(4, [0, 1, 2, 3]), (1, [0]), (16, [0, 2, 4, 6, 9, 11, 13, 15])],
)
def test_replay_visits_the_whole_schedule(num_iter, visited):
    model, seen = small(num_iter=num_iter), []
    block = model.transformer.encoder_blocks[0]
    block.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[1]))
    steps = []
    mlp = model.transformer.diffloss.net.res_blocks[0].mlp[0]
    mlp.register_forward_pre_hook(lambda _m, args: steps.append(args[0].shape[1]))
    out = model.replay(*inputs(model))
    buffer = model.config.buffer
    sizes = mask_sizes(16, num_iter)
    assert [16 - (length - buffer) for length in seen] == [sizes[i] for i in visited]
    assert len(seen) == model.visits("encoder_blocks.0.attn.qkv")
    assert steps == [6] * model.visits("diffloss.net.res_blocks.0.mlp.0")
    assert out.shape == (3, len(steps) * 6, 4)


def test_replay_shows_the_tokens_that_generation_had():
    model, seen, labels = small(), [], torch.tensor([1, 2])
    model.transformer.z_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    rows = model.sample_rows(labels, seed=3)
    model.replay(rows, labels)
    generated, replayed = seen[:4], seen[4:]
    for conditional_and_not, again in zip(generated, replayed, strict=True):
        assert torch.equal(conditional_and_not[:2], again)


def test_replay_shows_the_head_tokens_from_the_next_to_the_last(monkeypatch):
    model, shown = small(), []
    head = model.transformer.diffloss
    noised = head.noised
    monkeypatch.setattr(head, "noised", lambda x, noise: shown.append(x) or noised(x, noise))
    rows, labels = inputs(model)
    model.replay(rows, labels)
    for i, masked in enumerate(mask_sizes(16, 4)[:-1]):
        for j in range(4):
            place = masked - 1 - j * masked // 4
            wanted = rows[rows[..., -1] == place][:, :-1]
            assert torch.equal(shown[4 * i + j], wanted), (masked, place)


def test_replay_depends_on_each_row_alone():
    model = small().to(torch.float64)
    rows, labels = inputs(model)
    together = model.replay(rows, labels)
    assert_close(model.replay(rows[1:2], labels[1:2]), together[1:2])
    reversed_order = rows.clone()
    reversed_order[..., -1] = 15 - rows[..., -1]
    assert not torch.allclose(model.replay(reversed_order, labels), together)
    alone = rows[..., :-1]  # tokens without an order take a fixed one
    assert torch.equal(model.replay(alone, labels), model.replay(alone, labels))
    more = torch.cat([rows, rows[..., :1]], -1)
    for wrong in (rows[:, :15], rows[..., :3], rows[0], more):
        with pytest.raises(ValueError, match=r"mar-small: tokens .*; wanted \[rows, 16, 4\]"):
            model.replay(wrong, labels)


def test_rows_hold_the_order_of_generation():
    model = small()
    labels = torch.tensor([1, 2])
    rows = model.sample_rows(labels, seed=3)
    assert torch.equal(rows[..., :-1], model.sample_ids(labels, seed=3))
    assert torch.equal(rows[..., -1].argsort(1), ImageNoise(2, seed=3).orders(16))


def test_the_noisiest_step_is_the_sensitive_one():
    """Why it is declared a sink: what an error of the predicted noise does to the next state."""
    s = respaced_schedule(100)
    gain = s.amplification()
    assert gain[-1] == pytest.approx(316.2, abs=0.1) and gain[:-1].max() < 2
    kept = s.alphas_cumprod[-1]
    assert gain[-1] == pytest.approx(s.mean_of_start[-1] * math.sqrt(1 - kept) / math.sqrt(kept))


def test_sampling_may_begin_at_a_less_noisy_step():
    s = respaced_schedule(25, 990)
    assert s.timesteps[0] == 0 and s.timesteps[-1] == 990 and len(set(s.timesteps)) == 25
    assert (
        (1 / s.alphas_cumprod[-1]) ** 0.5
        < 100
        < (1 / respaced_schedule(25).alphas_cumprod[-1]) ** 0.5
    )
    assert respaced_schedule(6, 5).timesteps.tolist() == [0, 1, 2, 3, 4, 5]
    assert s.posterior_variance[0] == 0  # step 1 lends step 0 its logarithm
    assert s.posterior_log_variance == pytest.approx(
        np.log(s.posterior_variance[[1, *range(1, 25)]])
    )
    whole = respaced_schedule(1000)
    assert s.alphas_cumprod == pytest.approx(whole.alphas_cumprod[s.timesteps], rel=1e-9)


@torch.inference_mode()
def test_one_diffusion_step_at_a_time_equals_all_at_once():
    model = small().to(torch.float64)
    head, g = model.transformer.diffloss, torch.Generator().manual_seed(0)
    tokens, z = (torch.randn(3, k, generator=g, dtype=torch.float64) for k in (4, 32))
    noise = torch.randn(3, 6, 4, generator=g, dtype=torch.float64)  # [R, S, C]
    together = head.all_steps(tokens, z, noise)
    states, times = head.noised(tokens, noise), head.times()
    for s in range(6):
        y = (times[s] + head.net.cond_embed(z))[:, None]
        one = head.net(states[:, s : s + 1], y, sampling=True).chunk(2, -1)[0]
        assert_close(one[:, 0], together[:, s])
    # The least noisy state is all but the token, the noisiest all but the noise.
    assert_close(states[:, 0], tokens, atol=0.2, rtol=0)
    assert_close(states[:, -1], noise[:, -1], atol=0.2, rtol=0)


def test_tokens_of_several_latents():
    model = small(patch=2)
    assert (model.config.channels, model.tokens) == (16, 16)
    tokens = torch.arange(16 * 16.0).view(1, 16, 16)
    latents = model.latents(tokens)  # [1, 4, 8, 8]
    # Token (row 1, column 2), channel 3, at the place (1, 0) of its patch.
    assert latents[0, 3, 3, 4] == tokens[0, 4 * 1 + 2, 3 * 4 + 2 * 1 + 0]
    assert model.generate([1]).shape == (1, 3, 8, 8)


def test_half_precision_keeps_the_state_of_sampling_in_single():
    model = small().to(torch.bfloat16)
    tokens = model.sample_ids(torch.tensor([1, 2]))
    assert tokens.dtype == torch.float32 and tokens.isfinite().all()
    assert not torch.equal(tokens, tokens.bfloat16().float())
    assert small().double().sample_ids(torch.tensor([1])).dtype == torch.float32


def test_both_cursors_follow_the_weights():
    model = small()
    assert model.cursor_of("diffloss.net.cond_embed") is model.transformer.diffloss.cursor
    assert model.cursor_of("decoder_blocks.0.mlp.fc1") is model.cursor
    model.to("meta")
    assert {cursor.position.device.type for cursor in model.cursors} == {"meta"}


def test_published_files(monkeypatch, tmp_path):
    """A training state whose averaged weights count, and a tokenizer with q, k and v apart."""
    monkeypatch.setitem(FAMILY.sizes, "mar-b", (SMALL, TOKENIZER))
    model = small()
    plain = model.transformer.state_dict()
    average = {name: value + 1 for name, value in plain.items()}
    saved = {"model": dict(plain), "model_ema": average, "epoch": 3, "args": Namespace(lr=1e-4)}
    torch.save(saved, tmp_path / "checkpoint-last.pth")
    tokenizer = {"loss.logvar": torch.zeros(())}
    for name, value in model.tokenizer.state_dict().items():
        stem, joined, kind = name.rpartition("qkv.")
        names = [f"{stem}{part}.{kind}" for part in "qkv"] if joined else [name]
        tokenizer |= dict(zip(names, value.chunk(len(names)), strict=True))
    assert sum(name.endswith(".k.bias") for name in tokenizer) == 3
    torch.save({"model": tokenizer}, tmp_path / "kl16.ckpt")
    loaded = load_model("mar-b", weights=tmp_path / "checkpoint-last.pth",
                        tokenizer=tmp_path / "kl16.ckpt")  # fmt: skip
    for name, value in loaded.transformer.state_dict().items():
        assert torch.equal(value, average[name]), name
    for name, value in loaded.tokenizer.state_dict().items():
        assert torch.equal(value, model.tokenizer.state_dict()[name]), name
