"""Every CUDA kernel as nvcc compiled it, run on the CPU against the scalar kernels, bit by bit.

The interpreter in ``ptx`` takes the place of CUDA's runtime library: a launch runs the kernel's
PTX, with warps and asynchronous copies in a random order, and fails on what a device forbids. It
cannot show what ptxas makes of the PTX, whether hardware is as the PTX manual says, a missing
fence or __syncwarp, nor speed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
CUDA = CSRC / "kernels" / "cuda"
CXX = os.environ.get("CXX") or "g++"
CXX_FLAGS = ("-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra")
NVCC_FLAGS = ("-O3", "-std=c++20", "--expt-relaxed-constexpr", "--fmad=false", "-DNDEBUG", "-w")
# PTX alone, and as text; the architecture is that of the kernels with wgmma.
SM80, SM90A = (f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in ("80", "90a"))
KERNELS = [
    CSRC / "kernels" / f"{name}.cpp"
    for name in (
        "cpu/scalar",
        "cpu/scratch",
        "cpu/pack",
        "cuda/pack",
        "cuda/early_start",
        "parallel",
    )
]
OURS = sorted(CUDA.glob("*.cu"))
TILES = sorted((CUDA / "cutlass").glob("*.cu"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which(CXX) or not shutil.which("nvcc") or not CUDA.is_dir(),
        reason=f"needs the source folder, nvcc and {CXX}",
    ),
]


def system(folders: Iterable[str | Path]) -> tuple[str, ...]:
    return tuple(word for folder in folders for word in ("-isystem", str(folder)))


class Builder:
    """Objects and programs in a folder that all workers of a session share."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(CSRC))
        try:
            from ptq4arvg_build import cuda
        finally:
            sys.path.remove(str(CSRC))
        self.folder = folder
        self._cuda = cuda
        headers, _ = cuda.toolkit_folders(Path(shutil.which("nvcc")))
        self._include = (f"-I{CSRC}", *system(headers))

    def _run(self, *command: str | Path) -> None:
        built = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
        assert "warning:" not in built.stderr, built.stderr

    def object(self, source: Path, *flags: str) -> Path:
        """Compile once; the other workers wait for the first one that asks."""
        name = "_".join(source.with_suffix("").parts[-3:])
        made = self.folder / f"{name}.o"
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                unfinished = made.with_suffix(".part.o")
                compiler = [CXX, *CXX_FLAGS]
                if source.suffix == ".cu":
                    compiler = ["nvcc", *NVCC_FLAGS, "--no-compress"]
                self._run(*compiler, *flags, *self._include, "-c", source, "-o", unfinished)
                unfinished.rename(made)
        return made

    def kernel(self, source: Path) -> Path:
        """One of the library's .cu files."""
        if source.parent.name != "cutlass":
            return self.object(source, SM80, SM90A)
        try:
            include = self._cuda.find_cutlass(CSRC.parent)
        except RuntimeError:
            pytest.skip("needs the CUTLASS headers")
        arch = SM80 if "sm80" in source.stem else SM90A
        return self.object(source, arch, *system(include))

    def run(
        self, name: str, main: Path, kernels: list[Path], *flags: str, more: Iterable[Path] = ()
    ) -> str:
        """Link a program with the interpreter and the CPU's kernels; what it prints."""
        objects = [self.object(path) for path in sorted((HERE / "ptx").glob("*.cpp"))]
        objects += [self.object(path) for path in (*KERNELS, *more)]
        objects += map(self.kernel, kernels)
        program = self.folder / name
        if main.suffix == ".cu":
            objects.append(self.object(main, SM90A, *flags))
            self._run(CXX, *objects, "-pthread", "-o", program)
        else:
            compiler = (CXX, *CXX_FLAGS, *self._include, *flags)
            self._run(*compiler, main, *objects, "-pthread", "-o", program)
        ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert ran.stdout.splitlines()[-1] == "ok"
        return ran.stdout


@pytest.fixture(scope="session")
def builder(tmp_path_factory) -> Builder:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "interpreted"
    folder.mkdir(exist_ok=True)
    return Builder(folder)


def bank_conflicts(said: str) -> float:
    """Turns of shared memory's banks beyond the least, for each of those."""
    return float(re.search(r"([\d.]+) bank conflicts", said)[1])


def ours(*names: str) -> list[Path]:
    return [path for path in OURS if path.stem in names]


def test_interpreter_tells_faults(builder):
    builder.run("faults", HERE / "interpreted" / "faults.cu", [])


def test_rotations(builder):
    folder = HERE / "interpreted"
    said = builder.run("rotations", folder / "rotations.cu", [], more=[folder / "rotate.cpp"])
    assert "4 layouts agree" in said


def test_rows(builder):
    kernels = ours("quantize", "norm_quantize")
    said = builder.run("rows", HERE / "interpreted" / "rows.cpp", kernels)
    assert "360 cases agree" in said
    assert bank_conflicts(said) == 0


