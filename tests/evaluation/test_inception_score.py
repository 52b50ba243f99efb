"""The Inception Score against closed forms and a plain loop in float64."""

import math

import numpy as np
import pytest
import torch

from ptq4arvg.evaluation.inception_score import inception_score, score_interval


def probabilities(n, classes, seed=0, sharp=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(n, classes, generator=generator)).softmax(1)


def test_least_and_most():
    assert inception_score(torch.full((6, 4), 0.25)) == pytest.approx(1, rel=1e-12)
    assert inception_score(torch.eye(8)) == pytest.approx(8, rel=1e-12)
    assert inception_score(torch.eye(8)[[0, 0, 3, 3]]) == pytest.approx(2, rel=1e-12)


def test_two_classes_in_closed_form():
    q = 0.9
    entropy = -(q * math.log(q) + (1 - q) * math.log(1 - q))
    score = inception_score(torch.tensor([[q, 1 - q], [1 - q, q]], dtype=torch.float64))
    assert score == pytest.approx(2 * math.exp(-entropy), rel=1e-12)


def test_equals_a_loop_over_images_and_splits():
    p = probabilities(23, 7).double().numpy()
    scores = []
    for begin in range(0, 23, 10):
        part = p[begin : begin + 10]
        mean = part.mean(0)
        divergences = [sum(row[c] * np.log(row[c] / mean[c]) for c in range(7)) for row in part]
        scores.append(np.exp(np.mean(divergences)))
    assert inception_score(torch.from_numpy(p), split=10) == pytest.approx(np.mean(scores), 1e-12)


def test_fifty_thousand_images_make_ten_splits():
    p = torch.eye(2)[torch.arange(50_000) // 5000 % 2]  # each split has one class only
    assert inception_score(p) == pytest.approx(1)
    assert inception_score(p, split=50_000) == pytest.approx(2)


def test_interval_holds_the_score_and_the_number_of_classes_bounds_it():
    p = probabilities(60, 5)
    low, high = score_interval(p, seed=1)
    assert 1 <= low < inception_score(p) < high <= 5
    assert score_interval(p, seed=1) == (low, high)
    assert score_interval(torch.eye(3)[[0, 1, 2] * 9])[1] == 3
    assert score_interval(probabilities(60, 5, sharp=1e-3))[0] >= 1
    low, high = score_interval(p, split=10)
    assert low < inception_score(p, split=10) < high < inception_score(p)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.randn(3, 4), "no distribution"),
        (torch.tensor([[1.5, -0.5]]), "no distribution"),
        (torch.full((2, 4), 0.5), "no distribution"),
        (torch.full((4,), 0.25), r"wanted \[n, classes\]"),
        (torch.empty(0, 4), "n > 0"),
    ],
)
def test_other_values_are_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        inception_score(wrong)
