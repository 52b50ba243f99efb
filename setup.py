"""Builds the two binaries; everything else about the package is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))

from ptq4arvg_build.build_ext import BuildExt, extensions

setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt})
