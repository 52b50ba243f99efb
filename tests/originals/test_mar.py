"""A module of the original MAR runs our blocks under its own script, in float and quantized."""

import functools
import math
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import ptq4arvg
from ptq4arvg.models import diffloss
from ptq4arvg.models.loading import read_state
from ptq4arvg.models.registry import build_model
from ptq4arvg.nn import PackedLinear
from tests.golden_cases import OTHER_ROUNDING, relative_error
from tests.golden_mar import RecordedNoise, find_mar_cases
from tests.originals.mar_double import MAR, SpacedDiffusion

CASES = find_mar_cases()
pytestmark = pytest.mark.skipif(not CASES, reason="no MAR configuration in the golden folder")
HIDDEN = {"atol": 2e-4, "rtol": 1e-4}
# Share of the samples' deviation; float32 itself moves them by 2e-5 (tests/golden/mar/README.md).
SAMPLES = 2e-4


def original(case):
    """(module, its tokenizer)."""
    schedule = (case.records[f"sched.{name}"] for name in ("timestep_map", "betas_f64"))
    module = MAR(case.config, SpacedDiffusion(*(values.tolist() for values in schedule)))
    module.load_state_dict(read_state(case.beside("weights.safetensors")))
    return module.eval(), case.build().tokenizer


def recorded_noise(case, module, iterations):
    """While open, the module's sampler draws what is recorded of some iterations."""
    drawn, guided = [], case.config["cfg"] != 1.0
    for i in iterations:
        start, noise = (case.records[f"sample.{i}.{name}_noise"] for name in ("init", "step"))
        drawn += [start, *noise.repeat(1, 1 + guided, 1)]
    drawn = iter(drawn)
    sampler = module.diffloss.gen_diffusion
    return patch.object(sampler, "normal", lambda *shape: next(drawn).view(shape))


@torch.no_grad()
def sample(case, module):
    """Latents of the module's own script, with the recorded orders and noise."""
    c, records = case.config, case.records
    noise = recorded_noise(case, module, range(c["iters"]))
    with noise, patch.object(module, "sample_orders", lambda bsz: records["sample.orders"]):
        return module.sample_tokens(
            c["B"], c["iters"], c["cfg"], c["sched"], records["sample.labels"], c["temp"]
        )


def sample_ours(case, ours):
    """Latents of our own sampling of the same."""
    c, noise = case.config, RecordedNoise(case.records)
    options = {"cfg": c["cfg"], "num_iter": c["iters"], "temperature": c["temp"], "noise": noise}
    return ours.latents(ours.sample_ids(case.records["sample.labels"], **options))


def check_float(case, module):
    records = case.records
    with torch.no_grad():
        for part in ("fwd", "fwd_allmasked"):
            mask = records["fwd.mask"] if part == "fwd" else torch.ones_like(records["fwd.mask"])
            of_class = records["fwd.class_embedding"]
            encoded = module.forward_mae_encoder(records["fwd.tokens"], mask, of_class)
            if part == "fwd":
                assert_close(encoded, records["fwd.encoder_out"], **HIDDEN)
            z = module.forward_mae_decoder(encoded, mask)
            assert_close(z, records[f"{part}.decoder_z"], **HIDDEN)
        given = [records[f"net.{name}"] for name in "xtc"]
        assert len(set(given[1].tolist())) > 2
        net = module.diffloss.net
        assert_close(net(*given), records["net.out"], **HIDDEN)
        guided = net.forward_with_cfg(*given, torch.tensor([2.5]))
        # Guidance multiplies the difference of two predictions, and with it their rounding.
        assert_close(guided, records["net.out_cfg2.5"], atol=4 * HIDDEN["atol"], rtol=1e-4)
    wanted = records["sample.tokens"]
    for _ in range(2):
        found = sample(case, module)
        assert (found - wanted).square().mean().sqrt() < SAMPLES * wanted.std()


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(autouse=True)
def every_step_is_computed(monkeypatch):
    """The recorded weights are random, and predict nothing like the noise of a state of noise."""
    monkeypatch.setattr(diffloss, "MOST_AMPLIFIED", math.inf)


@functools.cache
def rows(case):
    return ptq4arvg.calibrate(case.build(), samples=8, keep=4, seed=0)


