"""The build's environment variables: what is understood, and what a mistake is answered with."""

import pytest
from ptq4arvg_build import settings


def test_defaults():
    read = settings.read_settings({})
    assert read.mode == "auto"
    assert read.cuda_archs == ("80", "90a")
    assert read.jobs >= 1
    assert read.cuda_set == "full"


def test_all_variables_are_read():
    environ = {
        "PTQ4ARVG_BUILD": "CPU",
        "PTQ4ARVG_CUDA_ARCHS": "90a",
        "PTQ4ARVG_CUDA_SET": "Reduced",
        "MAX_JOBS": "3",
    }
    assert settings.read_settings(environ) == settings.Settings("cpu", ("90a",), 3, "reduced")


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("80", ("80",)),
        ("8.0;9.0a", ("80", "90a")),
        ("sm_80, compute_90a", ("80", "90a")),
        ("80;;80;", ("80",)),
        ("100a 120", ("100a", "120")),
        ("   ", ("80", "90a")),
    ],
)
def test_archs(text, archs):
    assert settings.parse_archs(text) == archs


@pytest.mark.parametrize("text", ["ninety", "80;hopper", "9", "90b", "-80"])
def test_unknown_arch(text):
    with pytest.raises(ValueError, match=r"PTQ4ARVG_CUDA_ARCHS=.*is not an architecture.*80;90a"):
        settings.parse_archs(text)


def test_too_old_arch():
    with pytest.raises(ValueError, match=r"'75' is older than 80"):
        settings.parse_archs("75;80")


def test_empty_arch_list():
    with pytest.raises(ValueError, match=r"the list is empty"):
        settings.parse_archs(";")


def test_unknown_mode():
    with pytest.raises(ValueError, match=r"PTQ4ARVG_BUILD='gpu': expected one of auto, cpu, cuda"):
        settings.parse_mode("gpu")


def test_unknown_set():
    with pytest.raises(
        ValueError, match=r"PTQ4ARVG_CUDA_SET='most': expected one of full, reduced"
    ):
        settings.parse_set("most")


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_bad_jobs(text):
    with pytest.raises(ValueError, match=r"MAX_JOBS=.*whole number"):
        settings.parse_jobs(text)


@pytest.mark.parametrize(
    ("cores", "gib", "jobs"), [(2, 24, 2), (64, 24, 4), (8, 5, 1), (1, 64, 1), (16, 96, 16)]
)
def test_jobs_from_cores_and_memory(cores, gib, jobs):
    assert settings.default_jobs(cores, gib << 30) == jobs
