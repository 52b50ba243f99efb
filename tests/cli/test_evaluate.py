"""`ptq4arvg evaluate` on the bundled model, a checkpoint of it, and files of samples."""

import json

import numpy as np
import pytest
import torch

from ptq4arvg.cli import main
from ptq4arvg.distributed import Group
from ptq4arvg.evaluation.protocol import find_protocol, read_result, table
from ptq4arvg.evaluation.samples import SampleFile
from tests.evaluation import graphs

FEW = ("--images", 4, "--resamples", 0)


def run(*arguments):
    assert main([str(a) for a in arguments]) == 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    rows = folder / "rows.safetensors"
    run("calibrate", "var-tiny", "--out", rows, "--samples", 2, "--keep", 2, "-q")
    run("quantize", "var-tiny", "--calibration", rows, "--scheme", "W8A8", "--method", "rtn",
        "--out", folder / "q", "-q")  # fmt: skip
    return folder / "q"


def test_a_checkpoint_is_compared_with_the_float_model(checkpoint, tmp_path, capsys):
    out, samples = tmp_path / "r.json", tmp_path / "s.npz"
    run("evaluate", checkpoint, "--out", out, "--samples", samples, *FEW)
    printed = capsys.readouterr()
    assert "smoke (" in printed.out
    assert "bundled_frechet" in printed.out
    assert "compare runs of this package and nothing else" in printed.out
    lines = [line.split()[0] for line in printed.out.splitlines()[-3:]]
    assert lines == ["wrote", "look", "next"]
    assert "generate: 4/4" in printed.err
    assert f"evaluate {checkpoint} --protocol smoke --images 4 --device cpu --seed" in printed.out
    assert SampleFile(samples).shape == (4, 32, 32, 3)
    result = read_result(out)
    assert (result.model, result.scheme, result.method) == ("var-tiny", "W8A8", "rtn")
    config = json.loads((checkpoint / "config.json").read_text())
    assert result.checkpoint == config["hash"]
    assert result.figures["kl"].value > 0
    assert result.seed == 1000
    # the same under the same protocol from the command line, in one table
    run("evaluate", samples, "--out", tmp_path / "again.json", "-q", *FEW)
    rows = table([result, read_result(tmp_path / "again.json")])
    assert rows[1]["bundled_frechet"] == pytest.approx(rows[0]["bundled_frechet"], rel=1e-6)


def test_the_default_protocol_is_small():
    import inspect

    from ptq4arvg.cli import app

    assert inspect.signature(app.evaluate).parameters["protocol"].default == "smoke"
    assert find_protocol("smoke").images == 64


def test_imagenet_figures_of_samples(tmp_path, capsys, monkeypatch):
    """Random weights, random images: the whole way from the graph's file to the distances, whose
    eigenvalues in 2048 dimensions would take the most time."""
    sizes = []

    def distance(*moments):
        sizes.append([list(m.shape) for m in moments])
        return 1.0 + len(sizes)

    monkeypatch.setattr("ptq4arvg.evaluation.figures.frechet_distance", distance)
    generator = torch.Generator().manual_seed(0)
    shape = (2, 4, 256, 256, 3)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy()
    np.savez(tmp_path / "samples.npz", images[0])
    np.savez(tmp_path / "reference.npz", images[1])
    (tmp_path / "graph.pb").write_bytes(graphs.inception_graph(graphs.inception_state()))
    run("evaluate", tmp_path / "samples.npz", "--protocol", "var-paper", *FEW, "--out",
        tmp_path / "r.json", "--inception", tmp_path / "graph.pb",
        "--reference", tmp_path / "reference.npz", "-q")  # fmt: skip
    figures = read_result(tmp_path / "r.json").figures
    assert sizes == [2 * [[n], [n, n]] for n in (2048, 2023)]
    assert (figures["fid"].value, figures["sfid"].value) == (2, 3)
    assert 1 <= figures["inception_score"].value <= 4
    assert 0 <= figures["precision"].value <= 1
    assert figures["kl"].value is None
    assert "compare runs of this package" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["var-tiny", "--protocol", "smok"], "unknown protocol 'smok'.* Closest: 'smoke'"),
        (["var-tiny", "--inception", "x.pb"], "--inception is for ImageNet figures, smoke mea"),
        (["s.npz", "--protocol", "var-paper", "--reference", "r.npz"],
         "var-paper needs --inception: the weights of Inception-v3"),
        (["s.npz", "--protocol", "var-paper"], "needs --inception and --reference"),
        (["s.npz", "--samples", "t.npz"], "--samples is for a model; s.npz holds"),
        (["s.npz", "--weights", "w.pth"], "--weights is for a model; s.npz holds images that are"),
        (["s.npz", "--parts", "p"], "--parts is for a model"),
        (["s.npz"], "no file 's.npz'; wanted samples as .npz"),
        (["var-tinny"], "no model of that name. Closest: 'var-tiny'"),
        (["var-tiny", "--images", "1"], "smoke: 1 images; wanted at least 2"),
    ],
)  # fmt: skip
def test_errors_say_what_to_type(arguments, message, tmp_path, monkeypatch, capsys):
    import re

    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments, "--quiet"]) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_samples_is_not_shared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ptq4arvg.distributed._current", Group(0, 2))
    assert main(["evaluate", str(tmp_path / "s.npz"), "--quiet"]) == 2
    assert "nothing to share in a file of samples; type" in capsys.readouterr().err


def test_a_checkpoint_of_other_weights_is_not_compared_with_the_bundled_ones(tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    from ptq4arvg.models.registry import DATA

    state = load_file(DATA / "rar-tiny" / "transformer.safetensors")
    save_file({name: 1.1 * tensor for name, tensor in state.items()}, tmp_path / "w.safetensors")
    own = ("--weights", tmp_path / "w.safetensors")
    run("quantize", "rar-tiny", *own, "--scheme", "W8A8", "--method", "rtn", "--samples", 2,
        "--keep", 2, "--out", tmp_path / "q", "-q")  # fmt: skip
    run("evaluate", tmp_path / "q", "--out", tmp_path / "r.json", "-q", *FEW)
    assert read_result(tmp_path / "r.json").figures["kl"].value is None
    run("evaluate", tmp_path / "q", *own, "--out", tmp_path / "r.json", "-q", *FEW)
    assert read_result(tmp_path / "r.json").figures["kl"].value > 0
