"""Finding the torch to build against, and not downloading a second one."""

import sys

import pytest
from ptq4arvg_build import backend, torch_location
from ptq4arvg_build.torch_location import find_torch, require_torch


def make_torch(place, version="2.13.0+cpu"):
    folder = place / "torch"
    (folder / "include" / "torch").mkdir(parents=True)
    (folder / "lib").mkdir()
    if "+cu" in version:
        (folder / "lib" / "libtorch_cuda.so").touch()
    (folder / "version.py").write_text(f"__all__ = []\n__version__ = '{version}'\n")
    return folder


def test_first_on_the_path_wins(tmp_path):
    make_torch(tmp_path / "b", "2.11.0")
    expected = make_torch(tmp_path / "a")
    found = find_torch([tmp_path / "none", tmp_path / "a", tmp_path / "b"])
    assert (found.path, found.version) == (expected.resolve(), "2.13.0+cpu")
    assert found.include == expected.resolve() / "include"


def test_a_folder_that_is_only_called_torch_is_passed_over(tmp_path):
    (tmp_path / "csrc" / "torch").mkdir(parents=True)
    assert find_torch([tmp_path / "csrc"]) is None


def test_no_torch_says_what_to_type():
    with pytest.raises(RuntimeError, match=r"found none\. Type: pip install 'torch>=2\.10'"):
        require_torch(None)


@pytest.mark.parametrize("version", ["2.9.1", "1.13.0+cu117", "unknown"])
def test_old_torch_says_what_to_type(tmp_path, version):
    make_torch(tmp_path, version)
    with pytest.raises(RuntimeError, match=r"needs torch 2\.10 or later.*pip install 'torch>=2"):
        require_torch(find_torch([tmp_path]))


@pytest.mark.parametrize("version", ["2.10.0", "2.11.0+cu130", "3.0.0a0+git123"])
def test_new_torch(tmp_path, version):
    make_torch(tmp_path, version)
    assert require_torch(find_torch([tmp_path])).version == version


def test_the_target_environment_is_searched():
    places = torch_location.target_paths()
    assert any(str(place).startswith(sys.prefix) for place in places)


def test_a_plain_virtual_environment_does_not_look_at_the_system(tmp_path):
    (tmp_path / "pyvenv.cfg").write_text("include-system-site-packages = false\n")
    isolated = torch_location.target_paths(str(tmp_path))
    (tmp_path / "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    assert len(torch_location.target_paths(str(tmp_path))) > len(isolated)


@pytest.mark.parametrize(
    ("version", "needed"), [("2.13.0+cpu", []), ("2.9.0", ["torch>=2.10"]), (None, ["torch>=2.10"])]
)
def test_torch_is_downloaded_only_where_there_is_none(tmp_path, monkeypatch, version, needed):
    if version:
        make_torch(tmp_path, version)
    monkeypatch.setattr(torch_location, "search_paths", lambda: [tmp_path])
    monkeypatch.setenv("PTQ4ARVG_BUILD", "cpu")
    assert backend.extra_requirements() == needed


def test_cutlass_is_downloaded_only_for_cuda_kernels(tmp_path, monkeypatch):
    make_torch(tmp_path, "2.11.0+cu130")
    monkeypatch.setattr(torch_location, "search_paths", lambda: [tmp_path])
    monkeypatch.setattr(backend.cuda, "search_paths", lambda: [tmp_path])
    monkeypatch.setattr(backend.cuda, "find_nvcc", lambda: tmp_path / "nvcc")
    monkeypatch.setattr(backend, "ROOT", tmp_path)
    monkeypatch.delenv("PTQ4ARVG_BUILD", raising=False)
    assert backend.extra_requirements() == []
    kernels = tmp_path / "csrc" / "kernels" / "cuda"
    kernels.mkdir(parents=True)
    (kernels / "gemm.cu").touch()
    assert backend.extra_requirements() == ["nvidia-cutlass==4.2.0.0"]
    (tmp_path / "torch/lib/libtorch_cuda.so").unlink()
    assert backend.extra_requirements() == []


@pytest.mark.parametrize(("version", "has"), [("2.11.0+cu130", True), ("2.13.0+cpu", False)])
def test_whether_torch_has_cuda(tmp_path, version, has):
    make_torch(tmp_path, version)
    assert find_torch([tmp_path]).has_cuda is has
