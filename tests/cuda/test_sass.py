"""Our own kernels as machine code: the instructions that were meant, and no spills."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
KERNELS = CSRC / "kernels" / "cuda"
ARCHS = ("80", "90a")
INTEGER_GEMMS = ("decode_w8", "decode_w6", "decode_w4", "tiled")
ROW_KERNELS = (
    "quantize", "norm_quantize", "quantize_map", "store_kv", "unpack", "gemm_float", "decode",
)  # fmt: skip

pytestmark = pytest.mark.slow


def find_tool(name: str) -> str | None:
    """A tool from PATH, from the toolkit, or from NVIDIA's PyPI package."""
    nvcc = shutil.which("nvcc")
    places = [Path(nvcc).resolve().parent] if nvcc else []
    places += [Path(folder, "nvidia", "cu13", "bin") for folder in sys.path if folder]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)]))


def compile_for(name: str, arch: str, folder: Path) -> tuple[Path, str]:
    """The cubin of a .cu file, with the build's flags, and what ptxas says of it."""
    nvcc = shutil.which("nvcc")
    if not nvcc or not KERNELS.is_dir():
        pytest.skip("needs nvcc and the source folder")
    cubin = folder / f"{name}.{arch}.cubin"
    flags = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "--fmad=false", "-Xptxas=-v"]
    target = ["-cubin", "-arch", f"sm_{arch}", "-o", str(cubin), str(KERNELS / f"{name}.cu")]
    done = subprocess.run(
        [nvcc, *flags, f"-I{CSRC}", *target], capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return cubin, said


def spills(said: str) -> list[tuple[str, str, str]]:
    """Stack, stores and loads of each kernel in ptxas's report."""
    found = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said
    )
    assert found, said
    return found


def kernels_of(sass: str) -> dict[str, str]:
    """Each kernel's machine code by its name."""
    parts = re.split(r"^\s*Function : (\S+)$", sass, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def check_early_start(kernel: str, code: str, arch: str) -> None:
    """On sm_90a the kernel waits for earlier ones (ACQBULK) before it touches global memory, and
    lets later ones start (PREEXIT) after that; elsewhere there are no such instructions."""
    waits = [match.start() for match in re.finditer(r"\bACQBULK\b", code)]
    starts = [match.start() for match in re.finditer(r"\bPREEXIT\b", code)]
    if arch == "80":
        assert not waits and not starts, kernel
        return
    assert len(waits) == len(starts) == 1 and waits < starts, kernel
    assert not re.search(r"\b(LD|LDG|LDGSTS|ST|STG|ATOM|ATOMG|RED)\b", code[: waits[0]]), kernel


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", INTEGER_GEMMS)
def test_products_are_on_the_tensor_cores(name, arch, tmp_path):
    disassembler = find_tool("cuobjdump")
    if not disassembler:
        pytest.skip("needs cuobjdump")
    cubin, said = compile_for(name, arch, tmp_path)
    assert set(spills(said)) == {("0", "0", "0")}
    command = [disassembler, "-sass", str(cubin)]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels = kernels_of(sass)
    assert len(kernels) == (2 if name == "tiled" else 5)
    for kernel, code in kernels.items():
        assert len(re.findall(r"\bIMMA\.16832\.S8\.S8\b", code)) >= 4, kernel
        assert re.search(r"\bLDGSTS\.E\S*\.128\b", code), kernel  # cp.async, 16 bytes
        assert re.search(r"\bLDSM\.16\.M88\.4\b", code), kernel  # ldmatrix
        assert not re.search(r"\b(IDP|LDL|STL)\b", code), kernel
        if name != "tiled":
            check_early_start(kernel, code, arch)


@pytest.mark.parametrize("arch", ARCHS)
def test_attention_is_on_the_tensor_cores(arch, tmp_path):
    disassembler = find_tool("cuobjdump")
    if not disassembler:
        pytest.skip("needs cuobjdump")
    cubin, said = compile_for("attention", arch, tmp_path)
    assert set(spills(said)) == {("0", "0", "0")}
    command = [disassembler, "-sass", str(cubin)]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels = kernels_of(sass)
    assert len(kernels) == 8  # four sizes of heads, with many queries and with few
    for kernel, code in kernels.items():
        size = int(re.search(r"kernelILi(\d+)E", kernel)[1])
        # Scores of 32 keys, four products for each 32 channels, in both passes; then the products
        # with the values, and the one that sums the levels.
        assert len(re.findall(r"\bIMMA\.16832\.S8\.S8\b", code)) == 2 * size // 8, kernel
        assert len(re.findall(r"\bIMMA\.16832\.U8\.S8\b", code)) == size // 8 + 1, kernel
        assert re.search(r"\bLDGSTS\.E\S*\.128\b", code), kernel  # cp.async, 16 bytes
        assert len(re.findall(r"\bLDS\.128\b", code)) >= 3 * size // 16, kernel
        # No conversion of scores or levels in the loops: it has a quarter of the others' speed.
        loops = code[code.index("IMMA") : code.rindex("IMMA")]
        assert not re.search(r"\b(I2F|F2I|I2FP|MUFU)\b", loops), kernel
        assert not re.search(r"\b(LDL|STL)\b", code), kernel
        check_early_start(kernel, code, arch)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", ROW_KERNELS)
def test_no_spills_elsewhere(name, arch, tmp_path):
    _, said = compile_for(name, arch, tmp_path)
    assert set(spills(said)) == {("0", "0", "0")}


@pytest.mark.parametrize("arch", ARCHS)
def test_rows_are_read_sixteen_bytes_at_a_time(arch, tmp_path):
    disassembler = find_tool("cuobjdump")
    if not disassembler:
        pytest.skip("needs cuobjdump")
    for name in ("quantize", "norm_quantize", "quantize_map"):
        cubin, _ = compile_for(name, arch, tmp_path)
        command = [disassembler, "-sass", str(cubin)]
        kernels = kernels_of(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
        wide = [kernel for kernel, code in kernels.items() if re.search(r"\bLDG\.E\.128\b", code)]
        # One element at a time, where rows are not aligned; sums of whole runs are few.
        one = [k for k in kernels if ("Li1E" in k or "group_statistics" in k) and k not in wide]
        assert wide and len(wide) + len(one) == len(kernels)
        for kernel, code in kernels.items():
            check_early_start(kernel, code, arch)
