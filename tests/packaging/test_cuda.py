"""nvcc, CUTLASS, and the decision between a CPU and a CUDA build."""

from pathlib import Path

import pytest
from ptq4arvg_build import cuda
from ptq4arvg_build.settings import Settings

NVCC = Path("bin/nvcc")


def settings(mode):
    return Settings(mode, ("80",), 1)


@pytest.mark.parametrize(
    ("mode", "has_kernels", "nvcc", "torch_has_cuda", "reason"),
    [
        ("cpu", True, NVCC, True, "PTQ4ARVG_BUILD=cpu"),
        ("auto", True, None, True, "no nvcc on PATH"),
        ("auto", False, NVCC, True, "this version has no CUDA kernels yet"),
        ("auto", True, NVCC, False, "this torch has no CUDA; PTQ4ARVG_BUILD=cuda builds"),
    ],
)
def test_cpu_only_is_said_in_one_line(mode, has_kernels, nvcc, torch_has_cuda, reason):
    said = []
    assert not cuda.decide(settings(mode), has_kernels, nvcc, torch_has_cuda, said.append)
    assert len(said) == 1
    assert reason in said[0]
    assert "\n" not in said[0]


@pytest.mark.parametrize(
    ("mode", "torch_has_cuda"), [("auto", True), ("cuda", True), ("cuda", False)]
)
def test_cuda_build(mode, torch_has_cuda):
    assert cuda.decide(settings(mode), True, NVCC, torch_has_cuda, pytest.fail)


@pytest.mark.parametrize(("has_kernels", "nvcc"), [(True, None), (False, NVCC)])
def test_cuda_demanded_in_vain(has_kernels, nvcc):
    with pytest.raises(RuntimeError, match=r"PTQ4ARVG_BUILD=cuda, but .*Type: PTQ4ARVG_BUILD=cpu"):
        cuda.decide(settings("cuda"), has_kernels, nvcc, True, pytest.fail)


def make_nvcc(folder):
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    return nvcc


def test_cuda_home_comes_before_path(tmp_path):
    home, other = make_nvcc(tmp_path / "home"), make_nvcc(tmp_path / "other")
    environ = {"CUDA_HOME": str(tmp_path / "home"), "PATH": str(other.parent)}
    assert cuda.find_nvcc(environ) == home
    assert cuda.find_nvcc({"PATH": str(other.parent)}) == other
    assert cuda.find_nvcc({"CUDA_HOME": str(tmp_path), "PATH": str(other.parent)}) == other
    assert cuda.find_nvcc({"PATH": str(tmp_path)}) is None


def test_toolkit_folders_are_asked_of_nvcc(tmp_path):
    nvcc = make_nvcc(tmp_path)
    for folder in ("include", "lib"):
        (tmp_path / "a b" / folder).mkdir(parents=True)
    nvcc.write_text(
        "#!/bin/sh\n"
        f"""echo '#$ INCLUDES="-I{tmp_path}/bin/../a b/include" ' >&2\n"""
        f"""echo '#$ LIBRARIES=  "-L{tmp_path}/none" "-L{tmp_path}/bin/../a b/lib"' >&2\n"""
    )
    folders = [str(tmp_path / "a b" / "include")], [str(tmp_path / "a b" / "lib")]
    assert cuda.toolkit_folders(nvcc) == folders


def test_silent_nvcc_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"does not tell where its headers.*--dryrun"):
        cuda.toolkit_folders(make_nvcc(tmp_path))


def make_cutlass(folder):
    header = folder / "include" / "cutlass" / "cutlass.h"
    header.parent.mkdir(parents=True)
    header.touch()
    return [folder / "include", folder / "tools" / "util" / "include"]


def test_cutlass_from_the_submodule_first(tmp_path):
    ours = make_cutlass(tmp_path / "third_party" / "cutlass")
    make_cutlass(tmp_path / "site" / "cutlass_library" / "source")
    assert cuda.find_cutlass(tmp_path, [tmp_path / "site"]) == ours


def test_cutlass_from_the_package(tmp_path):
    (tmp_path / "third_party" / "cutlass").mkdir(parents=True)  # not checked out: empty
    packaged = make_cutlass(tmp_path / "site" / "cutlass_library" / "source")
    assert cuda.find_cutlass(tmp_path, [tmp_path / "empty", tmp_path / "site"]) == packaged


def test_cutlass_missing_says_what_to_type(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        cuda.find_cutlass(tmp_path, [])
    assert "git submodule update --init third_party/cutlass" in str(caught.value)
    assert "pip install nvidia-cutlass==4.2.0.0 --no-deps" in str(caught.value)
