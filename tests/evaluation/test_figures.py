"""Figures over gathered features: each equals what its own function says, or gives a reason."""

import pytest
import torch

from ptq4arvg.evaluation.figures import Features, Figure, ImageReference, image_figures, moments
from ptq4arvg.evaluation.frechet import frechet_distance
from ptq4arvg.evaluation.inception_score import inception_score
from ptq4arvg.evaluation.manifold import precision_recall

ALL = ("frechet", "spatial_frechet", "score", "precision", "recall")


def normal(n, size, seed):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def features():
    found = Features()
    for part in range(3):
        found.add(normal(10, 4, part), normal(10, 5, 9 + part).softmax(1), normal(10, 6, 20 + part))
    return found


def reference(**more):
    rows = normal(40, 4, 7)
    return ImageReference("r", "0" * 64, moments([rows]), features=rows, **more)


def test_each_figure_is_that_of_its_function(features):
    spatial = moments([normal(40, 6, 8)])
    against = reference(spatial=spatial)
    got = image_figures(features, against, ALL, resamples=10)
    assert list(got) == list(ALL)
    pool, other = torch.cat(features.pool), torch.cat(features.spatial)
    pairs = ((pool, against.pool, "frechet"), (other, spatial, "spatial_frechet"))
    for rows, (mean, cov), name in pairs:
        expected = frechet_distance(rows.double().mean(0), torch.cov(rows.double().T), mean, cov)
        assert got[name].value == pytest.approx(expected, rel=1e-9)
    assert got["score"].value == inception_score(torch.cat(features.probabilities))
    found = precision_recall(against.features, pool)
    assert (got["precision"].value, got["recall"].value) == found[:2]
    for figure in got.values():
        assert figure.interval[0] <= figure.value <= figure.interval[1]
        assert figure.note == ""


def test_what_the_reference_lacks_has_a_reason(features):
    statistics = ImageReference("r", "0" * 64, reference().pool)
    got = image_figures(features, statistics, ALL, resamples=0)
    assert got["spatial_frechet"] == Figure(None, note="the reference has no spatial statistics "
                                            "(mu_s, sigma_s)")  # fmt: skip
    assert got["recall"].note == "the reference has statistics only, no images"
    assert got["frechet"].interval is None


def test_only_what_is_asked_for_is_taken(features):
    assert list(image_figures(features, reference(), ("score",), resamples=0)) == ["score"]
    with pytest.raises(ValueError, match="30 images, figures fid; wanted at least 2 images and"):
        image_figures(features, reference(), ("fid",))
    with pytest.raises(ValueError, match="0 images, figures score"):
        image_figures(Features(), reference(), ("score",))
