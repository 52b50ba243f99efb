"""Which files are compiled into what, with which instruction set."""

from pathlib import Path

import pytest
from ptq4arvg_build import sources

NAMES = [
    "kernels/cpu/amx_int8.cpp",
    "kernels/cpu/gemm_avx512_vnni.cpp",
    "kernels/cpu/gemm_avx2.cpp",
    "kernels/cpu/gemm_neon_dotprod.cpp",
    "kernels/cpu/scalar.cpp",
    "kernels/cuda/gemm_sm80.cu",
    "kernels/cuda/select.cpp",
    "torch/cuda/gemm.cpp",
    "torch/library.cpp",
    "python/module.cpp",
    "kernels/gemm.h",
]


@pytest.fixture
def csrc(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(csrc, paths):
    return [path.relative_to(csrc).as_posix() for path in paths]


def test_collect(csrc):
    found = sources.collect(csrc, "x86_64")
    assert names(csrc, found.info) == ["python/module.cpp"]
    assert names(csrc, found.cuda) == [
        "kernels/cuda/gemm_sm80.cu",
        "kernels/cuda/select.cpp",
        "torch/cuda/gemm.cpp",
    ]
    assert sources.has_cuda_kernels(found)


def test_baseline_files_are_linked_first(csrc):
    assert names(csrc, sources.collect(csrc, "x86_64").ops) == [
        "kernels/cpu/scalar.cpp",
        "torch/library.cpp",
        "kernels/cpu/gemm_avx2.cpp",
        "kernels/cpu/gemm_avx512_vnni.cpp",
        "kernels/cpu/amx_int8.cpp",
    ]


def test_other_machines_leave_out_the_x86_files(csrc):
    baseline = ["kernels/cpu/scalar.cpp", "torch/library.cpp"]
    assert names(csrc, sources.collect(csrc, "riscv64").ops) == baseline
    found = sources.collect(csrc, "aarch64")
    assert names(csrc, found.ops) == [*baseline, "kernels/cpu/gemm_neon_dotprod.cpp"]
    assert sources.isa_flags(Path("scalar.cpp"), "aarch64") == ()
    flags = sources.isa_flags(Path("gemm_neon_dotprod.cpp"), "aarch64")
    assert flags == ("-march=armv8.2-a+dotprod",)


def test_no_cuda_files(tmp_path):
    (tmp_path / "torch" / "cuda").mkdir(parents=True)
    (tmp_path / "torch" / "cuda" / "gemm.cpp").touch()
    assert not sources.has_cuda_kernels(sources.collect(tmp_path))


@pytest.mark.parametrize(
    ("name", "has", "has_not"),
    [
        ("scalar.cpp", [], ["-mavx2", "-mfma", "-mavx512f"]),
        ("gemm_avx2.cpp", ["-mavx2", "-mfma", "-mf16c"], ["-mavx512f", "-mavxvnni"]),
        ("gemm_avx_vnni.cpp", ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"], ["-mavx512f"]),
        (
            "avx512_vnni.cpp",
            ["-mavx512vnni", "-mavx512bw", "-mavx512vl", "-mavx512dq"],
            ["-mamx-int8"],
        ),
        ("gemm_amx_int8.cpp", ["-mamx-tile", "-mamx-int8", "-mavx512vnni"], []),
    ],
)
def test_isa_flags_by_file_name(name, has, has_not):
    flags = sources.isa_flags(Path("csrc/kernels/cpu", name), "x86_64")
    assert flags[0] == "-march=x86-64"
    assert set(has) <= set(flags)
    assert not set(has_not) & set(flags)


def test_folder_names_do_not_matter():
    assert sources.isa_flags(Path("avx512_vnni/scalar.cpp"), "x86_64") == ("-march=x86-64",)


@pytest.mark.parametrize(
    ("name", "full", "reduced"),
    [
        ("cuda/quantize.cu", ("80", "86", "90a"), ("80", "86", "90a")),
        ("cuda/cutlass/sm80_base.cu", ("80", "86"), ("80", "86")),
        ("cuda/cutlass/sm80_64x64.cu", ("80", "86"), ()),
        ("cuda/cutlass/sm90_base.cu", ("90a",), ("90a",)),
        ("cuda/cutlass/sm90_swap.cu", ("90a",), ()),
    ],
)
def test_cuda_architectures_by_file_name(name, full, reduced):
    archs = ("80", "86", "90a")
    assert sources.cuda_archs(Path(name), archs) == full
    assert sources.cuda_archs(Path(name), archs, "reduced") == reduced


def test_a_file_without_its_architecture_is_left_out():
    assert sources.cuda_archs(Path("cuda/sm90_base.cu"), ("80", "90")) == ()
