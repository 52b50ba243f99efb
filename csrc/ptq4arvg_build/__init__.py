"""How the two binaries of ptq4arvg are built.

`backend` is the PEP 517 entry, `build_ext` the setuptools command; everything below them is one
small file per question: which settings (`settings`), which sources and flags (`sources`), where
torch (`torch_location`), nvcc and CUTLASS (`cuda`) are, and what ninja is told (`ninja_file`).
Nothing here imports torch or needs more than the standard library, setuptools, ninja and pybind11.
"""
