"""Folders appear whole or not at all."""

import errno
import os

import pytest

from ptq4arvg.checkpoint import folder as module
from ptq4arvg.checkpoint.folder import replaceable, write_folder


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
    with pytest.raises(FileExistsError, match=r"not empty any more.*Give another folder"):
        write_folder(tmp_path / "a", lambda p: None)
    assert names(tmp_path / "a") == ["old"]
    assert names(tmp_path) == ["a"]


def test_what_a_link_leads_to_is_replaced(tmp_path):
    write_folder(tmp_path / "v1", lambda p: (p / "old").write_text("1") and None)
    (tmp_path / "latest").symlink_to("v1")
    (tmp_path / "next").symlink_to("v2")
    for link in ("latest", "next"):
        write_folder(tmp_path / link, lambda p: (p / "new").write_text("2") and None, replace=True)
    assert names(tmp_path) == ["latest", "next", "v1", "v2"]
    assert names(tmp_path / "v1") == names(tmp_path / "v2") == ["new"]
    assert (tmp_path / "latest").is_symlink() and (tmp_path / "next").is_symlink()


def test_folders_that_cannot_give_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for current in (".", "", tmp_path):
        with pytest.raises(ValueError, match=r"is the current folder.* such as .*quantized"):
            replaceable(current)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ValueError, match="circle is a link that leads to itself"):
        replaceable("circle")
    with pytest.raises(ValueError, match="is where a file system is mounted"):
        replaceable(os.sep)


def test_another_error_of_the_system_is_told_as_it_is(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EACCES, "no")

    monkeypatch.setattr(module.os, "rename", refuse)
    with pytest.raises(PermissionError, match="no"):
        write_folder(tmp_path / "a", lambda path: None)
    assert not any(tmp_path.iterdir())
