"""The figures of zoo/check.py against the same figures computed another way."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch.nn import functional as F

from ptq4arvg.evaluation import frechet_distance, load_features, load_reference
from ptq4arvg.models import load_model
from tests.zoo.helpers import BUNDLED
from zoo import check, common


@pytest.fixture(scope="module")
def result(data, tmp_path_factory):
    """The JSON file of the bundled model on the random pictures, with four samples."""
    path = tmp_path_factory.mktemp("check") / "figures.json"
    argv = ["--data", str(data), "--samples", "4", "--seed", "3", "--json", str(path)]
    assert check.main(argv) == 0
    return json.loads(path.read_text())


def test_figures_of_the_held_out_pictures(result, data):
    pictures, model, network = common.load_data(data, 32), load_model("var-tiny"), load_features()
    images, labels = pictures.unit(pictures.heldout), pictures.labels[pictures.heldout]
    found = result["heldout"]
    assert found["pictures"] == 6
    ids = model.tokenizer.encode(images * 2 - 1)
    error = (model.decode_ids(ids) - images).double()
    assert found["reconstruction_l1"] == pytest.approx(2 * error.abs().mean().item(), rel=1e-4)
    psnr = [-10 * torch.log10(e.square().mean()) for e in error]  # the range is one here
    assert found["reconstruction_psnr"] == pytest.approx(sum(psnr).item() / 6, rel=1e-4)
    loss = [F.cross_entropy(model.replay(ids[i : i + 1], labels[i : i + 1])[0], ids[i])
            for i in range(6)]  # fmt: skip
    assert found["next_token_loss"] == pytest.approx(sum(loss).item() / 6, rel=1e-4)
    hits = model.replay(ids, labels).argmax(2) == ids
    assert found["next_token_accuracy"] == pytest.approx(hits.float().mean().item(), abs=1e-3)
    right = network(images).argmax(1) == labels
    assert found["class_accuracy"] == pytest.approx(right.float().mean().item())
    features = network.features(images).double()
    wanted = frechet_distance(features.mean(0), torch.cov(features.T), *load_reference())
    assert found["distance"] == pytest.approx(wanted, rel=1e-5)


def test_figures_of_the_samples(result, data):
    labels = check.draw_labels(common.load_data(data, 32), 4, 3)
    features = load_features().features(load_model("var-tiny").generate(labels, seed=3)).double()
    wanted = frechet_distance(features.mean(0), torch.cov(features.T), *load_reference())
    assert result["samples"]["distance"] == pytest.approx(wanted, rel=1e-5)
    assert result["samples"]["pictures"] == 4 and result["weights"] == "bundled"


def test_as_many_training_pictures_as_are_held_out(result):
    assert result["train"]["pictures"] == result["heldout"]["pictures"] == 6
    assert result["train"]["next_token_loss"] != result["heldout"]["next_token_loss"]


def test_sample_labels_have_the_frequencies_of_training(data):
    labels = check.draw_labels(common.load_data(data, 32), 4000, 0)
    shares = labels.bincount(minlength=16)[[0, 5, 10, 15]] / 4000
    # 18 pictures: five of the first two classes, four of the others.
    torch.testing.assert_close(shares, torch.tensor([5, 5, 4, 4]) / 18, atol=0.03, rtol=0)


def test_the_table_has_a_line_per_figure(result):
    lines = check.table(result).splitlines()
    assert lines[0].split() == ["held", "out", "training", "samples"]
    cells = {line[:24].strip(): line[24:].split() for line in lines[1:]}
    assert cells["pictures"] == ["6", "6", "4"]
    assert cells["next token loss"] == [
        f"{result[part]['next_token_loss']:.4f}" for part in ("heldout", "train")
    ]
    assert float(cells["distance"][2]) == pytest.approx(result["samples"]["distance"], abs=1e-4)
    assert len(cells) == 7


def test_a_folder_of_weights_is_used_instead_of_the_bundled_ones(data, tmp_path, result):
    for name in check.FILES["var-tiny"]:
        shutil.copy(BUNDLED / name, tmp_path / name)
    argv = ["--data", str(data), "--samples", "4", "--seed", "3", "--weights", str(tmp_path)]
    same = tmp_path / "same.json"
    assert check.main([*argv, "--json", str(same)]) == 0
    found = json.loads(same.read_text())
    assert found["weights"] == str(tmp_path)
    assert {k: found[k] for k in ("heldout", "train", "samples")} == {
        k: result[k] for k in ("heldout", "train", "samples")
    }


@pytest.mark.parametrize("name", ["rar-tiny", "par-tiny", "mar-tiny"])
def test_the_other_models_have_the_same_figures(name, data, tmp_path):
    argv = ["--model", name, "--data", str(data), "--samples", "2"]
    path = tmp_path / "figures.json"
    assert check.main([*argv, "--json", str(path)]) == 0
    found, pictures, model = (
        json.loads(path.read_text()),
        common.load_data(data, 32),
        load_model(name),
    )
    assert found["model"] == name
    images = pictures.unit(pictures.heldout)
    error = model.decode_ids(check.tokens_of(model, images * 2 - 1)) - images
    assert found["heldout"]["reconstruction_l1"] == pytest.approx(
        2 * error.abs().mean().item(), rel=1e-4
    )
    loss = "noise_error" if name == "mar-tiny" else "next_token_loss"
    assert found["train"][loss] > 0 and ("next_token_accuracy" in found["train"]) == (
        name != "mar-tiny"
    )


def test_the_noise_error_of_a_model_that_predicts_none(data):
    model, pictures = load_model("mar-tiny"), common.load_data(data, 32)
    model.transformer.diffloss.net.final_layer.linear.weight.zero_()
    model.transformer.diffloss.net.final_layer.linear.bias.zero_()
    images, labels = pictures.unit(pictures.heldout) * 2 - 1, pictures.labels[pictures.heldout]
    error = check.noise_error(model, images, labels, 0, lambda *_: None)
    assert error == pytest.approx(1.0, abs=0.05)  # the variance of the noise itself


def test_an_incomplete_folder_is_refused(data, tmp_path, capsys):
    shutil.copy(BUNDLED / "transformer.safetensors", tmp_path)
    assert check.main(["--data", str(data), "--weights", str(tmp_path)]) == 1
    assert "error: no tokenizer.safetensors in" in capsys.readouterr().err


def test_missing_data_and_a_single_sample_are_refused(data, tmp_path, capsys):
    assert check.main(["--data", str(tmp_path)]) == 1
    assert "error: no emoji32.npz in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        check.main(["--data", str(data), "--samples", "1"])
    assert "needs at least 2 pictures" in capsys.readouterr().err
