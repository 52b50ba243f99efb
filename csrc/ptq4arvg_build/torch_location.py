"""Find the torch to build against: its headers and libraries, without importing it.

An isolated build runs the interpreter of the target environment but hides the packages of that
environment. The stable ABI needs only header files and one library, so the folder is enough.
"""

from __future__ import annotations

import re
import site
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MINIMUM = (2, 10)


@dataclass(frozen=True)
class Torch:
    """An installed torch: its folder and version, e.g. '2.13.0+cpu'."""

    path: Path
    version: str

    @property
    def include(self) -> Path:
        """The folder that holds torch/csrc/stable."""
        return self.path / "include"

    @property
    def lib(self) -> Path:
        """The folder that holds libtorch_cpu.so."""
        return self.path / "lib"

    @property
    def has_cuda(self) -> bool:
        """Whether this torch can use a CUDA device."""
        return (self.lib / "libtorch_cuda.so").is_file()


def target_paths(prefix: str | None = None) -> list[Path]:
    """Package folders of the environment that is being installed into, nearest first."""
    prefix = prefix or sys.prefix
    places = [sysconfig.get_path(kind) for kind in ("platlib", "purelib")]
    config = Path(prefix, "pyvenv.cfg")
    sees_system = True
    if config.is_file():
        text = config.read_text(encoding="utf-8", errors="replace").lower()
        sees_system = re.search(r"include-system-site-packages\s*=\s*true", text) is not None
    if sees_system:
        if prefix != sys.base_prefix:
            base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
            places += [sysconfig.get_path(kind, vars=base) for kind in ("platlib", "purelib")]
        places.append(site.getusersitepackages())
        places += site.getsitepackages([sys.base_prefix])
    return list(dict.fromkeys(Path(place) for place in places))


def search_paths() -> list[Path]:
    """Where the build looks for installed packages: what it can import, then the target's."""
    return [*(Path(place or ".") for place in sys.path), *target_paths()]


def find_torch(paths: Iterable[str | Path] | None = None) -> Torch | None:
    """The first torch with C++ headers on `paths` (default: `search_paths()`)."""
    for place in paths if paths is not None else search_paths():
        folder = Path(place, "torch")
        version_file = folder / "version.py"
        if version_file.is_file() and (folder / "include" / "torch").is_dir():
            found = re.search(r"^__version__ = '([^']+)'", version_file.read_text(), re.MULTILINE)
            if found:
                return Torch(folder.resolve(), found.group(1))
    return None


def is_new_enough(torch: Torch) -> bool:
    """Does it have the stable ABI that the op library uses?"""
    number = re.match(r"(\d+)\.(\d+)", torch.version)
    return number is not None and tuple(map(int, number.groups())) >= MINIMUM


def require_torch(torch: Torch | None) -> Torch:
    """`torch`, or an error that says what to type when there is none or it is too old."""
    wanted = ".".join(map(str, MINIMUM))
    if torch is None:
        raise RuntimeError(
            "ptq4arvg is built against an installed torch and found none. "
            f"Type: pip install 'torch>={wanted}'  (then install ptq4arvg again)"
        )
    if not is_new_enough(torch):
        raise RuntimeError(
            f"ptq4arvg needs torch {wanted} or later (stable ABI), found {torch.version} in "
            f"{torch.path}. Type: pip install 'torch>={wanted}'"
        )
    return torch
