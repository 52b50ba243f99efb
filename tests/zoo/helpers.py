"""Running a trainer on the random pictures, stopping it, and comparing what it leaves."""

from __future__ import annotations

import signal

import torch
from safetensors.torch import load_file

from ptq4arvg.models.registry import DATA
from zoo import loop

BUNDLED = DATA / "var-tiny"


class Display:
    """Notes what is shown; at ``stop`` finished steps it presses Ctrl-C."""

    def __init__(self, stop=None):
        self.stop, self.calls, self.said = stop, [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __call__(self, phase, done, total):
        self.calls.append((phase, done, total))
        if done == self.stop:
            signal.raise_signal(signal.SIGINT)

    def say(self, text):
        self.said.append(text)


def seeded(seed):
    """A generator."""
    return torch.Generator().manual_seed(seed)


def train(module, data, out, *extra, stop=None, monkeypatch=None):
    """Run a trainer for 4 steps of 2 pictures; Ctrl-C after ``stop`` steps if given."""
    if stop is not None:
        monkeypatch.setattr(loop, "make_progress", lambda: Display(stop))
    argv = ["--data", str(data), "--out", str(out), "--steps", "4", "--batch", "2", *extra]
    code = module.main(argv)
    if stop is not None:
        monkeypatch.undo()
    return code


def same_tree(a, b):
    """Whether two nests of dicts, lists and tensors are equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_tree, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def check_resume(module, name, files, data, tmp_path, monkeypatch, *extra):
    """A run stopped after two steps and resumed gives the files of an uninterrupted one."""
    assert train(module, data, tmp_path / "whole", *extra) == 0
    out = tmp_path / "parts"
    assert train(module, data, out, *extra, stop=2, monkeypatch=monkeypatch) == 130
    assert not any((out / file).exists() for file in files)
    assert train(module, data, out, *extra, "--resume") == 0
    kept = [
        torch.load(tmp_path / x / f"{name}.ckpt", weights_only=True) for x in ("whole", "parts")
    ]
    assert kept[0]["step"] == 4 and same_tree(*kept)
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (out / file).read_bytes()
    assert not list(out.glob("*.part"))
    return tmp_path / "whole"


def check_like_bundled(path, bundled=None):
    """Names, shapes and types are those of the bundled file, the values are not."""
    made, wanted = load_file(path), load_file(bundled or BUNDLED / path.name)
    assert {n: (v.shape, v.dtype) for n, v in made.items()} == {
        n: (v.shape, v.dtype) for n, v in wanted.items()
    }
    assert not all(torch.equal(made[name], wanted[name]) for name in made)
    return made
