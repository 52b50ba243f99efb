"""Build test_kernels.cpp for 64-bit Arm with a cross compiler, and run it in an emulator.

PTQ4ARVG_QEMU_AARCH64 names the emulator if it is not on the path. Neither says anything of speed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CXX = "aarch64-linux-gnu-g++"
EMULATORS = (os.environ.get("PTQ4ARVG_QEMU_AARCH64", ""), "qemu-aarch64-static", "qemu-aarch64")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The compiled test."""
    if not shutil.which(CXX) or not (HERE.parents[1] / "csrc" / "kernels").is_dir():
        pytest.skip(f"needs the source folder and {CXX}")
    program = tmp_path_factory.mktemp("kernels") / "test_kernels"
    built = subprocess.run(
        [str(HERE / "build.sh"), str(program), "-O1", "-static"],
        env={**os.environ, "CXX": CXX}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr
    return program


def test_compiles_the_dot_product_kernels(program):
    assert b"gemm.w6.neon_dotprod" in program.read_bytes()


def test_instruction_sets_agree_in_an_emulator(program):
    emulator = next(filter(None, map(shutil.which, filter(None, EMULATORS))), None)
    if not emulator:
        pytest.skip("no qemu-aarch64 (Debian: qemu-user-static) to run it")
    ran = subprocess.run(
        [emulator, "-cpu", "max", str(program), "in an emulator"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "neon_dotprod: 90 cases agree (in an emulator)" in ran.stdout
