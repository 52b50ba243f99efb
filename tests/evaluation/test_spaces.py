"""Feature spaces and their references: ADM's files with statistics, with images, with both."""

import numpy as np
import pytest
import torch

from ptq4arvg.evaluation.features import load_features, load_reference
from ptq4arvg.evaluation.figures import Features, moments
from ptq4arvg.evaluation.inception import InceptionNetwork
from ptq4arvg.evaluation.spaces import (
    INCEPTION_FIGURES,
    FeatureSpace,
    bundled_reference,
    bundled_space,
    inception_space,
    read_reference,
)
from tests.evaluation import graphs


@pytest.fixture(scope="module")
def space():
    return bundled_space()


def pixels(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)


def test_the_bundled_space_sees_what_its_network_sees(space):
    images = pixels(5)
    features = Features()
    classes = space.look(images, features)
    network, x = load_features(), images.permute(0, 3, 1, 2).float() / 255
    assert torch.equal(features.pool[0], network.features(x))
    assert torch.equal(features.probabilities[0], network(x).softmax(1))
    assert torch.equal(classes, network(x).argmax(1))
    assert features.spatial == []
    assert all(name.startswith("bundled") for name in space.figures)


def test_gathering_tells_its_progress_and_does_not_depend_on_batches(space):
    images, seen = pixels(5), []
    parts = space.gather(images.split(2), 5, lambda *a: seen.append(a))
    assert seen == [("features", 2, 5), ("features", 4, 5), ("features", 5, 5)]
    whole = space.gather([images], 5)
    torch.testing.assert_close(torch.cat(parts.pool), whole.pool[0])
    assert len(parts) == 5


def test_the_bundled_reference_has_no_images_but_takes_some(space):
    assert "not bundled" in bundled_reference().no_features
    assert torch.equal(bundled_reference().pool[0], load_reference()[0])
    with_features = bundled_reference(torch.ones(4, 128))
    assert with_features.features.shape == (4, 128)
    assert with_features.hash == bundled_reference().hash


def test_statistics_are_read_as_they_are(space, tmp_path):
    mean, cov = (t.numpy() for t in load_reference())
    path = tmp_path / "stats.npz"
    np.savez(path, mu=mean, sigma=cov, mu_s=mean[:3], sigma_s=cov[:3, :3])
    got = read_reference(path, space)
    assert np.array_equal(got.pool[0], mean)
    assert np.array_equal(got.pool[1], cov)
    assert np.array_equal(got.spatial[1], cov[:3, :3])
    assert got.features is None
    np.savez(path, mu=mean, sigma=cov + 1e-9)
    other = read_reference(path, space)
    assert other.spatial is None
    assert other.hash != got.hash


def test_images_give_statistics_and_features(space, tmp_path):
    images = pixels(9)
    path = tmp_path / "images.npz"
    np.savez(path, images.numpy())
    got = read_reference(path, space)
    pool = space.gather([images], 9).pool[0]
    torch.testing.assert_close(got.features, pool)
    torch.testing.assert_close(got.pool[1], moments([pool])[1])
    mean, cov = (t.numpy() for t in load_reference())
    np.savez(path, images.numpy(), mu=mean, sigma=cov)
    both = read_reference(path, space)
    assert np.array_equal(both.pool[0], mean)  # those of the file, not of its few images
    assert both.features.shape == (9, 128)
    assert read_reference(path, space, images=False).features is None


def test_other_files_are_an_error(space, tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, labels=np.zeros(3), mu=np.zeros(128))
    with pytest.raises(ValueError, match="holds labels, mu; wanted mu and sigma, or images"):
        read_reference(path, space)
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
    with pytest.raises(ValueError, match=r"mu \[2048\].* not of the bundled features"):
        read_reference(path, space)
    np.savez(path, mu=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read as a reference"):
        read_reference(path, space)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="cannot be read as a reference"):
        read_reference(path, space)
    with pytest.raises(FileNotFoundError, match=r"wanted a reference as \.npz"):
        read_reference(tmp_path / "none.npz", space)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": np.full(128, np.nan)}, "mu holds a value that is not finite"),
        ({"sigma": np.full((128, 128), np.inf)}, "sigma holds a value that is not finite"),
        ({"sigma": np.diag([-1.0] + 127 * [1.0])}, "sigma is no covariance: its least eigenvalue "
                                                   "is -1, .*np.cov"),
        ({"sigma": np.eye(128) + np.eye(128, k=1)}, "differs from its transpose by up to 1;"),
        ({"sigma_s": np.diag([1.0, -0.5])}, "sigma_s is no covariance: its least .* -0.5"),
        ({"sigma_s": np.eye(3)}, r"mu_s \[2\] and sigma_s \[3, 3\] are not of"),
    ],
)  # fmt: skip
def test_statistics_that_are_none_are_an_error(space, tmp_path, changes, message):
    given = {"mu": np.zeros(128), "sigma": np.eye(128), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    np.savez(tmp_path / "r.npz", **given | changes)
    with pytest.raises(ValueError, match=rf"r\.npz': .*{message}"):
        read_reference(tmp_path / "r.npz", space)


def test_rounding_of_a_covariance_is_none_of_its_faults(space, tmp_path):
    """Fewer images than dimensions, in float32: eigenvalues about 0 are below it, too."""
    features = np.random.default_rng(0).normal(size=(9, 128)).astype(np.float32)
    sigma = np.cov(features, rowvar=False, dtype=np.float32)
    assert np.linalg.eigvalsh(sigma)[0] < 0
    np.savez(tmp_path / "r.npz", mu=features.mean(0), sigma=sigma)
    assert np.array_equal(read_reference(tmp_path / "r.npz", space).pool[1], sigma)


def test_images_are_a_reference_in_the_inception_space(tmp_path):
    state = graphs.inception_state()
    torch.save(state, tmp_path / "inception.pth")
    space = inception_space(tmp_path / "inception.pth")
    np.savez(tmp_path / "images.npz", pixels(5).numpy())
    reference = read_reference(tmp_path / "images.npz", space)
    assert reference.spatial[0].shape == (2023,)
    features = Features([reference.features], [torch.eye(5, 1008)], [torch.rand(5, 2023)])
    wanted = ("inception_score", "precision", "recall")
    got = space.measure(features, reference, (*wanted, "kl"), resamples=0)
    assert got["inception_score"].value == pytest.approx(5)
    assert (got["precision"].value, got["recall"].value) == (1, 1)
    assert list(got) == list(wanted)


def test_other_weights_have_another_hash():
    with torch.device("meta"):
        network = InceptionNetwork()
    assert FeatureSpace("inception", network, "0", INCEPTION_FIGURES).figures["fid"] == "frechet"
    assert len(bundled_space().hash) == 64
