"""The bundled feature network and its reference statistics."""

import pytest
import torch
from safetensors.torch import save_file

from ptq4arvg.evaluation import (
    FeatureNetwork,
    class_accuracy,
    frechet_distance,
    load_features,
    load_reference,
)


@pytest.fixture(scope="module")
def network():
    return load_features()


def test_features_and_logits_have_their_shapes(network):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert network.features(images).shape == (3, 128)
    assert network(images).shape == (3, 32)
    assert network.features(images).dtype == torch.float32
    with pytest.raises(ValueError, match=r"wanted \[n, 3, H, W\]"):
        network(images[0])
    with pytest.raises(ValueError, match=r"shape \[3, 1, 32, 32\]; wanted \[n, 3, H, W\]"):
        network(images[:, :1])


def test_the_network_is_float32_and_does_not_learn(network):
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_statistics_in_double_precision_count_where_a_file_has_both(tmp_path):
    mean, cov = torch.tensor([0.1, 0.2]), torch.eye(2) / 3
    wide = {"mean64": mean.double() / 7, "cov64": cov.double() / 7}
    path = tmp_path / "fd_stats.safetensors"
    save_file({"mean": mean, "cov": cov} | wide, path)
    assert all(map(torch.equal, load_reference(tmp_path), wide.values()))
    save_file({"mean": mean, "cov": cov}, path)
    assert all(map(torch.equal, load_reference(tmp_path), (mean.double(), cov.double())))


def test_loading_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    load_features()
    assert torch.equal(torch.get_rng_state(), state)


def test_reference_statistics_are_a_covariance(network):
    mean, cov = load_reference()
    assert mean.shape == (128,)
    assert cov.shape == (128, 128)
    assert frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-6)
    assert torch.linalg.eigvalsh(cov).min() > -1e-6


@pytest.mark.parametrize(
    ("level", "deviation", "recorded"),
    [(0.0, 1.0, 142.966), (1.0, 0.05, 127.278)],
    ids=["noise", "white with 5 % noise"],
)
def test_images_of_noise_are_as_far_away_as_recorded(network, level, deviation, recorded):
    """The training record has these distances, drawn from other seeds; images in [-1, 1]."""
    noise = torch.randn(512, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    features = network.features((level + deviation * noise + 1) / 2).double()
    distance = frechet_distance(features.mean(0), torch.cov(features.T), *load_reference())
    assert distance == pytest.approx(recorded, rel=0.02)


def test_class_accuracy_counts_the_right_ones(network):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    predicted = network(images).argmax(1)
    assert class_accuracy(network, images, predicted) == 1
    predicted[0] = (predicted[0] + 1) % 32
    assert class_accuracy(network, images, predicted) == 0.75
    with pytest.raises(ValueError, match="one label each"):
        class_accuracy(network, images, predicted[:2])
    with pytest.raises(ValueError, match="0 images, 0 labels"):
        class_accuracy(network, images[:0], predicted[:0])


def test_a_missing_folder_says_what_was_wanted(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"features\.safetensors"):
        load_features(tmp_path)


def test_network_counts_its_parameters():
    assert sum(p.numel() for p in FeatureNetwork().parameters()) == 429_472
