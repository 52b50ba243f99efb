"""MAR in integers, end to end: calibrate, quantize, check, generate, save and load."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import ptq4arvg
from ptq4arvg.calibration import Calibration, calibrate
from ptq4arvg.calibration_file import load_calibration, save_calibration
from ptq4arvg.checkpoint import read_config
from ptq4arvg.evaluation.agreement import evaluation_rows, relative_error
from ptq4arvg.fuse import fuse_, unfuse_
from ptq4arvg.models import diffloss, stress_
from ptq4arvg.models.diffloss import respaced_schedule
from ptq4arvg.nn import PackedLinear
from ptq4arvg.verify import check_integer_path
from tests.golden_mar import find_mar_cases

CASES = find_mar_cases()
pytestmark = pytest.mark.skipif(not CASES, reason="no MAR configuration in the golden folder")
SEVERITY = 30


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def rows(case):
    return calibrate(case.build(), samples=32, keep=16, seed=0)


@pytest.fixture(scope="module")
def evaluated(case):
    """Rows of other samples than the calibration's, conditional and unconditional."""
    model = case.build()
    return evaluation_rows(model, torch.arange(min(8, model.num_classes)), seed=99)


@pytest.fixture(scope="module")
def error(case, rows, evaluated):
    """(scheme, method, stress) to the relative error of the replay of a model quantized so, and
    the model; tests must leave it as it is."""
    return functools.cache(functools.partial(_error, case, rows, evaluated))


@torch.inference_mode()
def _error(case, rows, evaluated, scheme, method, stress=0):
    model = case.build()
    if stress:
        stress_(model, stress)
    exact = model.replay(*evaluated)
    ptq4arvg.quantize_(model, scheme, method, rows)
    return relative_error(exact, model.replay(*evaluated)), model


def test_calibration_rows_hold_tokens_and_their_order(case, rows, tmp_path):
    model = case.build()
    assert rows.ids.shape == (16, model.tokens, model.config.channels + 1)
    assert rows.ids.dtype == torch.float32
    places = rows.ids[..., -1].sort(1).values
    assert torch.equal(places, torch.arange(model.tokens).expand(16, -1).float())
    null = (rows.labels == model.null_label).sum().item()
    assert 4 <= null <= 12  # select_dgc keeps at least a quarter of each kind
    assert calibrate(model, samples=32, keep=16, seed=0).hash == rows.hash
    loaded = load_calibration(save_calibration(rows, tmp_path / "rows.safetensors"))
    assert loaded.hash == rows.hash and torch.equal(loaded.ids, rows.ids)
    changed = rows.ids.clone()
    changed[0, 0, 0] += 1e-3
    assert Calibration(changed, rows.labels).hash != rows.hash


@pytest.mark.parametrize("scheme", ["W8A8", "W6A6", "W4A8"])
@torch.inference_mode()
def test_integers_are_close_to_floats(evaluated, error, scheme):
    relative, model = error(scheme, "ptq4arvg")
    assert relative < {"W8A8": 1e-3, "W6A6": 1e-2, "W4A8": 1e-2}[scheme]
    packed = {n for n, m in model.transformer.named_modules() if isinstance(m, PackedLinear)}
    assert packed == {spec.name for spec in model.linears()}
    tokens = model.sample_ids(torch.tensor([1, 2]), seed=0)
    assert tokens.isfinite().all()
    fused = model.replay(*evaluated)
    unfuse_(model)
    # The same codes, but for those on the edge between two levels.
    assert relative_error(model.replay(*evaluated), fused) < relative / 10
    checks = check_integer_path(model, *(part[:2] for part in evaluated))
    assert {check.name for check in checks} == packed
    assert all(check.passed for check in checks)
    fuse_(model)


def test_the_method_is_better_than_rounding_on_a_stressed_model(error):
    ours, _ = error("W6A6", "ptq4arvg", SEVERITY)
    plain, _ = error("W6A6", "rtn", SEVERITY)
    assert ours < plain / 2


def test_tables_have_a_row_per_slot_or_diffusion_step(error):
    _, model = error("W8A8", "ptq4arvg")
    c = model.config
    for spec in model.linears():
        module = model.transformer.get_submodule(spec.name)
        if spec.role == "diff_cond":
            assert len(module.a_scale) == 1
        elif spec.name.startswith("diffloss."):
            assert len(module.a_scale) == c.diffusion_steps
        else:
            assert len(module.a_scale) == c.buffer + c.tokens
            assert len(set(module.a_scale[c.buffer :].tolist())) == 1  # the order is random
    steps = model.transformer.diffloss.net.res_blocks[0].mlp[0].a_scale
    assert len(set(steps.tolist())) > 1


@torch.inference_mode()
def test_sampling_reads_the_tables_of_its_step(evaluated, error):
    """One diffusion step at a time, as generation goes, is what a replay computes at once."""
    _, model = error("W8A8", "ptq4arvg")
    net, c = model.transformer, model.config
    head, tokens = net.diffloss, evaluated[0][:, 0, : c.channels]
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(len(tokens), c.diffusion_steps, c.channels, generator=g)
    nothing = torch.zeros(len(tokens), 0, dtype=torch.int64)
    condition = net.condition(evaluated[1])
    z, again = (
        net.decode(net.encode(evaluated[0][..., :-1], nothing, condition, how), nothing, how)
        for how in (False, True)
    )
    assert relative_error(z, again) < 1e-4
    z = z[:, 0]
    together = head.all_steps(tokens, z, noise)
    states, y = head.noised(tokens, noise), head.times()[None] + head.net.cond_embed(z)[:, None]

    def one_by_one(step_of):
        predicted = []
        for s in range(c.diffusion_steps):
            head.cursor.set(step_of(s), 1)
            out = head.net(states[:, s : s + 1], y[:, s : s + 1], sampling=True)
            predicted.append(out.chunk(2, -1)[0])
        return relative_error(together, torch.cat(predicted, 1))

    last = c.diffusion_steps - 1
    assert one_by_one(lambda s: s) < 1e-9
    assert one_by_one(lambda s: last - s) > 1e-6  # the tables do differ


