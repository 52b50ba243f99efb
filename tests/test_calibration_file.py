"""Calibration rows in a file: all of them and how they came about, and nothing that was changed."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ptq4arvg.calibration import Calibration
from ptq4arvg.calibration_file import load_calibration, save_calibration


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# Ids, and continuous tokens in double precision; like the labels they are not contiguous.
ROWS = {"ids": torch.arange(12).view(4, 3).t(), "tokens": normal(2, 4, 3).double().transpose(0, 2)}


@pytest.fixture(params=ROWS)
def rows(request):
    labels = torch.tensor([[5, 0], [9, 0], [2, 0]], dtype=torch.int32)[:, 0]
    return Calibration(ROWS[request.param], labels, 7, "dgc", samples=16, model="var-tiny")


def rewritten(path, tensors=None, **metadata):
    """The file with other tensors or metadata; None takes an entry out."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() | metadata
    metadata = {name: text for name, text in metadata.items() if text is not None}
    save_file(load_file(path) | (tensors or {}), path, metadata)
    return path


def test_rows_there_and_back(rows, tmp_path):
    path = save_calibration(rows, tmp_path / "rows.safetensors")
    again = load_calibration(path)
    continuous = rows.ids.is_floating_point()
    assert again.ids.dtype == (torch.float32 if continuous else torch.int64)
    assert torch.equal(again.ids, rows.ids.to(again.ids.dtype))
    assert again.labels.dtype == torch.int64 and torch.equal(again.labels, rows.labels)
    assert (again.seed, again.select, again.samples, again.model) == (7, "dgc", 16, "var-tiny")
    assert again.hash == rows.hash
    kept = load_file(path)
    assert {name: value.dtype for name, value in kept.items()} == {
        "ids": torch.float32 if continuous else torch.int32, "labels": torch.int32
    }  # fmt: skip


def test_a_file_that_does_not_say_of_how_many_and_whose_the_rows_are(rows, tmp_path):
    path = save_calibration(rows, tmp_path / "rows.safetensors")
    again = load_calibration(rewritten(path, samples=None, model=None))
    assert (again.samples, again.model, again.hash) == (0, "", rows.hash)


def test_changed_rows_are_refused(rows, tmp_path):
    path = save_calibration(rows, tmp_path / "rows.safetensors")
    for name, value in load_file(path).items():
        save_calibration(rows, path)
        value[1] += 1
        with pytest.raises(ValueError, match=r"rows\.safetensors was changed after it was written"):
            load_calibration(rewritten(path, {name: value}))


def test_what_is_no_calibration_file(rows, tmp_path):
    path = save_calibration(rows, tmp_path / "rows.safetensors")
    with pytest.raises(ValueError, match="is no calibration file; wanted what `ptq4arvg calibrat"):
        load_calibration(rewritten(path, format="ptq4arvg calibration 2"))
    save_file({"ids": torch.zeros(2)}, path)  # without metadata
    with pytest.raises(ValueError, match="is no calibration file; wanted what `ptq4arvg calibrat"):
        load_calibration(path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"rows\.safetensors cannot be read \("):
        load_calibration(path)
    with pytest.raises(ValueError, match="is a folder; wanted a file that `ptq4arvg calibrate`"):
        load_calibration(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file '.*gone'; wanted one that `ptq4arvg"):
        load_calibration(tmp_path / "gone")
