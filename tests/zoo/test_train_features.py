"""The feature network's training: folding, dropout, resuming, the export."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from ptq4arvg.evaluation import FeatureNetwork, load_features, load_reference
from tests.zoo.helpers import check_like_bundled, check_resume, seeded
from zoo import common, train_features


def test_feature_training_resumes_exactly_and_exports(data, tmp_path, monkeypatch):
    files = ["features.safetensors", "fd_stats.safetensors"]
    out = check_resume(train_features, "features", files, data, tmp_path, monkeypatch)
    for file in files:
        check_like_bundled(out / file)
    network, (mean, covariance) = load_features(out), load_reference(out)
    pictures = common.load_data(data, 32)
    features = network.features(pictures.unit(pictures.train)).double()
    torch.testing.assert_close(mean, features.mean(0))
    torch.testing.assert_close(covariance, torch.cov(features.T))
    assert load_file(out / files[1])["n"].tolist() == [18]


def test_folding_keeps_the_logits():
    with common.fresh_weights(0):
        model = train_features.TrainingNetwork(FeatureNetwork(32))
        images = torch.rand(8, 3, 32, 32)
    for norm in model.norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 2, generator=seeded(1))
        torch.nn.init.uniform_(norm.bias, -1, 1, generator=seeded(2))
    for _ in range(3):
        model(images)  # running statistics
    network = FeatureNetwork(32)
    network.load_state_dict(model.fold())
    wanted = model.eval()(images)
    assert wanted.std() > 0.05
    torch.testing.assert_close(network(images), wanted, atol=1e-4, rtol=1e-4)


def test_features_are_dropped_by_the_given_generator():
    with common.fresh_weights(0):
        model = train_features.TrainingNetwork(FeatureNetwork(32)).eval()
        images = torch.rand(8, 3, 8, 8)
    first, again = (model(images, seeded(3)) for _ in range(2))
    assert torch.equal(first, again) and not torch.allclose(first, model(images))
    draws = torch.stack([model(images, seeded(i)) for i in range(64)])
    torch.testing.assert_close(draws.mean(0), model(images), atol=0.05, rtol=0)  # no bias


def test_the_classifier_learns_to_tell_colours(data, tmp_path):
    argv = ["--data", str(data), "--out", str(tmp_path), "--steps", "60", "--batch", "16"]
    assert train_features.main(argv) == 0
    pictures = common.load_data(data, 32)
    network = load_features(tmp_path)
    predicted = network(pictures.unit(pictures.heldout)).argmax(1)
    assert (predicted == pictures.labels[pictures.heldout]).float().mean() > 0.8
