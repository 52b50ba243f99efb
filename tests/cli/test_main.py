"""The command line as a whole: help, errors in one line, exit codes, what is imported when."""

import json
import os
import subprocess
import sys

import pytest

from ptq4arvg.cli import app, main


def test_every_command_explains_itself(capsys):
    for command in app.COMMANDS:
        assert main([command, "--help"]) == 0
        assert f"ptq4arvg {command}" in capsys.readouterr().out


def test_version(capsys):
    from ptq4arvg import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ptq4arvg {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quantise", "var-tiny"], "no command 'quantise'.* Closest: 'quantize'"),
        (["quantize", "var-tiny"], "no --out; give a folder for the checkpoint, or --dry-run"),
        (["quantize", "var-tiny", "--method", "rtm", "--dry-run"], "'rtm'.* Closest: 'rtn'"),
        (["quantize", "var-tinny", "--dry-run"], "'var-tinny'.*Closest: 'var-tiny'"),
        (
            ["quantize", "var-tiny", "--scheme", "W6A7", "--dry-run"],
            "'W6A7'.* Closest: 'W6A8', 'W6A6'",
        ),
        (
            ["quantize", "var-tiny", "--method", "quarot", "--out", "/no/such/folder"],
            "'quarot' has no integer path .*so there is no checkpoint to write",
        ),
        (["verify", "/no/such/folder"], "/no/such/folder is no folder; wanted a checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line_and_exit_with_two(arguments, message, capsys):
    import re

    assert main([*arguments, "--quiet"] if arguments[0] != "quantise" else arguments) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert error.startswith("ptq4arvg: ")
    assert re.search(message, error), error


def test_usage_errors_exit_with_two(capsys):
    assert main(["verify"]) == 2
    assert "Missing argument" in capsys.readouterr().err
    assert main(["verify", "x", "--sed", "1"]) == 2
    assert "--sed" in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("PTQ4ARVG_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["verify", "/no/such/folder", "--quiet"])


def test_an_interrupt_is_not_an_error_message(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ptq4arvg.cli.verify.run", interrupt)
    assert main(["verify", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_nobody_reads_the_output():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ptq4arvg", "models"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_help_imports_neither_torch_nor_numpy():
    code = (
        "import sys; from ptq4arvg.cli import main; main(['--help']); "
        "print({'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_module_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ptq4arvg", "doctor", "--json"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(done.stdout)["operators"]["loaded"] is True
