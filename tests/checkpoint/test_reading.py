"""Reading a safetensors file tensor by tensor."""

import pytest
import torch
from safetensors.torch import save_file

from ptq4arvg.checkpoint.reading import Section, TensorFile

TENSORS = {"a.x": torch.arange(6.0).view(2, 3), "a.y": torch.zeros(0), "b.x": torch.ones(3).half()}


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "t.safetensors")
    return tmp_path / "t.safetensors"


def test_it_is_a_mapping(path):
    file = TensorFile(path)
    assert set(file) == set(TENSORS) and len(file) == 3 and "a.z" not in file
    for name, tensor in TENSORS.items():
        assert torch.equal(file[name], tensor) and file[name].dtype == tensor.dtype
    with pytest.raises(KeyError, match=r"a\.z"):
        file["a.z"]


def test_what_was_read_does_not_change_with_the_file(path):
    tensor = TensorFile(path)["a.x"]
    data = bytearray(path.read_bytes())
    data[-40:] = bytes(40)
    path.write_bytes(data)
    assert torch.equal(tensor, TENSORS["a.x"])


def test_sections(path):
    section = Section(TensorFile(path), "a.", {"a.x", "b.x"})
    assert list(section) == ["x"] and len(section) == 1
    assert torch.equal(section["x"], TENSORS["a.x"])
    with pytest.raises(KeyError, match="y"):
        section["y"]


def test_only_the_beginning_of_a_name_is_a_prefix():
    source = {name: torch.tensor(i) for i, name in enumerate(("a.c.a.x", "b.a.z", "a.b", "a.a"))}
    section = Section(source, "a.", set(source))
    assert list(section) == ["a", "b", "c.a.x"]
    assert [int(section[name]) for name in section] == [3, 2, 0]


def test_files_that_are_not_whole(path, tmp_path):
    with pytest.raises(ValueError, match=r"gone\.safetensors is missing"):
        TensorFile(tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match="is missing"):
        TensorFile(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        TensorFile(path)
