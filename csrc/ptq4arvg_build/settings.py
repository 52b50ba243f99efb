"""The environment variables of the build, read and checked once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

MODES = ("auto", "cpu", "cuda")
# A binary for 80 also runs on 86 and 89: their integer instructions are the same.
DEFAULT_ARCHS = "80;90a"
CUDA_SETS = ("full", "reduced")
GIB_PER_JOB = 6  # what one nvcc instance of a CUTLASS kernel takes; a C++ file needs far less


@dataclass(frozen=True)
class Settings:
    """What the user asked for: `mode` (auto, cpu, cuda), CUDA architectures, parallel jobs.

    `cuda_set` is full, or reduced: one CUTLASS configuration for each architecture.
    """

    mode: str
    cuda_archs: tuple[str, ...]
    jobs: int
    cuda_set: str = "full"


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the four variables below; ValueError names a bad one."""
    environ = os.environ if environ is None else environ
    return Settings(
        mode=parse_mode(environ.get("PTQ4ARVG_BUILD", "")),
        cuda_archs=parse_archs(environ.get("PTQ4ARVG_CUDA_ARCHS", "")),
        jobs=parse_jobs(environ.get("MAX_JOBS", "")),
        cuda_set=parse_set(environ.get("PTQ4ARVG_CUDA_SET", "")),
    )


def parse_mode(text: str) -> str:
    """'' means 'auto'; case does not matter."""
    mode = text.strip().lower() or "auto"
    if mode not in MODES:
        raise ValueError(
            f"PTQ4ARVG_BUILD={text!r}: expected one of {', '.join(MODES)}. "
            "Type for example: PTQ4ARVG_BUILD=cpu pip install ."
        )
    return mode


def parse_set(text: str) -> str:
    """'' means 'full'; case does not matter."""
    name = text.strip().lower() or "full"
    if name not in CUDA_SETS:
        raise ValueError(f"PTQ4ARVG_CUDA_SET={text!r}: expected one of {', '.join(CUDA_SETS)}")
    return name


def parse_archs(text: str) -> tuple[str, ...]:
    """'80;90a' -> ('80', '90a'). '8.0', 'sm_80' and commas are understood; doubles are dropped."""
    archs: list[str] = []
    for part in re.split(r"[;,\s]+", text.strip() or DEFAULT_ARCHS):
        if not part:
            continue
        match = re.fullmatch(r"(?:sm_|compute_)?(\d{1,2})\.?(\d)([af]?)", part.lower())
        if not match:
            raise ValueError(
                f"PTQ4ARVG_CUDA_ARCHS={text!r}: {part!r} is not an architecture. "
                f"Expected a list such as {DEFAULT_ARCHS!r}."
            )
        arch = "".join(match.groups())
        if int(arch.rstrip("af")) < 80:
            raise ValueError(
                f"PTQ4ARVG_CUDA_ARCHS={text!r}: {part!r} is older than 80 (Ampere), "
                "the first architecture that the kernels support."
            )
        if arch not in archs:
            archs.append(arch)
    if not archs:
        raise ValueError(
            f"PTQ4ARVG_CUDA_ARCHS={text!r}: the list is empty; unset it for the default."
        )
    return tuple(archs)


def parse_jobs(text: str) -> int:
    """'' means as many as cores and memory allow."""
    if not text.strip():
        return default_jobs(usable_cores(), total_memory_bytes())
    if not re.fullmatch(r"\s*[0-9]+\s*", text) or int(text) < 1:
        raise ValueError(
            f"MAX_JOBS={text!r}: expected a whole number of 1 or more, e.g. MAX_JOBS=2"
        )
    return int(text)


def default_jobs(cores: int, memory_bytes: int) -> int:
    """min(cores, memory / 4 GiB), at least 1."""
    return max(1, min(cores, memory_bytes // (GIB_PER_JOB << 30)))


def usable_cores() -> int:
    """Cores that this process may run on (a container's limit counts)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_memory_bytes() -> int:
    """Physical memory; 8 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 8 << 30
