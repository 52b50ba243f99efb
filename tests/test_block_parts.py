"""A run that dies between two blocks goes on from the finished ones, to the same bits."""

import os
import signal
import subprocess
import sys

import pytest
import torch

import ptq4arvg
from ptq4arvg.block_parts import BlockParts
from ptq4arvg.cli import main
from ptq4arvg.methods import METHODS, get_method
from ptq4arvg.models import build_model
from ptq4arvg.pipeline import quantize_
from tests.models.tiny import TINY

STEPS = 3


def tiny():
    return build_model("var-test", TINY["var"], seed=0)


def rows(seed=0):
    return ptq4arvg.calibrate(tiny(), samples=8, keep=4, seed=seed)


def run(model, calibration, parts, scheme="W4A8", steps=STEPS, seed=5, **rest):
    method = get_method("omniquant", steps=steps, seed=seed)
    return quantize_(model, scheme, method, calibration, parts=parts, **rest)


def run_and_die(folder):
    """Quantize, and be killed at the first step of the second block; for another process."""

    def progress(phase, done, _total):
        if phase == "reconstruct" and done > STEPS:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    run(tiny(), rows(), folder, progress=progress)


@pytest.fixture
def threads():
    """One thread, as in the process that dies: sums of floats depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, threads):
    folder = tmp_path / "parts"
    code = f"from tests.test_block_parts import run_and_die; run_and_die({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == ["block-blocks.0.safetensors"]
    before = (folder / kept[0]).stat().st_mtime_ns

    calibration, whole, resumed, ticks = rows(), tiny(), tiny(), []
    report = run(whole, calibration, None)
    again = run(resumed, calibration, folder, progress=lambda *event: ticks.append(event))
    assert again.to_dict() == report.to_dict() and resumed.recipe == whole.recipe
    state = resumed.state_dict()
    assert state.keys() == whole.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
    learned = [event for event in ticks if event[0] == "reconstruct"]
    assert learned == [("reconstruct", n, 2 * STEPS) for n in (STEPS, *range(STEPS + 1, 7))]
    assert (folder / kept[0]).stat().st_mtime_ns == before
    assert len(list(folder.iterdir())) == 2
    BlockParts.remove(folder)
    assert not folder.exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, rows) of a run whose blocks are all there."""
    folder, calibration = tmp_path_factory.mktemp("parts"), rows()
    run(tiny(), calibration, folder)
    return folder, calibration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 2}, "is of steps 3, not 2, so this run cannot go on.*another one with --parts"),
        ({"seed": 6}, "is of seed 5, not 6, so"),
        ({"scheme": "W6A6"}, r'is of schemes \["W4A8"\], not \["W6A6"\], so'),
        ({"overrides": {"blocks.0.attn.proj": "W8A8", "blocks.1.attn.proj": "W4A8"}},
         r'is of schemes \["W4A8"\], not \["W4A8","W8A8"\], so'),
        ({"batch_size": 2}, "is of batch_size 16, not 2, so"),
    ],
)  # fmt: skip
def test_blocks_of_other_options_are_refused(finished, changes, message):
    folder, calibration = finished
    with pytest.raises(ValueError, match=message):
        run(tiny(), calibration, folder, **changes)


def test_blocks_of_other_linears_are_refused(tmp_path):
    calibration = rows()
    run(tiny(), calibration, tmp_path, overrides={"blocks.0.attn.proj": "W8A8"})
    with pytest.raises(ValueError, match=r"is of scheme of each linear .*, not .*, so"):
        run(tiny(), calibration, tmp_path, overrides={"blocks.1.attn.proj": "W8A8"})


def test_blocks_of_other_weights_and_rows_are_refused(finished):
    folder, calibration = finished
    other = tiny()
    with torch.no_grad():
        next(other.parameters()).flatten()[0] += 1
    with pytest.raises(ValueError, match=r'is of weights "[0-9a-f]{64}", not "[0-9a-f]{64}", so'):
        run(other, calibration, folder)
    with pytest.raises(ValueError, match="is of calibration seed 0, not 1, so"):
        run(tiny(), rows(seed=1), folder)
    fewer = ptq4arvg.Calibration(calibration.ids[:2], calibration.labels[:2])
    with pytest.raises(ValueError, match=r'is of calibration rows "[0-9a-f]{64}", not'):
        run(tiny(), fewer, folder)


def test_a_damaged_block_is_refused(finished, tmp_path):
    folder, calibration = finished
    path = tmp_path / "block-blocks.1.safetensors"
    path.write_bytes((folder / path.name).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"block-blocks\.1\.safetensors cannot be read .*delete"):
        run(tiny(), calibration, tmp_path)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"omniquant"}))
def test_methods_that_learn_no_blocks_keep_none(name, tmp_path):
    with pytest.raises(ValueError, match=f"method '{name}' does not learn block by block"):
        quantize_(tiny(), "W4A8", name, parts=tmp_path)


def test_the_research_code_keeps_none(tmp_path):
    with pytest.raises(ValueError, match="compat='research' does not learn block by block"):
        quantize_(tiny(), "W4A8", compat="research", parts=tmp_path)


def test_the_command_removes_its_blocks_in_the_end(tmp_path, monkeypatch, capsys):
    argv = ["quantize", "par-tiny", "--samples", "4", "--keep", "2", "--scheme", "W4A8", "-q",
            "--out", str(tmp_path / "q"), "--parts", str(tmp_path / "parts")]  # fmt: skip
    assert main([*argv, "--method", "rtn"]) == 2
    assert "'rtn' does not learn block by block, so that --parts would" in capsys.readouterr().err
    seen, write = [], BlockParts.write
    monkeypatch.setattr(
        BlockParts, "write", lambda parts, name, t: (seen.append(name), write(parts, name, t))
    )
    assert main([*argv, "--method", "omniquant", "--option", "steps=1"]) == 0
    assert seen == ptq4arvg.load_model("par-tiny").block_names()
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def test_a_folder_of_something_else_is_left_as_it_is(finished, tmp_path):
    """A checkpoint, for one, has a safetensors file, too."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match="no part of an interrupted run, so its folder is left as"):
        run(tiny(), finished[1], tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"
