"""Folders appear whole or not at all."""

import pytest

from ptq4arvg.checkpoint import folder as module
from ptq4arvg.checkpoint.folder import write_folder


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_a_folder_appears_with_its_files(tmp_path):
    write_folder(tmp_path / "deep" / "a", lambda p: (p / "x").write_text("1") and None)
    assert (tmp_path / "deep" / "a" / "x").read_text() == "1"
    assert names(tmp_path / "deep") == ["a"]


def test_a_failure_leaves_nothing_behind(tmp_path):
    def fail(path):
        (path / "x").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "a", fail)
    assert names(tmp_path) == []


@pytest.mark.parametrize("can_exchange", [True, False])
def test_replacing_drops_the_old_files(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(module, "_exchange", lambda *_: False)
    write_folder(tmp_path / "a", lambda p: (p / "old").write_text("1") and None)
    write_folder(tmp_path / "a", lambda p: (p / "new").write_text("2") and None, replace=True)
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["new"]


def test_without_replace_a_full_folder_stays(tmp_path):
    write_folder(tmp_path / "a", lambda p: (p / "old").write_text("1") and None)
    with pytest.raises(OSError, match="not empty"):
        write_folder(tmp_path / "a", lambda p: None)
    assert names(tmp_path / "a") == ["old"]
    assert names(tmp_path) == ["a"]
