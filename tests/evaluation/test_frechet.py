"""The Frechet distance against closed forms, streaming statistics against whole ones."""

import math

import pytest
import torch

from ptq4arvg.evaluation import FeatureStatistics, distance_interval, frechet_distance


def covariance(size, seed):
    a = torch.randn(size, 3 * size, generator=torch.Generator().manual_seed(seed)).double()
    return a @ a.T / (3 * size)


def test_a_distribution_is_at_distance_zero_from_itself():
    cov = covariance(16, 0)
    mean = torch.linspace(-2, 2, 16)
    assert frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("images", [2, 5, 19])
def test_fewer_images_than_features(images):
    """Covariances without full rank have eigenvalues of zero, but for rounding."""
    for seed in range(20):
        x = torch.randn(images, 20, generator=torch.Generator().manual_seed(seed))
        seen = FeatureStatistics().update(x)
        assert 0 <= seen.distance(seen.mean, seen.covariance) < 1e-5


def test_commuting_covariances_have_a_closed_form():
    a, b = torch.rand(12).double() + 0.1, torch.rand(12).double() + 0.1
    rotation = torch.linalg.qr(covariance(12, 1))[0]
    m1, m2 = torch.zeros(12), torch.full((12,), 0.5)
    cov1 = rotation @ torch.diag(a) @ rotation.T
    cov2 = rotation @ torch.diag(b) @ rotation.T
    expected = 12 * 0.25 + (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet_distance(m1, cov1, m2, cov2) == pytest.approx(expected, rel=1e-12)


def test_one_dimension():
    distance = frechet_distance(
        torch.tensor([1.0]), torch.tensor([[4.0]]), torch.tensor([3.0]), torch.tensor([[9.0]])
    )
    assert distance == pytest.approx(4 + 1)


def test_distance_is_symmetric_and_equals_the_non_symmetric_root():
    c1, c2 = covariance(8, 2), covariance(8, 3)
    m1, m2 = torch.zeros(8), torch.ones(8)
    distance = frechet_distance(m1, c1, m2, c2)
    assert distance == pytest.approx(frechet_distance(m2, c2, m1, c1), rel=1e-10)
    # tr sqrt(C1 C2) by the eigenvalues of the product itself, which are real and positive
    cross = torch.linalg.eigvals(c1 @ c2).real.sqrt().sum()
    assert distance == pytest.approx((8 + c1.trace() + c2.trace() - 2 * cross).item(), rel=1e-10)


def test_singular_covariance_is_allowed():
    x = torch.randn(5, 20, generator=torch.Generator().manual_seed(4))  # rank 4 in 20 dimensions
    stats = FeatureStatistics().update(x)
    distance = stats.distance(torch.zeros(20), torch.eye(20))
    assert math.isfinite(distance)
    assert distance > 0


@pytest.mark.parametrize(
    ("mean", "cov"), [(torch.zeros(3), torch.eye(4)), (torch.zeros(2, 2), torch.eye(4))]
)
def test_shapes_that_disagree_are_an_error(mean, cov):
    with pytest.raises(ValueError, match=r"wanted \[D\], \[D, D\]"):
        frechet_distance(mean, cov, torch.zeros(4), torch.eye(4))


def test_values_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(torch.full((2,), torch.nan), torch.eye(2), torch.zeros(2), torch.eye(2))


def test_streaming_statistics_equal_those_of_the_whole():
    x = 100 + torch.randn(37, 6, generator=torch.Generator().manual_seed(5)).double()
    stats = FeatureStatistics()
    for part in x.split([1, 10, 0, 20, 6]):
        stats.update(part)
    assert stats.count == 37
    torch.testing.assert_close(stats.mean, x.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(stats.covariance, torch.cov(x.T), rtol=1e-10, atol=1e-12)


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 images"):
        _ = FeatureStatistics().update(torch.zeros(1, 3)).covariance
    with pytest.raises(ValueError, match=r"wanted \[n, D\]"):
        FeatureStatistics().update(torch.zeros(3))


def test_interval_holds_the_distance_and_depends_on_its_seed_only():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(6)) * 1.5
    mean, cov = torch.zeros(5), torch.eye(5)
    state = torch.get_rng_state()
    low, high = distance_interval(x, mean, cov, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert low < FeatureStatistics().update(x).distance(mean, cov) < high
    assert distance_interval(x, mean, cov, seed=1) == (low, high)
    assert distance_interval(x, mean, cov, seed=2) != (low, high)
    with pytest.raises(ValueError, match="n > 1"):
        distance_interval(x[:1], mean, cov)


def test_interval_narrows_with_more_images():
    x = torch.randn(800, 4, generator=torch.Generator().manual_seed(7))
    mean, cov = torch.zeros(4), torch.eye(4)

    def width(n):
        low, high = distance_interval(x[:n], mean, cov)
        return high - low

    assert width(800) < width(50) / 2
