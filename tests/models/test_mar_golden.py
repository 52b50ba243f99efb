"""MAR against records of the original code, over every configuration that is found."""

import functools
import itertools

import pytest
import torch
from torch.testing import assert_close

from ptq4arvg.models.mar import mask_sizes
from ptq4arvg.sampling import guide
from tests.golden_mar import MARCase, RecordedNoise, find_mar_cases

CASES = find_mar_cases()
HIDDEN = {"atol": 2e-4, "rtol": 1e-4}
IMAGES = {"atol": 1e-4, "rtol": 0.0}
# Share of the samples' deviation; float32 itself moves them by 2e-5 (tests/golden/mar/README.md).
SAMPLES = 2e-4

pytestmark = pytest.mark.skipif(not CASES, reason="no MAR configuration in the golden folder")


@functools.cache
def _built(case: MARCase):
    return case.build()


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def golden(request):
    """(case, its float32 model). Tests must leave the model as it is."""
    return request.param, _built(request.param)


def visible_positions(mask):
    """Ascending positions [B, v] of the tokens that a mask [B, N] (1 = masked) leaves."""
    return (mask == 0).nonzero()[:, 1].view(len(mask), -1)


@torch.inference_mode()
def test_encoder_and_decoder(golden):
    case, model = golden
    records, net = case.records, model.transformer
    labels, tokens = records["fwd.labels"], records["fwd.tokens"]
    unconditional = torch.full_like(labels[-1:], model.null_label)
    condition = net.condition(torch.cat([labels[:-1], unconditional]))
    assert torch.equal(condition, records["fwd.class_embedding"])
    visible = visible_positions(records["fwd.mask"])
    encoded = net.encode(tokens, visible, condition)
    assert_close(encoded, records["fwd.encoder_out"], **HIDDEN)
    assert_close(net.decode(encoded, visible), records["fwd.decoder_z"], **HIDDEN)
    nothing = visible[:, :0]
    z = net.decode(net.encode(tokens, nothing, condition), nothing)
    assert_close(z, records["fwd_allmasked.decoder_z"], **HIDDEN)


@torch.inference_mode()
def test_diffusion_head(golden):
    case, model = golden
    records, net = case.records, model.transformer.diffloss.net
    x, t, c = records["net.x"], records["net.t"], records["net.c"]
    assert_close(net.time_embed.sinusoids(t), records["net.timestep_embedding"], **HIDDEN)
    times = net.time_embed(t)
    assert_close(times, records["net.time_embed"], **HIDDEN)
    y = times + net.cond_embed(c)
    for sampling in (False, True):
        out = net(x[:, None], y[:, None], sampling)[:, 0]
        assert_close(out, records["net.out"], **HIDDEN)
    half = len(x) // 2
    both = net(torch.cat([x[:half], x[:half]])[:, None], y[:, None])[:, 0]
    noise, variance = both.chunk(2, -1)
    guided = guide(noise[:half], noise[half:], 2.5 - 1)
    wanted = torch.cat([guided.repeat(2, 1), variance], -1)
    # Guidance multiplies the difference of two predictions, and with it their rounding.
    assert_close(wanted, records["net.out_cfg2.5"], atol=4 * HIDDEN["atol"], rtol=1e-4)


def test_diffusion_schedule(golden):
    case, model = golden
    schedule = model.transformer.diffloss.schedule
    names = {
        "alphas_cumprod": schedule.alphas_cumprod, "betas": schedule.betas,
        "posterior_variance": schedule.posterior_variance,
        "posterior_log_variance_clipped": schedule.posterior_log_variance,
        "posterior_mean_coef1": schedule.mean_of_start,
        "posterior_mean_coef2": schedule.mean_of_state,
    }  # fmt: skip
    for name, values in names.items():
        wanted = case.records[f"sched.{name}_f64"]
        assert_close(torch.from_numpy(values), wanted, atol=0, rtol=1e-12)
    assert torch.equal(torch.from_numpy(schedule.timesteps), case.records["sched.timestep_map"])


@torch.inference_mode()
def test_the_head_samples_as_the_original(golden):
    """Every iteration on its own, from the recorded conditions and noise."""
    case, model = golden
    records, head = case.records, model.transformer.diffloss
    noise, sizes = RecordedNoise(records), mask_sizes(model.tokens, case.config["iters"])
    for i, (masked, after) in enumerate(itertools.pairwise(sizes)):
        drawn = noise.draw(head.steps, masked - after, model.config.channels).flatten(1, 2)
        z, wanted = records[f"sample.{i}.z"], records[f"sample.{i}.pred"]
        strength = float(records["sample.cfg_per_iter"][i]) if len(z) > len(wanted) else None
        found = head.sample(z, drawn, head.times(), case.config["temp"], strength)
        assert (found - wanted).square().mean().sqrt() < SAMPLES * wanted.std()


def test_sampling(golden):
    case, model = golden
    records = case.records
    tokens = model.sample_ids(records["sample.labels"], noise=RecordedNoise(records))
    wanted = records["sample.tokens"]
    error = (model.latents(tokens) - wanted).square().mean().sqrt() / wanted.std()
    assert error < SAMPLES


def test_mask_schedule_and_guidance(golden):
    case, model = golden
    c, records = case.config, case.records
    sizes = mask_sizes(model.tokens, c["iters"])
    counts = [len(records[f"sample.{i}.pred"]) for i in range(c["iters"])]
    assert [c["B"] * (a - b) for a, b in itertools.pairwise(sizes)] == counts
    strengths = [model._strength(c["cfg"], max(size, 1)) for size in sizes[1:]]
    assert strengths == pytest.approx(records["sample.cfg_per_iter"].tolist(), rel=1e-6)


@torch.inference_mode()
def test_tokenizer(golden):
    case, model = golden
    if not case.recorded_tokenizer:
        pytest.skip(f"{case.name} has no tokenizer records")
    records, vae = case.records, model.tokenizer
    assert_close(vae.decode(records["vae.z"]), records["vae.decoded"], **IMAGES)
    mean, log_variance = vae.posterior(records["vae.image_in"])
    assert_close(mean, records["vae.posterior_mean"], atol=1e-4, rtol=1e-4)
    assert_close(log_variance, records["vae.posterior_logvar"], atol=1e-4, rtol=1e-4)
    decoded = vae.decode(records["sample.tokens"][:1] / vae.config.scale)
    assert_close(decoded, records["vae.decode_of_sample"], **IMAGES)
