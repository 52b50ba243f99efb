"""The setuptools command that builds ptq4arvg/_C.so and ptq4arvg/_info.<abi>.so."""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext as SetuptoolsBuildExt
from setuptools.errors import SetupError

from . import cuda, ninja_file, sources, torch_location
from .settings import Settings, read_settings

ROOT = Path(__file__).resolve().parents[2]
OPS = "ptq4arvg._C"
INFO = "ptq4arvg._info"

COMMON_FLAGS = (
    *("-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    *("-Wall", "-Wextra"),
    # A fused multiply-add rounds once where the number format says twice.
    "-ffp-contract=off",
)
# Use only what torch 2.10 has, so that one binary runs in it and in every later version.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000ULL"
# The stable ABI lives in libtorch_cpu alone; CUDA's libraries must stay optional. libstdc++ comes
# first because torch's libraries export copies of parts of it, which another torch may not have.
OPS_LINK_FLAGS = ("-Wl,--no-undefined", "-Wl,--as-needed", "-lstdc++", "-pthread")


def extensions() -> list[Extension]:
    """The two binaries as setuptools knows them; `BuildExt` decides what goes into them."""
    found = sources.collect(ROOT / "csrc")
    names = {OPS: [*found.ops, *found.cuda], INFO: [*found.info]}
    return [
        Extension(name, [path.relative_to(ROOT).as_posix() for path in files])
        for name, files in names.items()
        if files
    ]


class BuildExt(SetuptoolsBuildExt):
    """Compiles with ninja, per-file instruction-set flags, and the target environment's torch."""

    def get_ext_filename(self, fullname: str) -> str:
        """The op library knows no Python, so its name has no Python tag."""
        if fullname.split(".")[-1] == "_C":
            return os.path.join(*fullname.split(".")[:-1], "_C.so")
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        """Build each extension with its own recipe."""
        try:
            self._build_all()
        except (RuntimeError, ValueError) as error:  # setuptools shows its own kind in one line
            raise SetupError(str(error)) from None

    def _build_all(self) -> None:
        if not sys.platform.startswith("linux"):
            raise RuntimeError(f"ptq4arvg builds on Linux only, this is {sys.platform}")
        settings = read_settings()
        for extension in self.extensions:
            recipe = self._ops if extension.name == OPS else self._info
            output = Path(self.get_ext_fullpath(extension.name)).resolve()
            folder = Path(self.build_temp).resolve() / extension.name.rpartition(".")[2]
            ninja_file.run(recipe(output, settings), folder, settings.jobs)

    def _ops(self, output: Path, settings: Settings) -> ninja_file.Binary:
        torch = torch_location.require_torch(torch_location.find_torch())
        found = sources.collect(ROOT / "csrc")
        nvcc = cuda.find_nvcc()
        with_cuda = cuda.decide(settings, sources.has_cuda_kernels(found), nvcc, torch.has_cuda)
        print(f"ptq4arvg: building against torch {torch.version} in {torch.path}")
        defines = [
            STABLE_ABI,
            f'-DPTQ4ARVG_VERSION="{self.distribution.get_version()}"',
        ]
        include = [f"-I{ROOT / 'csrc'}", "-isystem", str(torch.include)]
        binary = ninja_file.Binary(
            output=output,
            cxx=_compiler(),
            cxx_flags=[*_words("CXXFLAGS"), *COMMON_FLAGS, *defines, *include],
            link_flags=[*OPS_LINK_FLAGS, f"-L{torch.lib}", "-ltorch_cpu"],
            objects=[(path, sources.isa_flags(path)) for path in found.ops],
        )
        if with_cuda:
            _add_cuda(binary, settings, found, nvcc)
        binary.link_flags = [*binary.link_flags, *_words("LDFLAGS")]
        return binary

    def _info(self, output: Path, settings: Settings) -> ninja_file.Binary:
        import pybind11

        python_include = sysconfig.get_path("include")
        include = [f"-I{ROOT / 'csrc'}"]
        for folder in (python_include, pybind11.get_include()):
            include += ["-isystem", folder]
        return ninja_file.Binary(
            output=output,
            cxx=_compiler(),
            cxx_flags=[*_words("CXXFLAGS"), *COMMON_FLAGS, *include],
            link_flags=["-ldl", *_words("LDFLAGS")],
            objects=[
                (path, sources.isa_flags(Path("baseline")))
                for path in sources.collect(ROOT / "csrc").info
            ],
        )


def _add_cuda(
    binary: ninja_file.Binary, settings: Settings, found: sources.Sources, nvcc: Path
) -> None:
    """Add the .cu files, and the C++ files that call them, to the op library."""
    headers, libraries = cuda.toolkit_folders(nvcc)
    include = []
    for folder in [*headers, *cuda.find_cutlass(ROOT)]:
        include += ["-isystem", str(folder)]
    defines = _cuda_defines(settings)
    host = [flag for flag in binary.cxx_flags if flag.startswith(("-D", "-I"))]
    binary.cxx_flags = [*binary.cxx_flags, *defines, *include]
    binary.nvcc = str(nvcc)
    binary.nvcc_flags = [
        *("-O3", "-std=c++20", "--expt-relaxed-constexpr", "--fmad=false", "-Xptxas=-v"),
        "-DNDEBUG",  # device asserts cost registers and serialize wgmma
        *("-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"),
        *(*host, *defines, *include),
    ]
    for path in found.cuda:
        if path.suffix == ".cu":
            archs = sources.cuda_archs(path, settings.cuda_archs, settings.cuda_set)
            if archs:
                flags = tuple(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs)
                binary.cuda_objects.append((path, flags))
        else:
            binary.objects.append((path, sources.isa_flags(path)))
    # The static runtime: whichever CUDA torch brings, or none, is no concern of ours.
    binary.link_flags = [
        *binary.link_flags,
        *(f"-L{folder}" for folder in libraries),
        *("-lcudart_static", "-ldl", "-lrt", "-lpthread"),
    ]


def _cuda_defines(settings: Settings) -> list[str]:
    """What the sources see of the CUDA part's settings."""
    defines = ["-DPTQ4ARVG_WITH_CUDA", f'-DPTQ4ARVG_CUDA_ARCHS="{";".join(settings.cuda_archs)}"']
    if any(arch != "90a" for arch in settings.cuda_archs):
        defines.append("-DPTQ4ARVG_HAS_SM80")
    if "90a" in settings.cuda_archs:
        defines.append("-DPTQ4ARVG_HAS_SM90A")
    if settings.cuda_set == "reduced":
        defines.append("-DPTQ4ARVG_CUDA_REDUCED")
    return defines


def _compiler() -> str:
    return os.environ.get("CXX") or "g++"


def _words(variable: str) -> list[str]:
    """A user's own flags. They come before ours, which decide where bits depend on them."""
    return shlex.split(os.environ.get(variable, ""))
