"""Reading constants from graphs that are written byte by byte."""

import struct

import pytest
import torch

from ptq4arvg.evaluation.graphdef import read_constants
from tests.evaluation import graphs


def written(tmp_path, data):
    path = tmp_path / "graph.pb"
    path.write_bytes(data)
    return path


def test_float_constants_are_found_among_other_nodes(tmp_path):
    values = torch.arange(24.0).reshape(2, 3, 4) / 7
    data = graphs.graph(
        graphs.node("input", "Placeholder"),
        graphs.constant("a/weights", values),
        graphs.node("sizes", value=graphs.tensor([2], dtype=3, content=b"\1\0\0\0\2\0\0\0")),
        graphs.node("listed", value=graphs.tensor([3], floats=(1.0, 2.5, -3.0))),
        graphs.node("filled", value=graphs.tensor([2, 2], floats=(0.5,))),
        graphs.node("scalar", value=graphs.tensor([], floats=(7.0,))),
        graphs.node("empty", value=graphs.tensor([0, 3])),
        graphs.node("product", "MatMul"),
    )
    found = read_constants(written(tmp_path, data))
    assert list(found) == ["a/weights", "listed", "filled", "scalar", "empty"]
    assert torch.equal(found["a/weights"], values)
    assert found["listed"].tolist() == [1.0, 2.5, -3.0]
    assert found["filled"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert found["scalar"].item() == 7
    assert found["empty"].shape == (0, 3)


def test_a_list_of_floats_may_come_one_by_one(tmp_path):
    single = b"".join(graphs.varint(5 << 3 | 5) + struct.pack("<f", v) for v in (1.5, 2.5))
    data = graphs.graph(graphs.node("v", value=graphs.tensor([2]) + single))
    assert read_constants(written(tmp_path, data))["v"].tolist() == [1.5, 2.5]


def test_fields_of_fixed_size_are_skipped(tmp_path):
    data = (
        graphs.varint(9 << 3 | 1) + b"12345678" + graphs.graph(graphs.constant("v", torch.ones(2)))
    )
    assert read_constants(written(tmp_path, data))["v"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no float constant"),
        (graphs.graph(graphs.node("x", "MatMul")), "no float constant"),
        (b"PK\3\4 something else", "is no frozen TensorFlow graph"),
        (graphs.graph(graphs.constant("v", torch.ones(9)))[:-20], "longer than what holds it"),
        (b"\x80", "ends within a number"),
        (b"\xff" * 11, "more than ten bytes"),
        (b"\x0b", "wire type 3"),
        (graphs.graph(graphs.node("v", value=graphs.tensor([4], content=b"12345678"))),
         r"constant 'v' of shape \[4\] has 8 bytes"),
        (graphs.graph(graphs.node("v", value=graphs.tensor([4]))), "has 0 bytes"),
    ],
)  # fmt: skip
def test_other_files_are_an_error(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        read_constants(written(tmp_path, data))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"wanted a frozen TensorFlow graph \(\.pb\)"):
        read_constants(tmp_path / "none.pb")
