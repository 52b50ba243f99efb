"""What the built op library links to: neither Python nor CUDA, so that it fits every torch."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

LIBRARY = Path(find_spec("ptq4arvg").origin).with_name("_C.so")

pytestmark = [
    pytest.mark.skipif(not LIBRARY.is_file(), reason=f"{LIBRARY.name} is not built"),
    pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf"),
]


def readelf(*flags):
    command = ["readelf", "--wide", *flags, str(LIBRARY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_links_only_the_stable_abi():
    needed = {
        line.split("[")[1].split("]")[0]
        for line in readelf("-d").splitlines()
        if "(NEEDED)" in line
    }
    system = {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}
    loader = {"libdl.so.2", "librt.so.1", "libpthread.so.0", "ld-linux-aarch64.so.1"}
    assert needed - system - loader == {"libtorch_cpu.so"}


def test_knows_neither_python_nor_unstable_torch():
    # Columns of --dyn-syms: number, value, size, type, bind, visibility, section, name.
    rows = [line.split() for line in readelf("--dyn-syms").splitlines()]
    undefined = [row[7].split("@")[0] for row in rows if len(row) >= 8 and row[6] == "UND"]
    assert any(name.startswith("aoti_torch_") for name in undefined)
    unwanted = ("Py", "_Py", "_ZN2at", "_ZN3c10", "_ZN5torch", "_ZN8pybind11", "cuda")
    assert [name for name in undefined if name.startswith(unwanted)] == []
