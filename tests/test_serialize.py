"""Plain data and whole files."""

import os
from dataclasses import dataclass

import pytest
import torch

from ptq4arvg.serialize import (
    canonical_json,
    check_writable,
    plain,
    pretty_json,
    write_file,
)


@dataclass
class Point:
    x: int
    y: tuple


def test_plain_knows_what_reports_hold():
    value = {"p": Point(1, (2, 3)), "t": torch.tensor([1.5, 2.5]), "s": {"b", "a"}, "n": None}
    assert plain(value) == {"p": {"x": 1, "y": [2, 3]}, "t": [1.5, 2.5], "s": ["a", "b"], "n": None}


def test_keys_become_texts_and_sets_are_sorted():
    assert plain({1: frozenset({3, 2})}) == {"1": [2, 3]}
    assert pretty_json({1: [2]}) == '{\n  "1": [\n    2\n  ]\n}\n'


def test_numbers_that_are_not_finite_become_null():
    assert canonical_json([float("inf"), float("nan"), 1.5]) == "[null,null,1.5]"


def test_canonical_text_does_not_depend_on_the_order_of_keys():
    assert canonical_json({"b": 1, "a": [True]}) == canonical_json({"a": [True], "b": 1})
    assert canonical_json({"b": 1, "a": 2}) == '{"a":2,"b":1}'
    assert pretty_json({"b": 1, "a": 2}).startswith('{\n  "b": 1')


def test_other_objects_are_an_error():
    for value in (object(), Point):
        with pytest.raises(TypeError, match="cannot be written as JSON"):
            plain(value)


def test_write_file_replaces_whole_files_and_leaves_nothing_else(tmp_path):
    path, link = tmp_path / "new" / "folder" / "a.txt", tmp_path / "link"
    write_file(path, "one")
    link.hardlink_to(path)
    assert write_file(path, b"two") == path
    assert path.read_text() == "two" and link.read_text() == "one"
    with pytest.raises(TypeError):
        write_file(path, 3)
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_what_was_written_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))
        )
    write_file(tmp_path / "a", "one")
    assert calls == ["fsync", "replace"]


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    (
        check_writable(tmp_path),
        check_writable(tmp_path / "a" / "b"),
        check_writable("new", folder=False),
    )
    with pytest.raises(ValueError, match="is a folder; wanted the name of a file"):
        check_writable(tmp_path, folder=False)
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "file", folder=False)
    with pytest.raises(ValueError, match="is a file; wanted the name of a folder"):
        check_writable(tmp_path / "file")
    with pytest.raises(ValueError, match=r"cannot be made: .*file is a file"):
        check_writable(tmp_path / "file" / "a" / "b")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match="cannot be written to"):
        check_writable(tmp_path / "a")