def test_instructions(builder):
    """Of an element, while an H100 moves its bytes: 13 of them for 128 instructions of a lane.

    That is 30 for the 3 bytes of a quantized element, 49 for the 5 of a gated product, 33 for q, k
    or v, 15 and 17 for an unpacked weight of 4 and 6 bits. A kernel that takes more is bound by its
    instructions. Attention's are of a score.
    """
    names = ("quantize", "norm_quantize", "quantize_map", "store_kv", "attention", "unpack")
    said = builder.run("budgets", HERE / "interpreted" / "budgets.cpp", ours(*names))
    taken = {name: float(count) for name, count in map(str.split, said.splitlines()[:-1])}
    most = {
        "quantize": 13,
        "quantize.rotated16": 24,
        "quantize.rotated128": 32,
        "gate_quantize.silu": 42,
        "norm_quantize": 30,
        "norm_quantize.rotated128": 47,
        "norm_quantize.rms": 22,
        "norm_quantize.rms.pairs": 42,
        "quantize_map": 53,
        "store_qkv.l2": 35,
        "store_qkv.layer": 48,
        "store_qkv.rotation": 29,
        "unpack.w6": 7,
        "unpack.w4": 6,
        "attention": 25,
    }
    assert taken.keys() == most.keys()
    assert {name: count for name, count in taken.items() if count > most[name]} == {}


def test_decode(builder):
    names = ("decode", "decode_w4", "decode_w6", "decode_w8", "unpack", "gemm_float")
    said = builder.run("decode", HERE / "interpreted" / "decode.cpp", ours(*names))
    assert "54 products agree" in said
    assert bank_conflicts(said) < 0.03  # those of the rows' entries, which are few


def test_attention(builder):
    kernels = ours("attention", "store_kv")
    said = builder.run("attention", HERE / "interpreted" / "attention.cpp", kernels)
    assert "85 cases agree" in said
    assert bank_conflicts(said) < 0.01


def test_maps(builder):
    said = builder.run("maps", HERE / "interpreted" / "maps.cpp", ours("quantize_map"))
    assert "60 maps agree" in said
    assert bank_conflicts(said) < 0.1


@pytest.mark.parametrize(
    "source", [*(path for path in TILES if "patches" in path.stem), CUDA / "tiled.cu"],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_patches(builder, source):
    name = source.stem.removesuffix("_base")
    plain = name == "tiled"
    kernels = [CUDA / "tiled.cu"] if plain else [CUDA / "tiled.cu", source]
    function = "tiled_config" if plain else name
    main = HERE / "interpreted" / "patches.cpp"
    said = builder.run(f"patches_{name}", main, kernels, f"-DPTQ4ARVG_TILE={function}")
    assert f"{64 if plain else 52} products agree" in said
    assert bank_conflicts(said) < (0.1 if plain else 0.35)  # see test_tile


@pytest.mark.parametrize(
    "source", [*(path for path in TILES if "patches" not in path.stem), CUDA / "tiled.cu"],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_tile(builder, source):
    name = source.stem.removesuffix("_base")
    function = "tiled_config" if name == "tiled" else name
    kernels = [CUDA / "tiled.cu"] if name == "tiled" else [CUDA / "tiled.cu", source]
    main = HERE / "interpreted" / "tile.cpp"
    said = builder.run(name, main, kernels, f"-DPTQ4ARVG_TILE={function}")
    assert "85 products agree" in said
    # On sm_90a CUTLASS stages float32 output with conflicts of two; the plain kernel, operands that
    # are not aligned.
    limit = 0.25 if re.match(r"sm90_\d", name) else 0.03 if name == "tiled" else 0.001
    assert bank_conflicts(said) < limit


def test_whole_calls(builder):
    """The choice of a kernel, unpacking, scratch and launch, with one tile per architecture."""
    base = [path for path in TILES if path.stem.endswith("_base")]
    reduced = ("-DPTQ4ARVG_HAS_SM80", "-DPTQ4ARVG_HAS_SM90A", "-DPTQ4ARVG_CUDA_REDUCED")
    table = builder.object(CUDA / "cutlass" / "table.cpp", *reduced)
    more = [CUDA / f"{name}.cpp" for name in ("gemm", "choose", "launch", "tile_table")]
    more.append(CSRC / "kernels" / "last_kernel.cpp")
    main = HERE / "interpreted" / "gemm.cpp"
    said = builder.run("gemm", main, [*OURS, *base], str(table), more=more).splitlines()
    for bits in (8, 6, 4):
        for kernel in ("decode", "tiled.64x64x64", "sm80_128x128x64", "sm90_128x128x128"):
            assert f"gemm.w{bits}.{kernel}" in said
        assert f"gemm_float.w{bits}.cuda" in said
