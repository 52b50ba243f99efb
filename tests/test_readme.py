"""The README does what it says: its Python runs, its commands exist."""

import re
from pathlib import Path

import pytest

from ptq4arvg.cli import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[number], f"README.md block {number}", "exec"), {})


def test_the_main_block_holds_two_commands():
    marker = TEXT.index("<!-- main-commands -->\n```sh\n")
    commands = TEXT[marker:].split("```")[1].removeprefix("sh\n").splitlines()
    assert len(commands) == 2
    assert "ptq4arvg demo --out demo" in commands[0]
    assert "pytest" in commands[1]


def test_commands_and_their_options_exist():
    parameters = {
        command.callback.__name__: set(command.callback.__annotations__)
        for command in app.app.registered_commands
    }
    lines = re.findall(r"ptq4arvg ([a-z]+)((?: [^`|\n]*)?)", "\n".join(blocks("sh")))
    assert len(lines) >= 5
    for command, rest in lines:
        assert command in app.COMMANDS
        for option in re.findall(r"--([a-z-]+)", rest):
            assert option.replace("-", "_") in parameters[command], f"{command} --{option}"


def test_the_picture_is_there():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT):
        assert (ROOT / path).is_file(), path
