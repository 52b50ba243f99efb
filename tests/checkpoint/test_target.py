"""Where a checkpoint may be written, and which: nothing is lost, and all that is written loads."""

import copy

import pytest
import torch

import ptq4arvg
from ptq4arvg.calibration import Calibration
from ptq4arvg.checkpoint import save
from ptq4arvg.models import build_model
from tests.models.tiny import TINY


@pytest.fixture(scope="module")
def model():
    model = build_model("var-test", TINY["var"], seed=0)
    ids = torch.randint(40, (2, model.tokens), generator=torch.Generator().manual_seed(1))
    rows = Calibration(ids, torch.tensor([0, model.null_label]), seed=1, select="given")
    ptq4arvg.quantize_(model, "W8A8", "rtn", rows)
    return model


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "v1")
    return tmp_path / "v1"


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_files_beside_the_checkpoint_are_never_deleted(model, folder):
    (folder / "samples").mkdir()
    mine = folder / "notes.txt", folder / "samples" / "1.png"
    for path in mine:
        path.write_text("mine")
    with pytest.raises(ValueError, match=r"holds more than its .*: notes\.txt, samples\. Move"):
        model.save_pretrained(folder, overwrite=True)
    assert all(path.read_text() == "mine" for path in mine)
    ptq4arvg.load_quantized(folder)


def test_a_folder_of_a_files_name_is_never_deleted(model, folder):
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    (folder / "README.md" / "mine").write_text("mine")
    with pytest.raises(ValueError, match=r"holds more than its .*: README\.md\. Move"):
        model.save_pretrained(folder, overwrite=True)
    assert (folder / "README.md" / "mine").read_text() == "mine"


@pytest.mark.parametrize("text", ["[1]", '{"quantization_config": 3}', "{", "{}"])
def test_another_config_is_never_replaced(model, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="is not a checkpoint of ptq4arvg; it is left as it is"):
        model.save_pretrained(tmp_path, overwrite=True)
    assert names(tmp_path) == ["config.json"]


def test_the_checkpoint_that_a_link_leads_to_is_replaced(model, folder):
    (folder / "README.md").write_text("old")
    link = folder.with_name("latest")
    link.symlink_to(folder.name)
    model.save_pretrained(link, overwrite=True)
    assert link.is_symlink() and (folder / "README.md").read_text() != "old"
    assert names(folder.parent) == ["latest", "v1"]


def test_a_link_to_nothing_leads_to_the_checkpoint(model, tmp_path):
    (tmp_path / "latest").symlink_to("v2")
    model.save_pretrained(tmp_path / "latest")
    assert names(tmp_path) == ["latest", "v2"] and (tmp_path / "latest").is_symlink()
    ptq4arvg.load_quantized(tmp_path / "latest")


def test_the_current_folder_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^\. is the current folder.*such as quantized"):
        model.save_pretrained(".")
    assert names(tmp_path) == []


@pytest.mark.parametrize("there", [False, True])
def test_of_two_that_save_at_once_the_second_is_told(model, tmp_path, monkeypatch, there):
    def meanwhile(*arguments, **options):
        monkeypatch.undo()
        model.save_pretrained(tmp_path / "q")
        save.save_file(*arguments, **options)

    if there:
        (tmp_path / "q").mkdir()
    monkeypatch.setattr(save, "save_file", meanwhile)
    with pytest.raises(FileExistsError, match="q is not empty any more: it was written to meanwh"):
        model.save_pretrained(tmp_path / "q")
    assert names(tmp_path) == ["q"]
    ptq4arvg.load_quantized(tmp_path / "q")


@pytest.mark.parametrize("part", ["transformer", "tokenizer"])
def test_what_could_not_be_loaded_is_not_saved(model, part, tmp_path):
    other = copy.deepcopy(model)
    getattr(other, part).register_buffer("extra", torch.zeros(3))
    with pytest.raises(ValueError, match=r"could not be loaded: .*this architecture: extra$"):
        other.save_pretrained(tmp_path / "q")
    assert names(tmp_path) == []


def test_what_has_another_shape_is_not_saved(model, tmp_path):
    other = copy.deepcopy(model)
    other.tokenizer.quantize.embedding.weight = torch.nn.Parameter(torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"quantize\.embedding\.weight has shape \[3, 8\]; wanted"):
        other.save_pretrained(tmp_path / "q")
    assert names(tmp_path) == []