def test_quantization_does_not_depend_on_the_batch_size(case, rows):
    scales = []
    for batch_size in (16, 5):
        model = case.build()
        ptq4arvg.quantize_(model, "W6A6", "rtn", rows, batch_size=batch_size)
        scales.append([m.a_scale for m in model.transformer.modules()
                       if isinstance(m, PackedLinear)])  # fmt: skip
    for first, second in zip(*scales, strict=True):
        assert_close(first, second, rtol=1e-4, atol=0)


def test_a_checkpoint_comes_back_bit_by_bit(case, rows, evaluated, tmp_path):
    model = case.build()
    stress_(model, SEVERITY)
    ptq4arvg.quantize_(model, "W6A6", "ptq4arvg", rows, ignore=["decoder_blocks.0.attn.proj"])
    model.save_pretrained(tmp_path / "q")
    loaded = ptq4arvg.load_quantized(tmp_path / "q")
    assert read_config(tmp_path / "q")["model_type"] == "mar"
    with torch.inference_mode():
        assert torch.equal(loaded.replay(*evaluated), model.replay(*evaluated))
    assert torch.equal(loaded.generate([3], seed=5), model.generate([3], seed=5))
    hashed = ptq4arvg.save_quantized(loaded, tmp_path / "again")
    assert hashed == read_config(tmp_path / "q")["hash"]


@pytest.fixture
def published_schedule():
    """mar-tiny on the schedule of the published models, which begins where nothing but noise is."""
    model = ptq4arvg.load_model("mar-tiny")
    model.config = replace(model.config, noisiest_step=999)
    model.transformer.diffloss.schedule = respaced_schedule(model.config.diffusion_steps)
    return model


def test_quantized_sampling_takes_a_state_of_noise_for_noise(published_schedule, monkeypatch):
    model, labels = published_schedule, torch.arange(4)
    rows = Calibration(model.sample_rows(labels, seed=1), labels, 1, "random")
    head = model.transformer.diffloss
    assert not head.begins_in_noise and not model.sampling_note
    ptq4arvg.quantize_(model, "W8A8", "rtn", rows)
    assert head.begins_in_noise
    assert "noisiest of the 25 diffusion steps" in model.sampling_note
    assert "multiplies errors by 1327" in model.sampling_note
    tokens = model.sample_ids(labels, seed=5)
    assert 0.5 < tokens.std() < 1.5  # those of real pictures have 1
    monkeypatch.setattr(diffloss, "MOST_AMPLIFIED", math.inf)
    assert model.sample_ids(labels, seed=5).std() > 10


@torch.inference_mode()
@pytest.mark.parametrize("pack", [True, False])
def test_the_step_that_is_left_out_leaves_the_noise_of_the_next(published_schedule, pack):
    model, labels = published_schedule, torch.arange(4)
    rows = Calibration(model.sample_rows(labels, seed=1), labels, 1, "random")
    ptq4arvg.quantize_(model, "W8A8", "rtn", rows, pack=pack)
    head, seen = model.transformer.diffloss, []
    head.net.input_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0][:, 0]))
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(head.steps, 3, model.config.channels, generator=g)
    z = torch.randn(3, model.config.embed_dim, generator=g)
    head.sample(z, noise, head.times(), temperature=0.5)
    assert len(seen) == head.steps - 1
    assert_close(seen[0], 0.5 * noise[1], rtol=0.01, atol=0)


def test_a_head_that_is_quantized_in_part_does_without_the_step_too(published_schedule):
    model, labels = published_schedule, torch.arange(4)
    rows = Calibration(model.sample_rows(labels, seed=1), labels, 1, "random")
    ptq4arvg.quantize_(model, "W8A8", "rtn", rows, ignore=["re:diffloss.net.res_blocks.*"])
    assert model.sampling_note


@pytest.mark.parametrize("ignore", [["re:diffloss.*"], []])
def test_the_noisiest_step_is_computed_where_it_may_be(ignore, published_schedule):
    """In a float head, and in one whose schedule begins where some signal is left."""
    model = published_schedule if ignore else ptq4arvg.load_model("mar-tiny")
    labels = torch.arange(4)
    rows = Calibration(model.sample_rows(labels, seed=1), labels, 1, "random")
    ptq4arvg.quantize_(model, "W8A8", "rtn", rows, ignore=ignore)
    assert not model.sampling_note


def test_attention_products_stay_in_float(case, rows):
    with pytest.raises(ValueError, match=f"{case.name} keeps its attention products in floating"):
        ptq4arvg.quantize_(case.build(), "W6A6", "rtn", rows, attention="simulated")


def test_the_research_pipeline_is_for_other_families(case, rows):
    with pytest.raises(ValueError, match=f"for the family 'mar' of {case.name}"):
        ptq4arvg.quantize_(case.build(), "W6A6", calibration=rows, compat="research")


def test_verify_of_a_checkpoint(case, rows, tmp_path, capsys):
    from ptq4arvg.cli.verify import run

    model = case.build()
    ptq4arvg.quantize_(model, "W8A8", "rtn", rows)
    model.save_pretrained(tmp_path / "q")
    run(tmp_path / "q", quiet=True)
    assert (
        f"{len(model.linears())} integer layers equal their simulation" in capsys.readouterr().out
    )
