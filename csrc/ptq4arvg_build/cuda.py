"""Find nvcc and the CUTLASS headers, and decide whether this build has CUDA kernels."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .settings import Settings
from .torch_location import search_paths

CUTLASS_PACKAGE = "nvidia-cutlass==4.2.0.0"
CUTLASS_HELP = (
    "CUTLASS headers not found. Type one of:\n"
    "  git submodule update --init third_party/cutlass\n"
    f"  pip install {CUTLASS_PACKAGE} --no-deps"
)


def find_nvcc(environ: Mapping[str, str] | None = None) -> Path | None:
    """nvcc from CUDA_HOME or CUDA_PATH, else from PATH; None where neither has it."""
    environ = os.environ if environ is None else environ
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(variable):
            nvcc = Path(environ[variable], "bin", "nvcc")
            if nvcc.is_file():
                return nvcc
    found = shutil.which("nvcc", path=environ.get("PATH", ""))
    return Path(found) if found else None


def toolkit_folders(nvcc: Path) -> tuple[list[str], list[str]]:
    """Header and library folders of the toolkit behind `nvcc`, as nvcc itself tells them.

    Guessing from nvcc's own path fails where it is a script or a distribution's package.
    """
    command = [str(nvcc), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    headers: list[str] = []
    libraries: list[str] = []
    for line in (told.stdout + told.stderr).splitlines():
        name, _, value = line.removeprefix("#$ ").partition("=")
        words = [word.removeprefix("-I").removeprefix("-L") for word in shlex.split(value)]
        folders = [os.path.normpath(word) for word in words if os.path.isdir(word)]
        if name in ("INCLUDES", "SYSTEM_INCLUDES"):
            headers += folders
        elif name == "LIBRARIES":
            libraries += folders
    if not headers or not libraries:
        raise RuntimeError(
            f"{nvcc} does not tell where its headers and libraries are. Type: "
            f"{shlex.join(command)}  (it should print INCLUDES and LIBRARIES)"
        )
    return headers, libraries


def decide(
    settings: Settings,
    has_kernels: bool,
    nvcc: Path | None,
    torch_has_cuda: bool,
    say: Callable[[str], None] = print,
) -> bool:
    """Build CUDA kernels? Says in one line why not; RuntimeError when they were demanded.

    Next to a torch without CUDA they could not run, so only a demand builds them: the library
    works in other torch versions too.
    """
    if settings.mode == "cpu":
        reason = "PTQ4ARVG_BUILD=cpu"
    elif nvcc is None:
        reason = "no nvcc on PATH or in CUDA_HOME"
    elif not has_kernels:
        reason = "this version has no CUDA kernels yet"
    elif settings.mode == "auto" and not torch_has_cuda:
        reason = "this torch has no CUDA; PTQ4ARVG_BUILD=cuda builds the kernels all the same"
    else:
        return True
    if settings.mode == "cuda":
        raise RuntimeError(
            f"PTQ4ARVG_BUILD=cuda, but {reason}. "
            "Type: PTQ4ARVG_BUILD=cpu pip install .  (or put nvcc on PATH)"
        )
    say(f"ptq4arvg: building the CPU part only ({reason})")
    return False


def find_cutlass(root: Path, paths: Iterable[str | Path] | None = None) -> list[Path]:
    """Include folders of CUTLASS: the submodule under `root`, else the package nvidia-cutlass.

    The package is looked for on `paths` (default: sys.path, then the target environment).
    RuntimeError says what to type when there is neither.
    """
    places = paths if paths is not None else search_paths()
    packages = [Path(place, "cutlass_library", "source") for place in places]
    for source in [root / "third_party" / "cutlass", *packages]:
        if (source / "include" / "cutlass" / "cutlass.h").is_file():
            return [source / "include", source / "tools" / "util" / "include"]
    raise RuntimeError(CUTLASS_HELP)
