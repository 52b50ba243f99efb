"""What every family promises (ptq4arvg/models/README.md), on a small model with random weights."""

import re

import pytest
import torch
from torch.testing import assert_close

import ptq4arvg
from ptq4arvg.folding import apply_transform_
from ptq4arvg.methods import Transform
from ptq4arvg.models import build_model, stress_
from ptq4arvg.models.layers import Activation, GatedFeedForward, ModulatedNorm
from ptq4arvg.models.loading import load_strict_, strict_tensors
from ptq4arvg.models.registry import FAMILIES
from ptq4arvg.nn import PackedLinear
from ptq4arvg.pipeline import quantize_
from tests.models.tiny import TINY

SCHEMES = ("W8A8", "W6A6", "W4A8")


def build(family, dtype=torch.float32):
    return build_model(f"{family}-test", TINY[family], seed=0, dtype=dtype)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request):
    assert request.param in TINY, "a family without a small configuration in tests/models/tiny.py"
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return build(family)


@pytest.fixture(scope="module")
def rows(family):
    return ptq4arvg.calibrate(build(family), samples=8, keep=4, seed=0)


@pytest.fixture(scope="module")
def quantized(family, rows):
    made = {}

    def get(scheme):
        if scheme not in made:
            made[scheme] = build(family)
            quantize_(made[scheme], scheme, calibration=rows)
        return made[scheme]

    return get


def test_heads_that_do_not_divide_the_width(family):
    sizes = TINY[family]["transformer"] | {"num_heads": 7}
    with pytest.raises(ValueError, match=r"embed_dim is 4[08].*; wanted a multiple of"):
        build_model("test", TINY[family] | {"transformer": sizes})


def test_parts_in_a_file_are_joined_in_one_order_however_it_is_read(family):
    first, second = (build(family).transformer for _ in range(2))
    generator, state = torch.Generator().manual_seed(1), {}
    for name, value in first.state_dict().items():
        random = torch.rand(value.shape, generator=generator).to(value.dtype)
        ending = next((e for e in getattr(first, "joined", {}) if name.endswith(e)), None)
        if ending is None:
            state[name] = random
            continue
        parts = first.joined[ending]
        stem = name.removesuffix(ending)
        for part, rows in zip(parts, random.chunk(len(parts)), strict=True):
            if part is not None:
                state[stem + part] = rows
    load_strict_(first, state, "file")
    found = dict(strict_tensors(second, state, "file"))
    assert found.keys() == first.state_dict().keys()
    assert all(torch.equal(value, found[name]) for name, value in first.state_dict().items())


def test_every_linear_is_named_or_kept_for_a_reason(model):
    names = {
        name for name, module in model.transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }  # fmt: skip
    specs = [spec.name for spec in model.linears()]
    assert len(specs) == len(set(specs)) and set(specs) <= names
    kept = {n: p for n in names - set(specs) for p in model.kept_in_float if re.fullmatch(p, n)}
    assert kept.keys() == names - set(specs), "neither in linears() nor in kept_in_float"
    assert set(kept.values()) == model.kept_in_float.keys(), "an expression that matches nothing"
    assert all(model.kept_in_float.values())


def test_every_linear_folds_or_says_why_not(model):
    modules = dict(model.transformer.named_modules())
    blocks = model.block_names()
    assert blocks and set(blocks) <= modules.keys()
    assert set(model.attention_cores()) <= modules.keys()
    order = [spec.block for spec in model.linears()]
    assert order == sorted(order) and set(order) >= set(range(len(blocks)))
    for spec in model.linears():
        assert bool(spec.fold) != bool(spec.no_fold), spec.name
        for other in (spec.fold, spec.norm, spec.act, spec.consumer):
            assert not other or other in modules, (spec.name, other)


def test_rows_of_narrower_integers_are_replayed(model, rows):
    ids = rows.ids if model.continuous else rows.ids.to(torch.int16)
    narrow = model.replay(ids, rows.labels.to(torch.int16))
    assert torch.equal(narrow, model.replay(rows.ids, rows.labels))


def test_what_stands_between_linears_is_named(model, rows):
    """Norms that a linear reads as they come, activations between two, products, attention."""
    parts = {
        name: module for name, module in model.transformer.named_modules()
        if isinstance(module, torch.nn.Linear | ModulatedNorm | Activation)
    }  # fmt: skip
    outputs, read = [], {}  # (output, its part); part -> the part whose output it reads

    def before(name, x):
        read[name] = next((source for y, source in outputs if y is x), "")

    handles = []
    for name, part in parts.items():
        handles += [
            part.register_forward_pre_hook(lambda _m, args, name=name: before(name, args[0])),
            part.register_forward_hook(lambda _m, _a, y, name=name: outputs.append((y, name))),
        ]
    model.replay(rows.ids[:1], rows.labels[:1])
    for handle in handles:
        handle.remove()
    norms = {name for name, part in parts.items() if isinstance(part, ModulatedNorm)}
    acts = {name: read[name] for name, part in parts.items() if isinstance(part, Activation)}
    specs = model.linears()
    assert {s.name: s.norm for s in specs} == {
        s.name: read[s.name] if read[s.name] in norms else "" for s in specs
    }
    assert {s.act: s.name for s in specs if s.act} == acts
    assert {s.consumer: s.act for s in specs if s.act} == {
        name: source for name, source in read.items() if source in acts
    }
    gated = {n for n, m in model.transformer.named_modules() if isinstance(m, GatedFeedForward)}
    assert {s.gated for s in specs} - {""} == gated
    cores = [] if model.no_integer_attention else model.integer_cores()
    assert [s.core for s in specs if s.core] == cores


