"""PEP 517 backend: setuptools, plus the one decision whether the build needs to download torch.

It does not when the environment that is being installed into has a torch already: that one is built
against. A build front end that runs another environment's interpreter (uv, `python -m build`) gets
a torch of its own; the stable ABI makes the result the same.
"""

from __future__ import annotations

import os
import shutil

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from . import cuda, sources, torch_location
from .build_ext import ROOT
from .settings import read_settings

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def extra_requirements() -> list[str]:
    """What this build needs beyond pyproject.toml: torch and the CUTLASS headers, where missing."""
    needed = []
    torch = torch_location.find_torch()
    if torch is None or not torch_location.is_new_enough(torch):
        needed.append("torch>=" + ".".join(map(str, torch_location.MINIMUM)))
    kernels = sources.has_cuda_kernels(sources.collect(ROOT / "csrc"))
    with_cuda = not torch or torch.has_cuda  # the one that pip would fetch has it
    if cuda.decide(read_settings(), kernels, cuda.find_nvcc(), with_cuda, say=lambda line: None):
        try:
            cuda.find_cutlass(ROOT)
        except RuntimeError:
            needed.append(cuda.CUTLASS_PACKAGE)
    return needed


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    """Requirements of a wheel."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *extra_requirements()]


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    """Requirements of an editable install."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *extra_requirements()]


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None) -> str:
    """Build a wheel, from nothing that an earlier build left over but object files."""
    # setuptools would pack a module that has since been deleted from the source.
    for leftover in (ROOT / "build").glob("lib*"):
        shutil.rmtree(leftover)
    name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    # Python started in the source folder imports the package from there, not the installed one.
    for binary in (ROOT / "build").glob("lib*/ptq4arvg/*.so"):
        # By renaming: a process that has the old one loaded keeps it.
        beside = ROOT / "ptq4arvg" / f"{binary.name}.{os.getpid()}"
        shutil.copy2(binary, beside)
        os.replace(beside, beside.with_name(binary.name))
    return name


def build_editable(wheel_directory, config_settings=None, metadata_directory=None) -> str:
    """Build an editable install; the binaries land in the source tree."""
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
