"""Build and run test_kernels.cpp: the kernels without torch; AVX-512-VNNI emulated if need be."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CXX = os.environ.get("CXX") or "g++"


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> str:
    """What the test program prints."""
    if not shutil.which(CXX) or not (HERE.parents[1] / "csrc" / "kernels").is_dir():
        pytest.skip(f"needs the source folder and {CXX}")
    program = tmp_path_factory.mktemp("kernels") / "test_kernels"
    build = [str(HERE / "build.sh"), str(program), "-O1"]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_instruction_sets_agree(output):
    assert output.splitlines()[-1] == "ok"
    assert "scalar: " in output


def test_avx512_vnni_was_checked(output):
    if "avx512_vnni" not in output:
        pytest.skip("not an x86 machine")
    if "avx512_vnni: not on this processor" in output:
        pytest.skip("no AVX-512-VNNI here, and no SIMDe headers (libsimde-dev) to emulate it")
    assert "avx512_vnni: 90 cases agree" in output


def test_amx_int8_was_checked(output):
    if "amx_int8: " not in output:
        pytest.skip("not an x86 machine")
    if "amx_int8: not on this processor" in output:
        pytest.skip("this processor or system has no AMX, and SIMDe does not emulate it")
    assert "amx_int8: 90 cases agree (on hardware)" in output
