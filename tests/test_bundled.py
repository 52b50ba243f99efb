"""The bundled models: what they draw, and what is left of it in integers."""

import functools

import pytest
import torch

import ptq4arvg
from ptq4arvg.evaluation import Yardstick, draw_images, load_features
from ptq4arvg.models import BUNDLED
from ptq4arvg.nn import PackedLinear

IMAGES = 32


def quiet(*_):
    pass


@pytest.fixture(scope="module", params=BUNDLED)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def drawn(name):
    """(float model, yardstick, images of one of each class)."""
    model = ptq4arvg.load_model(name)
    labels = torch.arange(IMAGES) % model.num_classes
    ids, images, _ = draw_images(model, labels, 5, quiet, "")
    return model, Yardstick.of(model, labels, ids, 8, seed=0), images


@pytest.fixture(scope="module")
def quantized(name):
    rows = ptq4arvg.calibrate(ptq4arvg.load_model(name), samples=32, keep=16, seed=1)

    @functools.cache
    def make(scheme, method):
        model = ptq4arvg.load_model(name)
        ptq4arvg.quantize_(model, scheme, method, rows)
        return model

    return make


def test_samples_look_like_their_class(drawn):
    _, yardstick, images = drawn
    predicted = load_features()(images).argmax(1)
    assert (predicted == yardstick.labels).double().mean() > 0.4  # by chance 1 of 32


@pytest.mark.parametrize("scheme", ["W8A8", "W6A6", "W4A8"])
def test_all_linears_run_in_integers_and_stay_close(drawn, quantized, scheme):
    float_model, yardstick, images = drawn
    model = quantized(scheme, "ptq4arvg")
    for spec in model.linears():
        assert isinstance(model.transformer.get_submodule(spec.name), PackedLinear)
    found = yardstick.measure(model, images, quiet)
    assert found["relative_error"] < {"W8A8": 0.01, "W6A6": 0.06, "W4A8": 0.1}[scheme]
    half = yardstick.measure(float_model, images, quiet)["weight_bytes"]
    assert found["weight_bytes"] < {"W8A8": 0.53, "W6A6": 0.4, "W4A8": 0.28}[scheme] * half


def test_the_method_is_closer_than_rounding_to_nearest(drawn, quantized):
    _, yardstick, images = drawn
    errors = {
        method: yardstick.measure(quantized("W6A6", method), images, quiet)["relative_error"]
        for method in ("ptq4arvg", "rtn")
    }
    assert errors["ptq4arvg"] < errors["rtn"]
