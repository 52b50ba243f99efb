"""Precision and recall against loops in float64 and on sets whose balls are known."""

import numpy as np
import pytest
import torch

from ptq4arvg.evaluation.manifold import manifold_radii, precision_recall


def features(n, size=6, seed=0, shift=0.0):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) + shift


def slow(reference, samples, k):
    """The definition, one pair at a time."""
    a, b = reference.double().numpy(), samples.double().numpy()

    def radii(x):
        return [sorted(np.sum((x - row) ** 2, 1))[k] for row in x]

    def inside(points, centres):
        reach = radii(centres)
        return [any(np.sum((c - p) ** 2) <= r for c, r in zip(centres, reach, strict=True))
                for p in points]  # fmt: skip

    return inside(b, a), inside(a, b)


@pytest.mark.parametrize("block", [4, 7, 4096])
@pytest.mark.parametrize("k", [1, 3])
def test_equals_the_definition_in_blocks_of_any_size(block, k):
    reference, samples = features(25, seed=1), features(40, seed=2, shift=0.7)
    within, covered = slow(reference, samples, k)
    assert 0 < sum(within) < 40
    got = precision_recall(reference, samples, k, block)
    assert got.samples_inside.tolist() == within
    assert got.reference_inside.tolist() == covered
    assert got.precision == np.mean(within)
    assert got.recall == np.mean(covered)


def test_radii_of_points_on_a_line():
    line = torch.tensor([[0.0], [1], [3], [7], [15]])
    assert manifold_radii(line, 1).tolist() == [1, 1, 4, 16, 64]
    assert manifold_radii(line, 3, block=2).tolist() == [49, 36, 16, 49, 196]


def test_a_set_covers_itself_and_nothing_far_away():
    x = features(30)
    assert precision_recall(x, x)[:2] == (1, 1)
    assert precision_recall(x, x + 100)[:2] == (0, 0)


def test_few_modes_are_precise_but_do_not_recall():
    reference = torch.cat([features(40, seed=3), features(40, seed=4, shift=50)])
    got = precision_recall(reference, features(40, seed=5))
    assert got.precision > 0.8
    assert got.recall <= 0.5


def test_features_far_from_the_origin_lose_nothing():
    reference, samples = features(25, seed=1), features(40, seed=2, shift=0.7)
    far = precision_recall(reference.double() + 1e4, samples.double() + 1e4)
    near = precision_recall(reference.double(), samples.double())
    assert torch.equal(far.samples_inside, near.samples_inside)
    in_float32 = precision_recall((reference + 1000).float(), (samples + 1000).float())
    assert in_float32.precision == pytest.approx(near.precision, abs=1 / 40)


def test_intervals_hold_the_shares():
    got = precision_recall(features(50, seed=1), features(80, seed=2, shift=0.7))
    precision, recall = got.intervals(seed=1)
    assert precision[0] < got.precision < precision[1] <= 1
    assert recall[0] <= got.recall <= recall[1] <= 1
    assert got.intervals(seed=1) == (precision, recall)


def test_sets_that_cannot_be_compared_are_an_error():
    with pytest.raises(ValueError, match=r"reference \[9, 6\], samples \[9, 5\]"):
        precision_recall(features(9), features(9, 5))
    with pytest.raises(ValueError, match="n > 3, so that each has 3 neighbours"):
        precision_recall(features(3), features(9))


def test_copies_of_one_image_are_within_each_other():
    """Their balls are points, which hold themselves."""
    one, other = torch.ones(5, 3), torch.ones(5, 3).mul(torch.tensor([1.0, 1, 2]))
    assert precision_recall(one, one)[:2] == (1, 1)
    assert precision_recall(one, other)[:2] == (0, 0)
