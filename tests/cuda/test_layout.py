"""The CUDA kernels' layouts and plans, which are host code as well."""

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


def test_layouts_plans_and_tables(tmp_path):
    cuda, program = KERNELS / "cuda", tmp_path / "test_layout"
    sources = [HERE / "test_layout.cpp", KERNELS / "parallel.cpp"]
    sources += [cuda / name for name in ("pack.cpp", "tile_table.cpp", "early_start.cpp")]
    built = subprocess.run(
        [CXX, *FLAGS, f"-I{CSRC}", *map(str, sources), "-pthread", "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "ok\n"), ran.stdout + ran.stderr
