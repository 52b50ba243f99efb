"""The CUDA kernels without a GPU: layouts and plans, and the kernels themselves lane by lane."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = CSRC / "kernels"
CXX = os.environ.get("CXX") or "g++"
FLAGS = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]

pytestmark = pytest.mark.skipif(
    not shutil.which(CXX) or not (KERNELS / "cuda").is_dir(),
    reason=f"needs the source folder and {CXX}",
)


def run(program: Path, sources: list[Path], *flags: str) -> str:
    """Compile, link and run; what the program prints."""
    command = [CXX, *FLAGS, *flags, f"-I{CSRC}"]
    for source in sources:
        command += ["-x", "c++", str(source)]
    built = subprocess.run(
        [*command, "-pthread", "-o", str(program)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_layouts_plans_and_tables(tmp_path):
    cuda = KERNELS / "cuda"
    sources = [
        HERE / "test_layout.cpp",
        *(cuda / name for name in ("pack.cpp", "tile_table.cpp", "early_start.cpp")),
    ]
    assert run(tmp_path / "layout", [*sources, KERNELS / "parallel.cpp"]) == "ok\n"


@pytest.mark.slow
def test_kernels_lane_by_lane_agree_with_the_scalar_kernels(tmp_path):
    emulator = HERE / "emulator"
    sources = [HERE / "test_emulated.cpp", emulator / "emulator.cpp", KERNELS / "cuda" / "pack.cpp"]
    sources += [KERNELS / "parallel.cpp"]
    sources += [KERNELS / "cpu" / name for name in ("scalar.cpp", "scratch.cpp", "pack.cpp")]
    sources += sorted((KERNELS / "cuda").glob("*.cu"))
    # The emulator's folder first: its headers stand in for CUDA's and for the inline assembly.
    assert run(tmp_path / "emulated", sources, f"-I{emulator}").endswith("ok\n")
