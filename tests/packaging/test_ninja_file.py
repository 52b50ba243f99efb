"""A small library really built through ninja, in a folder with a space in its name."""

import ctypes
import shutil

import pytest
from ptq4arvg_build import ninja_file
from ptq4arvg_build.ninja_file import Binary

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def library(folder, body, flags=()):
    source = folder / "some where" / "one.cpp"
    source.parent.mkdir(exist_ok=True)
    source.write_text(body)
    return Binary(
        output=folder / "some where" / "lib.so",
        cxx="g++",
        cxx_flags=["-fPIC", '-DNAME="a b$c"'],
        link_flags=[],
        objects=[(source, flags)],
    )


@needs_compiler
def test_build_and_rebuild(tmp_path):
    body = '#include <string.h>\nextern "C" int length() { return strlen(NAME) + VALUE; }\n'
    binary = library(tmp_path, body, ("-DVALUE=10",))
    ninja_file.run(binary, tmp_path / "some where" / "objects", jobs=1)
    assert ctypes.CDLL(str(binary.output)).length() == 15
    # Another flag alone must rebuild: a new torch means new flags.
    binary.objects = [(binary.objects[0][0], ("-DVALUE=20",))]
    binary.output = binary.output.with_name("second.so")
    ninja_file.run(binary, tmp_path / "some where" / "objects", jobs=1)
    assert ctypes.CDLL(str(binary.output)).length() == 25


@needs_compiler
def test_a_compiler_error_stops_the_build(tmp_path):
    with pytest.raises(RuntimeError, match=r"building lib\.so failed"):
        ninja_file.run(library(tmp_path, "this is no C++\n"), tmp_path / "objects", jobs=1)


def test_cuda_files_get_nvcc(tmp_path):
    binary = library(tmp_path, "")
    binary.nvcc, binary.nvcc_flags = "/cuda/bin/nvcc", ["-O3"]
    binary.cuda_objects = [(tmp_path / "gemm.cu", ("-gencode=arch=compute_90a,code=sm_90a",))]
    text = ninja_file.render(binary, tmp_path)
    assert "nvcc_flags = -O3" in text
    assert f": nvcc {tmp_path}/gemm.cu\n  archs = -gencode=arch=compute_90a,code=sm_90a" in text


@needs_compiler
@pytest.mark.parametrize("exit_code", [0, 1])
def test_the_report_of_ptxas_is_kept_and_shown_when_a_file_fails(tmp_path, capfd, exit_code):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n'
        f': | g++ -x c++ -c - -o "$2"\necho ptxas said\nexit {exit_code}\n'
    )
    nvcc.chmod(0o755)
    binary = library(tmp_path, "")
    binary.nvcc, binary.cuda_objects = str(nvcc), [(tmp_path / "gemm.cu", ())]
    (tmp_path / "gemm.cu").touch()
    if exit_code:
        with pytest.raises(RuntimeError, match=r"building lib\.so failed"):
            ninja_file.run(binary, tmp_path / "objects", jobs=1)
    else:
        ninja_file.run(binary, tmp_path / "objects", jobs=1)
    (report,) = (tmp_path / "objects").glob("*gemm.cu.o.ptxas")
    assert report.read_text() == "ptxas said\n"
    assert ("ptxas said" in capfd.readouterr().out) == bool(exit_code)


def test_no_ninja_says_what_to_type(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ninja", None)
    monkeypatch.setattr(ninja_file.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install ninja"):
        ninja_file.find_ninja()
