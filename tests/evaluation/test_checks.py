"""What an evaluation cannot do is said before anything is drawn."""

import numpy as np
import pytest
import torch

from ptq4arvg.evaluation.drawing import Drawing
from ptq4arvg.evaluation.protocol import find_protocol
from ptq4arvg.evaluation.run import evaluate, evaluate_samples
from ptq4arvg.evaluation.spaces import bundled_reference, bundled_space
from ptq4arvg.models import load_model

SMOKE = find_protocol("smoke").with_(images=6, compared=3)


@pytest.fixture(scope="module")
def space():
    return bundled_space()


@pytest.fixture(scope="module")
def model():
    return load_model("var-tiny")


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch, model):
    def images(*given, **more):
        raise AssertionError("something was drawn")

    monkeypatch.setattr(Drawing, "images", images)
    monkeypatch.setattr(model, "sample_ids", images)


def test_a_metric_of_another_space(model, space, tmp_path):
    protocol = SMOKE.with_(metrics=("fid", "bundled_score", "kl"))
    message = r"measures fid, which the bundled .* it has bundled_frechet, .*_accuracy, and of .*kl"
    with pytest.raises(ValueError, match=message):
        evaluate(model, protocol, space, bundled_reference())
    with pytest.raises(ValueError, match=message):
        evaluate_samples(tmp_path / "s.npz", protocol, space, bundled_reference())


def test_a_float_model_that_is_quantized(model, space, monkeypatch):
    class Report:
        scheme = "W6A6"

    monkeypatch.setattr(model, "report", Report())
    message = r"float_model is var-tiny quantized to W6A6; .*load_model\('var-tiny'\)"
    with pytest.raises(ValueError, match=message):
        evaluate(model, SMOKE, space, bundled_reference(), model)


@pytest.mark.parametrize("images", [2, 3])
def test_too_few_images_for_precision_and_recall(model, space, images, tmp_path):
    protocol = SMOKE.with_(images=images)
    message = rf"{images} images against {images}; bundled_precision and bundled_recall want at le"
    with pytest.raises(ValueError, match=message):
        evaluate(model, protocol, space, bundled_reference())
    reference = bundled_reference(torch.zeros(3, 128))
    for count in (images, 6):
        with pytest.raises(ValueError, match=rf"smoke: {count} images against 3; "):
            evaluate(model, SMOKE.with_(images=count), space, reference)
    np.savez(tmp_path / "s.npz", np.zeros((images, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=rf"smoke: {images} images against 3; "):
        evaluate_samples(tmp_path / "s.npz", protocol, space, reference)
    found = evaluate_samples(tmp_path / "s.npz", protocol, space, bundled_reference(), resamples=0)
    assert found.figures["bundled_precision"].value is None
    assert found.figures["bundled_frechet"].value > 0


@pytest.mark.parametrize("resamples", [-1, 1])
def test_resamples_without_an_interval(model, space, resamples):
    with pytest.raises(ValueError, match=f"{resamples} resamples; wanted at least 2 .* or 0"):
        evaluate(model, SMOKE, space, bundled_reference(), resamples=resamples)
    with pytest.raises(ValueError, match=f"{resamples} resamples; wanted at least 2 .* or 0"):
        evaluate_samples("s.npz", SMOKE, space, bundled_reference(), resamples=resamples)


def test_files_that_cannot_be_written(model, space, tmp_path):
    with pytest.raises(ValueError, match="is a folder; wanted the name of a file"):
        evaluate(model, SMOKE, space, bundled_reference(), samples=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; wanted the name of a folder"):
        evaluate(model, SMOKE, space, bundled_reference(), parts=tmp_path / "file")