@functools.cache
def quantized(case, **options):
    """(an original module, our model), quantized alike. Tests must leave both as they are."""
    (module, tokenizer), ours = original(case), case.build()
    # A replay visits the mask schedule of the configuration, which is the call's, not the module's.
    ours.config = ptq4arvg.adopt(module, tokenizer=tokenizer).config
    for model in (module, ours):
        ptq4arvg.quantize_(model, "W8A8", calibration=rows(case), **options)
    return module, ours


def test_the_double_is_like_the_original(case):
    check_float(case, original(case)[0])


def test_adopted_it_computes_the_same(case):
    module, tokenizer = original(case)
    storage, ours = module.decoder_blocks[0].mlp.fc1.weight.data_ptr(), case.build()
    model = ptq4arvg.adopt(module, tokenizer=tokenizer)
    assert model.transformer.decoder_blocks[0].mlp.fc1.weight.data_ptr() == storage
    added = module.diffusion_pos_embed_learned
    assert added is model.transformer.diffusion_pos_embed_learned
    assert ptq4arvg.adopt(module) is model is ptq4arvg.adopt(model)
    for name in ("embed_dim", "encoder_depth", "decoder_depth", "num_heads", "diff_width",
                 "diff_depth", "num_classes", "grid", "patch", "z_channels", "buffer", "mlp_ratio",
                 "norm_eps", "diffusion_steps"):  # fmt: skip
        assert getattr(model.config, name) == getattr(ours.config, name), name
    assert model.tokenizer.config == ours.tokenizer.config
    check_float(case, module)
    ids, labels = rows(case).ids, rows(case).labels
    ours.config = model.config  # the mask schedule is the call's, not the module's
    assert torch.equal(model.replay(ids, labels), ours.replay(ids, labels))


def test_patches_of_several_latents_and_a_published_tokenizer():
    sizes = {"embed_dim": 32, "encoder_depth": 1, "decoder_depth": 2, "num_heads": 2,
             "diff_width": 32, "diff_depth": 1, "num_classes": 5, "grid": 4, "patch": 2,
             "z_channels": 4, "buffer": 3, "diffusion_steps": 6, "num_iter": 16}  # fmt: skip
    tokenizer = {"z_channels": 4, "ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1,
                 "latent_side": 8}  # fmt: skip
    config = {"family": "mar", "transformer": sizes, "tokenizer": tokenizer}
    ours = build_model("small", config, seed=0)
    c = {"D": 32, "ed": 1, "dd": 2, "heads": 2, "w": 32, "d": 1, "classes": 5, "img": 64, "vae": 4,
         "vae_stride": 8, "patch_size": 2, "buf": 3, "norm_eps": 1e-6, "mlp_ratio": 4}  # fmt: skip
    schedule = ours.transformer.diffloss.schedule
    module = MAR(c, SpacedDiffusion(schedule.timesteps.tolist(), schedule.betas.tolist()))
    module.load_state_dict(ours.transformer.state_dict())
    vae = nn.Module()  # what adopting needs of the original's tokenizer: q, k and v apart
    state = {}
    for name, value in ours.tokenizer.state_dict().items():
        stem, joined, kind = name.rpartition("qkv.")
        names = [f"{stem}{part}.{kind}" for part in "qkv"] if joined else [name]
        state |= dict(zip(names, value.chunk(len(names)), strict=True))
    vae.state_dict = lambda: state
    model = ptq4arvg.adopt(module, tokenizer=vae)
    assert model.config == ours.config and model.tokenizer.config == ours.tokenizer.config
    for name, value in ours.tokenizer.state_dict().items():
        assert torch.equal(model.tokenizer.state_dict()[name], value), name
    labels = torch.tensor([1, 4])
    assert module.sample_tokens(2, 4, 2.0, "constant", labels).shape == (2, 4, 8, 8)
    assert torch.equal(model.sample_ids(labels, seed=2), ours.sample_ids(labels, seed=2))


