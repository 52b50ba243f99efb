"""Evaluations of small models: what is drawn, what is measured, what is left open and why."""

import numpy as np
import pytest
import torch

import ptq4arvg
from ptq4arvg.evaluation import run
from ptq4arvg.evaluation.figures import Figure, ImageReference, moments
from ptq4arvg.evaluation.frechet import frechet_distance
from ptq4arvg.evaluation.protocol import find_protocol
from ptq4arvg.evaluation.run import evaluate, evaluate_samples, protocol_labels
from ptq4arvg.evaluation.samples import SampleFile, to_bytes
from ptq4arvg.evaluation.spaces import bundled_reference, bundled_space
from ptq4arvg.models.registry import build_model
from tests.models.tiny import TINY

SMOKE = find_protocol("smoke").with_(images=6, compared=3)


@pytest.fixture(scope="module")
def space():
    return bundled_space()


def small(family):
    return build_model(family, TINY[family], seed=0)


def quantized(family):
    model = small(family)
    calibration = ptq4arvg.calibrate(model, samples=4, keep=4, seed=1, select="first")
    ptq4arvg.quantize_(model, "W8A8", "rtn", calibration)
    return model


@pytest.fixture
def bundled(monkeypatch):
    """A small model that the bundled reference is taken to be for."""
    monkeypatch.setattr(run, "BUNDLED", ("var", "mar"))


def test_labels_take_the_classes_in_turn():
    assert protocol_labels(SMOKE, 4).tolist() == [0, 1, 2, 3, 0, 1]
    labels = protocol_labels(find_protocol("var-paper"), 1000)
    assert torch.equal(labels.bincount(), torch.full((1000,), 50))
    assert torch.equal(labels[:5000].bincount(), torch.full((1000,), 5))
    with pytest.raises(ValueError, match=r"50 images of each of 1000 classes; the model has 32"):
        protocol_labels(find_protocol("var-paper"), 32)
    with pytest.raises(ValueError, match="1 images; wanted at least 2"):
        protocol_labels(SMOKE.with_(images=1), 4)


def test_the_float_model_has_pictures_but_no_divergence(space, bundled, tmp_path):
    model, told = small("var"), set()
    got = evaluate(model, SMOKE, space, bundled_reference(), samples=tmp_path / "s.npz", seed=3,
                   resamples=5, batch_size=4, progress=lambda *a: told.add(a[0]))  # fmt: skip
    assert (got.model, got.scheme, got.method, got.seed) == ("var", "float", "float", 3)
    assert list(got.figures) == list(SMOKE.metrics)
    assert got.figures["kl"] == Figure(None, note="this is the float model")
    for name in ("frechet", "score", "precision", "recall", "accuracy"):
        figure = got.figures[f"bundled_{name}"]
        assert figure.interval[0] <= figure.value <= figure.interval[1], name
    assert {"generate", "generate float", "bootstrap"} <= told
    # the images are those of ``generate``, and measuring their file gives the same figures
    images = to_bytes(model.generate([0, 1, 2, 3, 4, 0], seed=3))
    file = SampleFile(tmp_path / "s.npz")
    assert torch.equal(next(file.batches(6)), images)
    again = evaluate_samples(tmp_path / "s.npz", SMOKE, space, bundled_reference(), 3, 5)
    for name in ("bundled_frechet", "bundled_score"):
        assert again.figures[name].value == pytest.approx(got.figures[name].value, rel=1e-6)
    assert again.figures["kl"].note == "these are images without a model"
    assert "not bundled" in again.figures["bundled_recall"].note
    assert got.sampling == {"cfg": 1.5, "top_k": 900, "top_p": 0.96}


def test_a_quantized_model_is_compared_with_its_float_one(space, bundled):
    model, float_model = quantized("var"), small("var")
    state = torch.get_rng_state()
    got = evaluate(model, SMOKE, space, bundled_reference(), float_model, resamples=0)
    assert torch.equal(torch.get_rng_state(), state)
    figures = got.figures
    assert (got.scheme, got.method) == ("W8A8", "rtn")
    assert figures["kl"].value > 0
    assert 0 < figures["top1"].value <= 1
    assert 0 < figures["relative_error"].value < 1
    assert 0 <= figures["first_divergence"].value <= 1
    assert "of 14 tokens" in figures["first_divergence"].note
    assert figures["sqnr_db"].value == model.report.sqnr_db
    assert figures["bundled_precision"].note == "against other images of the float model"
    again = evaluate(model, SMOKE, space, bundled_reference(), float_model, resamples=0)
    assert again.figures == figures


