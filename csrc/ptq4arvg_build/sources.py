"""Which files make which binary, and what each is compiled for: by folder and name only."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c")
AVX_VNNI_FLAGS = ("-mavxvnni", *AVX2_FLAGS)
AVX512_VNNI_FLAGS = (
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    *AVX2_FLAGS,
)
AMX_INT8_FLAGS = ("-mamx-tile", "-mamx-int8", *AVX512_VNNI_FLAGS)
X86_NAMES = ("x86_64", "amd64")
ARM64_NAMES = ("aarch64", "arm64")

# By what a file's name contains, later sets after those that they build on.
X86_ISAS = {
    "avx2": AVX2_FLAGS,
    "avx_vnni": AVX_VNNI_FLAGS,
    "avx512_vnni": AVX512_VNNI_FLAGS,
    "amx_int8": AMX_INT8_FLAGS,
}
ARM64_ISAS = {"neon_dotprod": ("-march=armv8.2-a+dotprod",)}


@dataclass(frozen=True)
class Sources:
    """Source files: the op library's C++ and CUDA, and the introspection module's C++."""

    ops: tuple[Path, ...]
    cuda: tuple[Path, ...]
    info: tuple[Path, ...]


def is_x86(machine: str | None = None) -> bool:
    """Is this (or the named) machine a 64-bit x86?"""
    return (machine or platform.machine()).lower() in X86_NAMES


def isas_of(machine: str | None = None) -> dict[str, tuple[str, ...]]:
    """The instruction sets beyond the baseline, and their flags, of this or the named machine."""
    if is_x86(machine):
        return X86_ISAS
    return ARM64_ISAS if (machine or platform.machine()).lower() in ARM64_NAMES else {}


def isa_rank(path: Path) -> int:
    """0 baseline, 1 AVX2, 2 AVX-VNNI, 3 AVX-512-VNNI, 4 AMX, 5 NEON dot product, by file name."""
    return next(
        (rank for rank, name in enumerate([*X86_ISAS, *ARM64_ISAS], 1) if name in path.name), 0
    )


def isa_flags(path: Path, machine: str | None = None) -> tuple[str, ...]:
    """Compiler flags of one file's instruction set. Never the build machine's: wheels travel."""
    flags = next((flags for name, flags in isas_of(machine).items() if name in path.name), ())
    # -march=x86-64 first, so that a distribution's or a user's default cannot raise the baseline.
    return ("-march=x86-64", *flags) if is_x86(machine) else flags


def collect(csrc: Path, machine: str | None = None) -> Sources:
    """All source files under `csrc`, in link order.

    Baseline files come first, those with the newest instructions last: of an inline function that
    several files emit, the linker keeps the first copy, and every processor must be able to run it.
    """
    kernels = [
        path
        for path in csrc.glob("kernels/**/*.cpp")
        if (isa_rank(path) == 0 or any(name in path.name for name in isas_of(machine)))
        and not _is_cuda(path, csrc)
    ]
    torch_files = list(csrc.glob("torch/*.cpp"))
    cuda = [*csrc.glob("kernels/cuda/**/*.cu"), *csrc.glob("kernels/cuda/**/*.cpp")]
    return Sources(
        ops=tuple(sorted([*torch_files, *kernels], key=lambda p: (isa_rank(p), p.as_posix()))),
        cuda=tuple(sorted([*cuda, *csrc.glob("torch/cuda/*.cpp")])),
        info=tuple(sorted(csrc.glob("python/*.cpp"))),
    )


def _is_cuda(path: Path, csrc: Path) -> bool:
    return path.relative_to(csrc).parts[:2] == ("kernels", "cuda")


def cuda_archs(path: Path, archs: Iterable[str], cuda_set: str = "full") -> tuple[str, ...]:
    """Which of `archs` a .cu file is compiled for; none means that the file is left out.

    A name with sm90 stands for Hopper's own instructions, which sm_90a alone has; one with sm80 for
    kernels that sm_90a has something better for. The reduced set keeps CUTLASS files with `base` in
    the name.
    """
    if cuda_set == "reduced" and path.parent.name == "cutlass" and "base" not in path.stem:
        return ()
    if "sm90" in path.stem:
        return tuple(arch for arch in archs if arch == "90a")
    if "sm80" in path.stem:
        return tuple(arch for arch in archs if arch != "90a")
    return tuple(archs)


def has_cuda_kernels(sources: Sources) -> bool:
    """Are there any .cu files in this version?"""
    return any(path.suffix == ".cu" for path in sources.cuda)