def test_tables_cover_every_position_of_generation(model):
    """No step of generation or replay reads a static scale past the end of its table."""
    specs = {spec.name: spec for spec in model.linears()}
    seen = {}

    def watch(name):
        def hook(_module, args, _output):
            cursor = model.cursor_of(name)
            length = len(specs[name].groups)
            assert len(specs[name].scale_groups) == length
            if length > 1:
                assert cursor.begin >= 0 and cursor.begin + cursor.tokens <= length, name
                assert args[0].numel() // args[0].shape[-1] % cursor.tokens == 0, name
            positions = range(cursor.begin, cursor.begin + cursor.tokens)
            seen.setdefault(name, set()).update(positions if length > 1 else (0,))

        return hook

    handles = [
        model.transformer.get_submodule(name).register_forward_hook(watch(name)) for name in specs
    ]
    try:
        ids = model.sample_ids(torch.tensor([0, 1]))
        generated, seen = seen, {}
        model.replay(ids, torch.tensor([0, model.null_label]))
    finally:
        for handle in handles:
            handle.remove()
    assert generated.keys() == seen.keys() == specs.keys()
    for name in specs:
        assert generated[name] <= seen[name], f"{name}: replay leaves positions uncalibrated"


def test_the_function_stays_whatever_is_folded(family, rows):
    model = build(family, torch.float64)
    before = model.replay(rows.ids, rows.labels)
    generator = torch.Generator().manual_seed(1)
    for spec in model.linears():
        if spec.fold:
            k = model.transformer.get_submodule(spec.name).in_features
            scale = torch.exp(torch.randn(k, generator=generator, dtype=torch.float64))
            shift = torch.randn(k, generator=generator, dtype=torch.float64)
            apply_transform_(model, spec.name, Transform(scale, shift * spec.shift))
    after = model.replay(rows.ids, rows.labels)
    assert (after - before).abs().max() < 1e-10 * before.abs().max().clamp_min(1)


def test_stress_changes_no_output(family, rows):
    model = build(family, torch.float64)
    before = model.replay(rows.ids, rows.labels)
    stress_(model, 30.0)
    after = model.replay(rows.ids, rows.labels)
    assert (after - before).abs().max() < 1e-9 * before.abs().max().clamp_min(1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_integers_compute_what_the_simulation_says(family, rows, quantized, scheme):
    packed, simulated = quantized(scheme), build(family)
    layers = [m for m in packed.transformer.modules() if isinstance(m, PackedLinear)]
    assert len(layers) == len(packed.linears()) > 0
    quantize_(simulated, scheme, calibration=rows, pack=False)
    a, b = (m.replay(rows.ids, rows.labels) for m in (packed, simulated))
    # A value on the edge of two codes may fall to either side; a wrong table changes far more.
    assert (a - b).square().mean() < 1e-3 * b.square().mean()


def test_more_bits_are_closer(model, rows, quantized):
    exact = model.replay(rows.ids, rows.labels)
    error = {
        scheme: (quantized(scheme).replay(rows.ids, rows.labels) - exact).square().mean().item()
        for scheme in SCHEMES
    }
    assert 0 < error["W8A8"] < error["W6A6"]
    assert error["W8A8"] < error["W4A8"]
    assert error["W8A8"] < 0.05 * exact.square().mean().item()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_checkpoints_reload_to_the_same_bits(family, quantized, rows, scheme, tmp_path):
    model = quantized(scheme)
    model.save_pretrained(tmp_path / "saved")
    again = ptq4arvg.load_quantized(tmp_path / "saved")
    mine, other = model.state_dict(), again.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in mine.items())
    assert torch.equal(model.replay(rows.ids, rows.labels), again.replay(rows.ids, rows.labels))
    assert torch.equal(model.generate([1, 0], seed=4), again.generate([1, 0], seed=4))


@pytest.mark.parametrize("which", ["float", "W8A8"])
def test_an_image_depends_on_its_seed_and_index_alone(model, quantized, which):
    net = model if which == "float" else quantized(which)
    labels = torch.tensor([0, 2, 2, 1])
    together = net.sample_ids(labels, seed=7)
    assert torch.equal(net.sample_ids(labels, seed=7), together)
    assert not torch.equal(net.sample_ids(labels, seed=8), together)
    alone = torch.cat([net.sample_ids(labels[i : i + 1], seed=7, index=i) for i in range(4)])
    picked = torch.tensor([3, 1])
    some = net.sample_ids(labels[picked], seed=7, index=picked)
    for found, wanted in ((alone, together), (some, together[picked])):
        if together.is_floating_point():
            assert_close(found, wanted, atol=1e-3 * together.abs().max().item(), rtol=0)
        else:
            assert torch.equal(found, wanted)


def test_tokens_are_chosen_step_after_step(model):
    if model.continuous:
        pytest.skip("its tokens are drawn by diffusion")
    steps, tokens = [], []

    def choose(logits, step):
        steps.append(step)
        tokens.append(logits.argmax(-1))
        return tokens[-1]

    ids = model.sample_ids(torch.tensor([0, 1]), choose=choose)
    assert steps == list(range(len(steps)))
    assert torch.equal(torch.cat(tokens, 1).sort(1).values, ids.sort(1).values)


def test_rows_are_samples_with_what_a_replay_reads(model):
    labels = torch.tensor([2, 0])
    images = model.decode_ids(model.sample_ids(labels, seed=3))
    assert torch.equal(model.decode_rows(model.sample_rows(labels, seed=3)), images)


def test_images(model):
    state = torch.random.get_rng_state()
    images = model.generate([0, 1, 2], seed=1, batch_size=2)
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state was used"
    side = model.tokenizer.config.image_size
    assert images.shape == (3, 3, side, side) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    with pytest.raises(ValueError, match=rf"label {model.num_classes}; wanted 0 to"):
        model.generate([model.num_classes])