@pytest.mark.parametrize("whose", ["quantized", "quantized and float", "float"])
def test_the_reference_given_is_the_one_measured_against(space, bundled, whose):
    """In the bundled space, too, where the float model's images stand in for those it lacks."""
    model = small("var") if whose == "float" else quantized("var")
    float_model = small("var") if "and" in whose else None
    mean, cov = torch.full((128,), 5.0).double(), torch.eye(128).double()
    protocol = SMOKE.with_(metrics=("bundled_frechet", "bundled_precision"))
    reference = ImageReference("own.npz", "c" * 64, (mean, cov))
    got = evaluate(model, protocol, space, reference, float_model, resamples=0)
    assert (got.reference, got.reference_hash) == ("own.npz", "c" * 64)
    images = to_bytes(model.generate([0, 1, 2, 3, 4, 0], seed=run.SEED))
    wanted = frechet_distance(*moments(space.gather([images], 6).pool), mean, cov)
    assert got.figures["bundled_frechet"].value == pytest.approx(wanted, rel=1e-6)
    precision = got.figures["bundled_precision"]
    assert (precision.value is None) == (whose == "quantized")
    own = ImageReference("own.npz", "c" * 64, (mean, cov), features=torch.zeros(4, 128))
    got = evaluate(model, protocol, space, own, float_model, resamples=0)
    assert got.figures["bundled_precision"] == Figure(0.0)


def test_without_the_float_model_its_figures_are_left_open(space, bundled):
    got = evaluate(quantized("var"), SMOKE, space, bundled_reference(), resamples=0).figures
    assert got["kl"].note == "it needs the float model's weights"
    assert got["sqnr_db"].value is not None
    assert got["bundled_frechet"].value is not None
    assert got["bundled_precision"].value is None


def test_continuous_tokens_have_no_kl(space, bundled):
    got = evaluate(quantized("mar"), SMOKE, space, bundled_reference(), small("mar"), resamples=0)
    for name in ("kl", "top1", "first_divergence"):
        assert got.figures[name].value is None
        assert "tokens are continuous" in got.figures[name].note
    assert 0 < got.figures["relative_error"].value < 1
    assert got.sampling["num_iter"] == 4


def test_other_pictures_are_not_measured_in_the_bundled_space(space, tmp_path):
    got = evaluate(quantized("var"), SMOKE, space, bundled_reference(), small("var"), resamples=0)
    assert got.figures["bundled_frechet"].value is None
    assert "makes other pictures" in got.figures["bundled_frechet"].note
    assert got.figures["kl"].value > 0
    with pytest.raises(ValueError, match=r"smoke draws no images of var.*--protocol var-paper"):
        evaluate(small("var"), SMOKE, space, bundled_reference(), samples=tmp_path / "s.npz")


def paper(name, **more):
    """A protocol of the paper, few images of a small model, in the bundled space for speed."""
    return find_protocol(name).with_(images=4, space="bundled", metrics=("bundled_score",), **more)


def test_a_protocol_sets_the_sampling(space, bundled, monkeypatch):
    model, seen = small("var"), []
    sample = model.sample_ids
    monkeypatch.setattr(model, "sample_ids", lambda *a, **k: seen.append(k) or sample(*a, **k))
    protocol = paper("var-paper", size=6, cfg=2.0)
    got = evaluate(model, protocol, space, bundled_reference(), resamples=0, batch_size=3)
    wanted = {"cfg": 2.0, "top_k": 900, "top_p": 0.96}
    # two batches of even steps, whoever draws them
    assert [k.pop("index").tolist() for k in seen[:2]] == [[0, 2], [1, 3]]
    assert seen[:2] == 2 * [wanted | {"seed": run.SEED}]
    assert got.sampling == wanted


def test_only_protocols_that_resize_take_images_of_another_size(space, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "BUNDLED", ("var", "par"))
    path = tmp_path / "s.npz"
    evaluate(small("par"), paper("par-paper", size=5), space, bundled_reference(), samples=path,
             resamples=0)  # fmt: skip
    assert SampleFile(path).shape == (4, 5, 5, 3)
    with pytest.raises(ValueError, match=r"5 pixels and does not resize; var makes 6"):
        evaluate(small("var"), paper("var-paper", size=5), space, bundled_reference())


def test_a_protocol_for_another_model_is_an_error(space):
    with pytest.raises(ValueError, match="is for rar models; var is of the family var"):
        evaluate(small("var"), paper("rar-paper"), space, bundled_reference())
    protocol = SMOKE.with_(num_iter=3)
    with pytest.raises(ValueError, match="sets num_iter, which var does not have; it has cfg, top"):
        evaluate(small("var"), protocol, space, bundled_reference())
    protocol = find_protocol("var-paper").with_(images=4)
    with pytest.raises(ValueError, match="in the inception feature space; this is the bundled"):
        evaluate(small("var"), protocol, space, bundled_reference())


def test_samples_of_another_protocol_are_an_error(space, tmp_path):
    np.savez(tmp_path / "s.npz", np.zeros((5, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="holds 5 images of 8 x 8 pixels; smoke wants 6 of 8 x 8"):
        evaluate_samples(tmp_path / "s.npz", SMOKE, space, bundled_reference())
    with pytest.raises(ValueError, match="wants 5 of 16 x 16"):
        evaluate_samples(tmp_path / "s.npz", SMOKE.with_(images=5, size=16), space,
                         bundled_reference())  # fmt: skip
