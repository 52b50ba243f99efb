"""The training loop: checkpoints, resuming, interruption, progress and error messages."""

from __future__ import annotations

import argparse
import signal

import pytest
import torch

from tests.zoo.helpers import Display
from zoo import loop


def options(out, **changes):
    values = {"out": out, "steps": 6, "batch": 2, "seed": 0, "device": "cpu", "save_every": 4,
              "resume": False, "float32": False}  # fmt: skip
    return argparse.Namespace(**values | changes)


def job(display, run, fail_at=None):
    """A run of a small problem whose steps draw from the generator; its weights afterwards."""
    model = torch.nn.Linear(3, 1)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(run.seed)

    def step(done):
        if done == fail_at:
            return {"loss": float("nan")}
        loss = model(torch.rand(run.batch, 3, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item(), "done": float(done)}

    parts = {"model": model, "optimizer": optimizer}
    loop.train("job", run, parts, generator, step, display)
    return model.weight.detach().clone()


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = job(Display(), options(tmp_path / "a"))
    with pytest.raises(loop.Stopped, match=r"after step 3; .*--resume"):
        job(Display(stop=3), options(tmp_path / "b"))
    display = Display()
    resumed = job(display, options(tmp_path / "b", resume=True))
    assert torch.equal(whole, resumed)
    assert display.said[0] == "going on from step 3" and display.calls[0] == ("job", 3, 6)
    first, second = (torch.load(tmp_path / x / "job.ckpt", weights_only=True) for x in "ab")
    assert first["step"] == second["step"] == 6
    assert torch.equal(first["generator"], second["generator"])
    for a, b in zip(
        first["parts"]["optimizer"]["state"].values(),
        second["parts"]["optimizer"]["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_ctrl_c_is_put_back_afterwards(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(loop.Stopped):
        job(Display(stop=1), options(tmp_path))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    class Impatient(Display):
        def __call__(self, phase, done, total):
            super().__call__(phase, done, total)
            super().__call__(phase, done, total)

    with pytest.raises(KeyboardInterrupt):
        job(Impatient(stop=2), options(tmp_path))
    assert not (tmp_path / "job.ckpt").exists()


def test_ctrl_c_in_the_last_step_ends_the_run_as_usual(tmp_path):
    assert torch.equal(
        job(Display(stop=6), options(tmp_path / "a")), job(Display(), options(tmp_path / "b"))
    )


def test_checkpoints_are_written_on_the_way(tmp_path):
    with pytest.raises(FloatingPointError, match="loss of step 5 is nan; the last checkpoint"):
        job(Display(), options(tmp_path), fail_at=5)
    state = torch.load(tmp_path / "job.ckpt", weights_only=True)
    assert state["step"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["job.ckpt"]


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "job.ckpt"
    loop.save_checkpoint(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        loop.save_checkpoint(path, {"step": lambda: None})
    assert torch.load(path, weights_only=True) == {"step": 1}


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 9), ("batch", 3), ("seed", 1), ("float32", 1)]
)
def test_resuming_with_other_settings_is_refused(tmp_path, name, value):
    job(Display(), options(tmp_path))
    with pytest.raises(ValueError, match=f"made with {name} .*, not {value}"):
        job(Display(), options(tmp_path, resume=True, **{name: value}))


def test_a_finished_run_is_not_overwritten_and_resumes_to_itself(tmp_path):
    whole = job(Display(), options(tmp_path))
    with pytest.raises(FileExistsError, match="Add --resume to go on"):
        job(Display(), options(tmp_path))
    assert torch.equal(whole, job(Display(), options(tmp_path, resume=True)))


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*job\.ckpt"):
        job(Display(), options(tmp_path, resume=True))


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_checkpoints_are_read_without_executing_anything(tmp_path, capsys):
    torch.save({"step": Harmful()}, tmp_path / "job.ckpt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        job(Display(), options(tmp_path, resume=True))
    (tmp_path / "job.ckpt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        job(Display(), options(tmp_path, resume=True))
    assert capsys.readouterr().out == ""


def test_the_first_line_with_the_time_left_comes_within_two_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    class Slow(Display):
        def __call__(self, phase, done, total):
            super().__call__(phase, done, total)
            now[0] += 0.5  # a step takes this long

        def say(self, text):
            super().say(f"{now[0] - 100:.1f} s: {text}")

    display = Slow()
    job(display, options(tmp_path, steps=100))
    assert display.calls[0] == ("job", 0, 100)
    assert display.said[0].startswith("1.5 s: step 2/100: loss ")
    assert display.said[0].endswith("; about 74 s left")
    # Then one every 30 s with the means since the last one, and one at the end.
    assert [line.split(":")[0] for line in display.said] == ["1.5 s", "31.5 s", "50.5 s"]
    assert "done 31.5;" in display.said[1]  # the 3rd to the 62nd step
    assert display.said[-1].endswith("about 0 s left")


def run(body, argv, capsys):
    code = loop.run_command(loop.arguments("Train.", steps=7, batch=3), argv, body)
    return code, capsys.readouterr().err


BASIC = ["--data", "d", "--out", "o"]


def test_the_command_line_has_the_defaults_of_its_trainer(capsys):
    seen = []
    assert run(lambda options, display: seen.append(options), BASIC, capsys) == (0, "")
    assert (seen[0].steps, seen[0].batch, seen[0].seed, seen[0].device) == (7, 3, 0, "cpu")
    assert (str(seen[0].data), str(seen[0].out), seen[0].resume) == ("d", "o", False)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (FileNotFoundError("no data"), 1, "error: no data\n"),
        (ValueError("wrong"), 1, "error: wrong\n"),
        (FloatingPointError("not finite"), 1, "error: not finite\n"),
        (loop.Stopped("stopped after step 3"), 130, "stopped after step 3\n"),
        (KeyboardInterrupt(), 130, "stopped; the last checkpoint is kept\n"),
    ],
)
def test_errors_become_a_line_and_an_exit_code(error, code, message, capsys):
    def body(options, display):
        raise error

    assert run(body, BASIC, capsys) == (code, message)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--steps", "0"], "argument --steps: 0; wanted at least 1"),
        (["--batch", "-1"], "argument --batch: -1; wanted at least 1"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--sede", "1"], "unrecognized arguments: --sede 1"),
    ],
)
def test_wrong_options_are_refused(extra, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(lambda options, display: None, BASIC + extra, capsys)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_data_and_out_are_required(capsys):
    with pytest.raises(SystemExit):
        run(lambda options, display: None, [], capsys)
    assert "required: --data, --out" in capsys.readouterr().err


def test_cuda_without_a_device_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        run(lambda options, display: None, [*BASIC, "--device", "cuda"], capsys)
    assert "this PyTorch sees no CUDA device" in capsys.readouterr().err
