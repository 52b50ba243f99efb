"""Write a build.ninja for one binary and run it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Binary:
    """One shared library: compilers, linker, and each object's source and own flags."""

    output: Path
    cxx: str
    cxx_flags: Sequence[str]
    link_flags: Sequence[str]
    objects: list[tuple[Path, tuple[str, ...]]] = field(default_factory=list)
    nvcc: str | None = None
    nvcc_flags: Sequence[str] = ()
    cuda_objects: list[tuple[Path, tuple[str, ...]]] = field(default_factory=list)


def quote(text: str | Path) -> str:
    """Escape a path or flag for a ninja command line, which a POSIX shell runs."""
    return shlex.quote(str(text)).replace("$", "$$")


def path_of(path: Path) -> str:
    """Escape a path for a ninja `build` line."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def render(binary: Binary, folder: Path) -> str:
    """The text of build.ninja; objects go below `folder`."""
    lines = [
        "ninja_required_version = 1.3",
        f"cxx = {binary.cxx.replace('$', '$$')}",
        f"cxx_flags = {_join(binary.cxx_flags)}",
        f"link_flags = {_join(binary.link_flags)}",
        "rule cxx",
        "  command = $cxx -MMD -MF $out.d $cxx_flags $isa -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in $isa",
        "rule link",
        "  command = $cxx -shared $in $link_flags -o $out",
        "  description = link $out",
    ]
    if binary.nvcc:
        lines += [
            f"nvcc = {quote(binary.nvcc)}",
            f"nvcc_flags = {_join(binary.nvcc_flags)}",
            "rule nvcc",
            # What ptxas says of registers and spills stays beside the object; tests read it.
            "  command = $nvcc -MD -MF $out.d $nvcc_flags $archs -c $in -o $out > $out.ptxas 2>&1"
            " || { cat $out.ptxas; exit 1; }",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = nvcc $in",
        ]
    outputs = []
    for source, isa in binary.objects:
        outputs.append(_object(folder, source))
        lines.append(f"build {path_of(outputs[-1])}: cxx {path_of(source)}")
        lines.append(f"  isa = {_join(isa)}")
    for source, archs in binary.cuda_objects:
        outputs.append(_object(folder, source))
        lines.append(f"build {path_of(outputs[-1])}: nvcc {path_of(source)}")
        lines.append(f"  archs = {_join(archs)}")
    inputs = " ".join(path_of(output) for output in outputs)
    lines.append(f"build {path_of(binary.output)}: link {inputs}")
    lines.append(f"default {path_of(binary.output)}")
    return "\n".join(lines) + "\n"


def run(binary: Binary, folder: Path, jobs: int) -> None:
    """Build `binary`; RuntimeError with the compiler's output above it when that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    binary.output.parent.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(render(binary, folder), encoding="utf-8")
    sys.stdout.flush()  # so that our lines stand above the compiler's in a log
    done = subprocess.run([*find_ninja(), "-C", str(folder), f"-j{jobs}"], check=False)
    if done.returncode:
        raise RuntimeError(
            f"building {binary.output.name} failed (see the compiler's messages above)"
        )


def find_ninja() -> list[str]:
    """The command for ninja: the one on PATH, or the PyPI package's."""
    try:
        import ninja

        program = os.path.join(ninja.BIN_DIR, "ninja")
        if os.path.exists(program):
            return [program]
    except ImportError:
        pass
    found = shutil.which("ninja")
    if found:
        return [found]
    raise RuntimeError("ptq4arvg is built with ninja, which was not found. Type: pip install ninja")


def _object(folder: Path, source: Path) -> Path:
    # The last two folders keep cpu/dispatch.cpp and torch/dispatch.cpp apart.
    return folder / "-".join([*source.parts[-3:-1], source.name + ".o"])


def _join(flags: Iterable[str]) -> str:
    return " ".join(quote(flag) for flag in flags)
