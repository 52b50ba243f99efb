"""bench/gpu.sh and bench/preflight.py without a GPU: refusals, and the arguments of each step."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import preflight
import pytest
import torch

from ptq4arvg import ops

SCRIPT = Path(preflight.__file__).with_name("gpu.sh")
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def run(folder, *arguments, python=sys.executable, **variables):
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, check=False,
        env=os.environ | NO_GPU | {"RESULTS": str(folder / "r"), "PYTHON": str(python)} | variables,
    )  # fmt: skip


def test_an_unknown_step(tmp_path):
    done = run(tmp_path, "test")
    assert done.returncode == 2 and "no step 'test'" in done.stderr


def test_without_a_gpu_nothing_begins(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("preflight.py: ")
    assert list((tmp_path / "r").iterdir()) == []


@pytest.fixture
def python(tmp_path):
    """A Python that finds the machine good, collects tests and does all else that it is told."""
    path = tmp_path / "python"
    path.write_text(f"""#!/bin/sh
case "$*" in
  bench/preflight.py) exit 0 ;;
  "-m pytest"*) exec {sys.executable} "$@" --collect-only -p no:cacheprovider ;;
  *) exec {sys.executable} "$@" ;;
esac
""")
    path.chmod(0o755)
    return path


def test_every_benchmark_takes_its_arguments(tmp_path, python):
    """The last thing that each of them looks at is whether there is a GPU."""
    steps = "peers", "kernels", "attention", "decoder", "generate", "tune"
    archive = tmp_path / "r.tgz"
    done = run(tmp_path, *steps, python=python, ARCHIVE=str(archive))
    assert done.returncode == 1
    logs = {log.stem: log.read_text() for log in (tmp_path / "r").glob("*.log")}
    assert set(logs) == {
        "doctor", "peers", "quantize", "quantize--rotate", "norm_quantize",
        "norm_quantize--rotate", "gemm", "attention", "decoder", "generate-var-d24", "tune",
    }  # fmt: skip
    for name, log in logs.items():
        if name != "doctor":
            missing = "torch sees no CUDA device" if name == "tune" else "sees 0 CUDA devices"
            assert missing in log, (name, log)
            assert f"== {name}: FAILED (status 2)" in done.stdout
    assert "== doctor: passed" in done.stdout
    with tarfile.open(archive) as packed:
        assert {f"./{name}.log" for name in logs} < set(packed.getnames())


def test_no_step_outlasts_the_time_there_is(tmp_path, python):
    done = run(tmp_path, "--within", "5", "peers", python=python)
    assert done.returncode == 1
    assert "== peers: FAILED, no time left" in done.stdout
    assert not (tmp_path / "r" / "peers.log").exists()


def test_the_expressions_that_choose_tests(tmp_path, python):
    """A stand-in for the two tools runs what it is given."""
    for tool in ("compute-sanitizer", "ncu"):
        path = tmp_path / tool
        path.write_text(f'#!/bin/sh\nwhile [ "$1" != {python} ]; do shift; done\nexec "$@"\n')
        path.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    run(tmp_path, "tests", "sanitizer", "profile", python=python, PATH=path)
    logs = {log.stem: log.read_text() for log in (tmp_path / "r").glob("*.log")}
    tools = [f"{tool}check{part}" for tool in ("mem", "race", "sync") for part in ("", "-kernels")]
    assert set(logs) == {"doctor", "tests", "profile", *tools}
    for name, log in logs.items():
        assert "ERROR" not in log and "usage:" not in log, (name, log)


def test_preflight_names_what_is_missing(monkeypatch, capsys):
    build = ops.build_info()
    monkeypatch.setattr(ops, "build_info", lambda: build | {"cuda": False})
    assert preflight.main() == 2
    assert "built without CUDA kernels; type: PTQ4ARVG_BUILD=cuda" in capsys.readouterr().err
    monkeypatch.setattr(ops, "build_info", lambda: build | {"cuda": True, "cuda_archs": "90a"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert preflight.problem() == f"torch {torch.__version__} sees no CUDA device"


@pytest.fixture
def pretended(monkeypatch):
    """The CPU as a GPU."""
    build = ops.build_info()
    monkeypatch.setattr(ops, "build_info", lambda: build | {"cuda": True, "cuda_archs": "90a"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)


def test_preflight_on_a_machine_that_has_it_all(pretended, capsys):
    assert preflight.main() == 0
    assert capsys.readouterr().out == f"NVIDIA H100, torch {torch.__version__}, kernels for 90a\n"


def test_preflight_runs_a_kernel(pretended, monkeypatch):
    real, calls = ops.quantize, []

    def other(*args):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("no kernel image")
        return real(*args) + (len(calls) == 2)

    monkeypatch.setattr(ops, "quantize", other)
    assert "gives other codes" in preflight.problem()
    assert preflight.problem() == "the first kernel fails: no kernel image"
