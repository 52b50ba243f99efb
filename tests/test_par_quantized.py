"""PAR in integers: every scheme on the golden models with calibration rows of their own."""

import pytest
import torch

import ptq4arvg
from ptq4arvg.models import par
from ptq4arvg.models.stress import stress_
from ptq4arvg.nn import PackedLinear, QuantAttention
from ptq4arvg.pipeline import quantize_
from tests.golden_cases import relative_error
from tests.par_cases import find_par_cases, small_model

SCHEMES = ("W8A8", "W6A6", "W4A8")


class Subject:
    """A model to quantize, its calibration rows, and other rows with their float logits."""

    def __init__(self, make):
        self.make = make
        model = make()
        self.rows = ptq4arvg.calibrate(model, samples=32, keep=16)
        classes = torch.arange(8) % model.num_classes
        self.ids = model.sample_ids(classes, seed=77).repeat(2, 1)
        self.labels = torch.cat([classes, torch.full_like(classes, model.null_label)])
        self.logits = model.replay(self.ids, self.labels)

    def error(self, model):
        return relative_error(model.replay(self.ids, self.labels), self.logits)


MAKERS = {case.name: case.build for case in find_par_cases()}
MAKERS["llamagen, wide heads"] = lambda: small_model(grid=6, embed_dim=200)


@pytest.fixture(scope="module", params=MAKERS)
def subject(request):
    return Subject(MAKERS[request.param])


@pytest.fixture(scope="module")
def stressed(subject):
    def make():
        model = subject.make()
        stress_(model, 30)
        return model

    return Subject(make)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_linear_becomes_an_integer_one(subject, scheme):
    model = subject.make()
    report = quantize_(model, scheme, calibration=subject.rows)  # checks the integer path
    assert [layer.name for layer in report.layers] == [spec.name for spec in model.linears()]
    for spec in model.linears():
        assert isinstance(model.transformer.get_submodule(spec.name), PackedLinear)
    assert all(layer.kernel != "simulated" for layer in report.layers)
    assert model.generate([0, 1]).isfinite().all()


def test_scaling_beats_rounding_on_a_stressed_model(stressed):
    errors = {}
    for scheme in ("W8A8", "W6A6"):
        for method in ("ptq4arvg", "rtn"):
            model = stressed.make()
            quantize_(model, scheme, method, stressed.rows)
            errors[scheme, method] = stressed.error(model)
        assert errors[scheme, "ptq4arvg"] < errors[scheme, "rtn"]
    assert errors["W8A8", "ptq4arvg"] < errors["W6A6", "ptq4arvg"]


def test_the_scale_of_the_gated_product_is_folded(subject):
    model = subject.make()
    report = quantize_(model, "W6A6", calibration=subject.rows)
    folded = [layer for layer in report.layers if layer.role == "fc2"]
    assert folded and all(layer.transform["smooth"] for layer in folded)


def decoded(model, ids, labels):
    """Logits [B, N, V] of cached decoding, forced to ids [B, N], in raster order."""
    raster, seen = model.config.order.raster(), []
    parts = iter(ids[:, raster].split(model.config.order.steps, 1))

    def forced(logits, _step):
        seen.append(logits)
        return next(parts)

    model.sample_ids(labels, cfg=1, choose=forced)
    return torch.cat(seen, 1)[:, raster.argsort()]


@pytest.mark.parametrize("options", [{}, {"sink": "float"}, {"attention": "simulated"}], ids=str)
def test_decoding_reads_the_scales_of_its_positions(subject, options):
    """With scales of its own for every position, the quantized model decodes what it replays."""
    model = subject.make()
    quantize_(model, "W6A6", calibration=subject.rows, granularity="position", pack=False,
              **options)  # fmt: skip
    model.double()  # no rounding that would move a value over the edge of a level
    cores = [model.transformer.get_submodule(name) for name in model.attention_cores()]
    simulated = [isinstance(core, QuantAttention) for core in cores]
    assert all(simulated) if "attention" in options else not any(simulated)
    ids, labels = (part[: len(part) // 2] for part in (subject.ids, subject.labels))
    replayed = model.replay(ids, labels)
    assert (decoded(model, ids, labels) - replayed).abs().max() < 1e-9 * replayed.abs().max()


def test_the_epilogue_changes_no_bit(subject, monkeypatch):
    model = subject.make()
    quantize_(model, "W8A8", "rtn", subject.rows)
    rows = [part[: len(part) // 2] for part in (subject.ids, subject.labels)]
    fused = decoded(model, *rows)
    monkeypatch.setattr(par, "add_gated", lambda linear, x, residual, _gate: residual + linear(x))
    assert torch.equal(fused, decoded(model, *rows))


def test_compat_research_is_refused():
    model = small_model()
    rows = ptq4arvg.calibrate(model, samples=4, keep=2)
    with pytest.raises(ValueError, match=r"'research' does not reproduce .*family 'par' of small"):
        quantize_(model, "W6A6", calibration=rows, compat="research")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_checkpoint_reloads_to_the_same_bits(subject, scheme, tmp_path):
    """Also the biases that folding creates: of norms, and of a linear that stays in float."""
    model = subject.make()
    # An input that is rotated as it was folds nothing.
    quantize_(model, scheme, calibration=subject.rows, ignore=["layers.0.attention.wqkv"],
              rotation="none")  # fmt: skip
    kept = model.transformer.layers[0].attention.wqkv
    assert kept.bias is not None and model.transformer.norm.bias is not None
    ptq4arvg.save_quantized(model, tmp_path / "q")
    again = ptq4arvg.load_quantized(tmp_path / "q")
    assert torch.equal(again.replay(subject.ids, subject.labels),
                       model.replay(subject.ids, subject.labels))  # fmt: skip
    labels = torch.tensor([0, 1])
    assert torch.equal(again.sample_ids(labels), model.sample_ids(labels))
    assert again.report.to_dict() == model.report.to_dict()