@pytest.mark.parametrize("sink", ["integer", "float"])
def test_its_own_script_runs_quantized(case, sink, tmp_path):
    module, ours = quantized(case, sink=sink)
    model, records = module.ptq4arvg, case.records
    packed = [m for m in module.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == len(model.linears())
    assert module.decoder_norm.quantizer is None
    mask, tokens = records["fwd.mask"], records["fwd.tokens"]
    visible = (mask == 0).nonzero()[:, 1].view(len(mask), -1)
    of_class, net = records["fwd.class_embedding"], ours.transformer
    with torch.inference_mode():
        encoded = module.forward_mae_encoder(tokens, mask, of_class)
        z = module.forward_mae_decoder(encoded, mask)
        wanted = net.encode(tokens, visible, of_class, sampling=True)
        # The original multiplies all tokens with z_proj, ours the visible: a code may round the
        # other way.
        error = relative_error(wanted, records["fwd.encoder_out"])
        assert 0 < error < 0.1 and relative_error(encoded, wanted) < OTHER_ROUNDING * error
        wanted = net.decode(wanted, visible, sampling=True)
        assert relative_error(z, wanted) < OTHER_ROUNDING * error
    wanted = sample_ours(case, ours)
    error = relative_error(wanted, records["sample.tokens"])
    found = sample(case, module)
    # Sampling multiplies what such a code does by hundreds, as it does with all rounding.
    assert relative_error(found, wanted) < 0.5 * error < 0.05
    assert torch.equal(sample(case, module), found)
    model.save_pretrained(tmp_path / "saved")
    again, (ids, labels) = ptq4arvg.load_quantized(tmp_path / "saved"), (rows(case).ids, [1] * 4)
    replayed = (m.replay(ids, torch.tensor(labels)) for m in (model, again))
    assert torch.equal(*replayed)


@pytest.mark.parametrize("sink", ["integer", "float"])
@torch.no_grad()
def test_a_timestep_reads_the_tables_of_its_step(case, sink):
    """The original gives timesteps of training, our tables have a row per sampling step."""
    module, ours = quantized(case, sink=sink)
    head, records = ours.transformer.diffloss, case.records
    x, c = records["net.x"], records["net.c"]
    for step, timestep in enumerate(records["sched.timestep_map"].tolist()):
        found = module.diffloss.net(x, torch.full((len(x),), timestep), c)
        y = (head.times()[step] + head.net.cond_embed(c))[:, None]

        def error(at, y=y, found=found):
            head.cursor.set(at, 1)
            return relative_error(found, head.net(x[:, None], y, sampling=True)[:, 0])

        assert error(step) < 1e-7
        assert error(head.steps - 1 if step == 0 else 0) > 1e-6  # the tables do differ


@pytest.mark.parametrize("sink", ["integer", "float"])
@pytest.mark.parametrize("most", [math.inf, 10.0])
@torch.no_grad()
def test_the_head_draws_the_same_as_ours(case, sink, most, monkeypatch):
    """Of the same conditions, through all steps; guided where the records are."""
    monkeypatch.setattr(diffloss, "MOST_AMPLIFIED", most)
    module, ours = quantized(case, sink=sink)
    c, records, iteration = case.config, case.records, 1
    mask, count = records["fwd.mask"], len(records[f"sample.{iteration}.z"])
    encoded = module.forward_mae_encoder(
        records["fwd.tokens"], mask, records["fwd.class_embedding"]
    )
    z = module.forward_mae_decoder(encoded, mask).flatten(0, 1)[:count]
    strength = float(records["sample.cfg_per_iter"][iteration])
    start, noise = (records[f"sample.{iteration}.{name}_noise"] for name in ("init", "step"))
    drawn, guided = torch.cat([start[None], noise[:-1]]), len(start) < count
    head = ours.transformer.diffloss
    wanted = head.sample(z, drawn, head.times(), c["temp"], strength if guided else None)
    with recorded_noise(case, module, [iteration]):
        found = module.diffloss.sample(z, c["temp"], strength)
    # A start that the script's float32 multiplies by 20,000 in place of one that is 0.
    assert relative_error(found[: len(wanted)], wanted) < (1e-7 if most == math.inf else 1e-5)


@torch.no_grad()
def test_a_state_of_noise_is_taken_for_noise(case, monkeypatch):
    module, _ = quantized(case, sink="integer")
    monkeypatch.setattr(diffloss, "MOST_AMPLIFIED", 10.0)
    x, c, timesteps = (case.records[name] for name in ("net.x", "net.c", "sched.timestep_map"))
    eps, logits = module.diffloss.net(x, timesteps.max().expand(len(x)), c).chunk(2, 1)
    assert torch.equal(eps, x) and torch.equal(logits, torch.ones_like(x))
    eps, _ = module.diffloss.net(x, timesteps.sort().values[-2].expand(len(x)), c).chunk(2, 1)
    assert not torch.equal(eps, x)


def test_simulated(case):
    """Quantized in floating point, too, the head knows its steps."""
    module, ours = quantized(case, method="rtn", pack=False)
    wanted = sample_ours(case, ours)
    error = relative_error(wanted, case.records["sample.tokens"])
    assert relative_error(sample(case, module), wanted) < 0.5 * error < 0.05


@torch.no_grad()
def test_as_it_is_evaluated(case):
    """Under autocast, which rounds what stays in float; and without labels."""
    module, _ = quantized(case, sink="integer")
    tokens, mask, of_class = (
        case.records[f"fwd.{name}"] for name in ("tokens", "mask", "class_embedding")
    )
    encoded = module.forward_mae_encoder(tokens, mask, of_class)
    exact = module.forward_mae_decoder(encoded, mask)
    with torch.random.fork_rng(), torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = module.forward_mae_encoder(tokens, mask, of_class)
        z = module.forward_mae_decoder(encoded, mask)
        torch.manual_seed(0)
        drawn = module.sample_tokens(1, 4, 1.5)
    assert 0 < relative_error(z, exact) < 2**-8
    assert drawn.isfinite().all()


@torch.no_grad()
def test_timesteps_that_have_no_tables(case):
    module, _ = quantized(case, sink="integer")
    x, t, c = (case.records[f"net.{name}"] for name in "xtc")
    low, high = t.min().item(), t.max().item()
    text = rf"got timesteps {low} to {high}; wanted all rows at one of the .*ignore=\['re:diffl"
    with pytest.raises(ValueError, match=text):
        module.diffloss.net(x, t, c)
    with pytest.raises(ValueError, match="got timesteps 1; wanted all rows"):
        module.diffloss.net(x, torch.ones_like(t), c)
    module, tokenizer = original(case)
    ptq4arvg.adopt(module, tokenizer=tokenizer)
    ptq4arvg.quantize_(module, "W8A8", "rtn", rows(case), ignore=["re:diffloss.*"])
    assert_close(module.diffloss.net(x, t, c), case.records["net.out"], **HIDDEN)


def test_without_its_tokenizer(case):
    module, tokenizer = original(case)
    blocks, net = module.encoder_blocks, module.diffloss.net
    with pytest.raises(ValueError, match=r"MAR does not know its tokenizer; give its KL-VAE"):
        ptq4arvg.quantize_(module)
    with pytest.raises(ValueError, match=r"Linear is none: its state dict has no 'encoder\.mid"):
        ptq4arvg.adopt(module, tokenizer=nn.Linear(2, 2))
    assert module.encoder_blocks is blocks and module.diffloss.net is net
    assert ptq4arvg.adopt(module, tokenizer=tokenizer).tokens == case.config["seq_len"]


def test_what_this_package_does_not_have(case):
    module, tokenizer = original(case)
    attention = module.decoder_blocks[-1].attn
    attention.num_heads *= 2
    heads = case.config["heads"]
    with pytest.raises(ValueError, match=rf"\[{heads}, {2 * heads}\] attention heads; wanted the"):
        ptq4arvg.adopt(module, tokenizer=tokenizer)
    attention.num_heads = heads
    sampler = module.diffloss.gen_diffusion
    steps, blocks = len(sampler.timestep_map), module.encoder_blocks
    text = rf"samples at the {steps} timesteps .*, \.\.\. of its .* num_sampling_steps='{steps}'"
    for change in ("timestep_map", "betas"):
        kept = getattr(sampler, change)
        setattr(sampler, change, [*kept[:-1], kept[-1] / 2])
        with pytest.raises(ValueError, match=text):
            ptq4arvg.adopt(module, tokenizer=tokenizer)
        setattr(sampler, change, kept)
    assert module.encoder_blocks is blocks
    ptq4arvg.adopt(module, tokenizer=tokenizer)
