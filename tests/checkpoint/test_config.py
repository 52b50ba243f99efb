"""The quantization_config of a checkpoint, field by field, and what is read back from it."""

import re
from types import SimpleNamespace

import pytest
import torch

from ptq4arvg.checkpoint.config import (
    attention_settings,
    layer_settings,
    quantization_config,
)
from ptq4arvg.nn import IntAttention

RECIPE = {"scheme": "W4A8", "method": "rtn", "calibration": {"hash": "abc"}}


def layer(w_bits=4, a_bits=8, positions=3, sink=(), rotation=0):
    zero = None if w_bits == 8 else torch.zeros(2)
    return SimpleNamespace(w_bits=w_bits, a_bits=a_bits, w_zero=zero, sink=sink, rotation=rotation,
                           position_group=torch.zeros(positions))  # fmt: skip


def config(linears, attention=None, ignore=()):
    return quantization_config(linears, attention or {}, {}, RECIPE, list(ignore))


@pytest.mark.parametrize(
    ("bits", "name", "symmetric"),
    [(8, "int-quantized", True), (6, "dense-pack-quantized", False), (4, "pack-quantized", False)],
)
def test_every_field(bits, name, symmetric):
    softmax = SimpleNamespace(bits=6, softmax="uniform")
    found = config({"a": layer(bits, 6, 5, (0, 2), 16)}, {"core": softmax}, ["b"])
    assert found == {
        "quant_method": "ptq4arvg", "version": 2, "format": name, "scheme": "W4A8",
        "method": "rtn", "calibration_hash": "abc",
        "config_groups": {
            "group_0": {
                "targets": ["a"],
                "format": name,
                "weights": {
                    "num_bits": bits, "type": "int", "symmetric": symmetric,
                    "strategy": "channel", "dynamic": False,
                },
                "input_activations": {
                    "num_bits": 6, "type": "int", "symmetric": False, "strategy": "token",
                    "dynamic": False, "num_positions": 5, "float_positions": [0, 2],
                    "rotation": 16,
                },
            }
        },
        "attention": {"core": {"num_bits": 6, "softmax": "uniform"}},
        "ignore": ["b"],
    }  # fmt: skip


def test_alike_layers_share_a_group_and_every_layer_is_read_back_as_it_is():
    layers = {
        "a": layer(), "b": layer(w_bits=6), "c": layer(), "d": layer(a_bits=6),
        "e": layer(positions=4), "f": layer(sink=(1,)), "g": layer(rotation=32), "h": layer(8),
    }  # fmt: skip
    found = config(layers)
    assert found["format"] == "mixed-precision"
    targets = [group["targets"] for group in found["config_groups"].values()]
    assert targets == [["a", "c"], ["b"], ["d"], ["e"], ["f"], ["g"], ["h"]]
    assert layer_settings(found) == {
        name: {
            "w_bits": one.w_bits, "a_bits": one.a_bits, "positions": len(one.position_group),
            "sink": one.sink, "rotation": one.rotation,
        }
        for name, one in layers.items()
    }  # fmt: skip


def test_the_version_is_the_oldest_that_says_all():
    tables = IntAttention(*(torch.ones(1, 4) for _ in IntAttention.TABLES))
    simulated = SimpleNamespace(bits=6, softmax="uniform")
    plain, rotated = {"a": layer()}, {"a": layer(), "b": layer(rotation=16)}
    assert config(plain)["version"] == config(plain, {"core": simulated})["version"] == 1
    assert config(rotated)["version"] == 2
    assert config(plain, {"x": simulated, "core": tables})["version"] == 3
    assert config(plain, {"core": tables})["attention"] == {"core": {"num_bits": 8, "type": "int"}}


@pytest.mark.parametrize(("part", "bits"), [("weights", 5), ("input_activations", 16)])
def test_other_bits_are_refused(part, bits):
    found = config({"a": layer()})
    found["config_groups"]["group_0"][part]["num_bits"] = bits
    asked = "5 weight and 8" if part == "weights" else "4 weight and 16"
    with pytest.raises(ValueError, match=f"asks for {asked} activation bits; wanted 4, 6 or 8"):
        layer_settings(found)


@pytest.mark.parametrize("part, field", [
    ("weights", "num_bits"), ("input_activations", "num_bits"),
    ("input_activations", "num_positions"), ("input_activations", "float_positions"),
])  # fmt: skip
def test_an_absent_field_is_named(part, field):
    found = config({"a": layer()})
    del found["config_groups"]["group_0"][part][field]
    with pytest.raises(ValueError, match=f"quantization_config is incomplete: no '{field}'"):
        layer_settings(found)


@pytest.mark.parametrize("field, bad", [
    ("num_positions", 0), ("num_positions", 3.0), ("num_positions", True),
    ("float_positions", [3]), ("float_positions", [-1]), ("float_positions", [None]),
    ("rotation", "16"), ("rotation", None),
])  # fmt: skip
def test_positions_that_are_none_are_refused(field, bad):
    found = config({"a": layer(rotation=16)})
    inputs = found["config_groups"]["group_0"]["input_activations"]
    inputs[field] = bad
    message = (
        "has num_positions {num_positions!r}, float_positions {float_positions!r} and rotation"
    )
    with pytest.raises(ValueError, match=re.escape(message.format(**inputs))):
        layer_settings(found)
    inputs |= {"num_positions": 3, "float_positions": [2], "rotation": 0}
    assert layer_settings(found)["a"]["sink"] == (2,)


def test_kinds_of_attention():
    integer = {"num_bits": 8, "type": "int"}
    simulated = [{"num_bits": 4, "softmax": "uniform"}, {"num_bits": 6, "softmax": "log_sqrt2"}]
    for settings, kind in (({}, "float"), ({"a": integer, "b": integer}, "int8"),
                           (dict(enumerate(simulated)), "simulated")):  # fmt: skip
        assert attention_settings({"attention": settings}) == (kind, settings)
    assert attention_settings({}) == ("float", {})
    for settings, wanted in [
        ([integer], "wanted a setting for each core"),
        ({"a": 8}, "wanted a setting for each core"),
        ({"a": integer, "b": simulated[0]}, "all of it in integers of 8 bits"),
        ({"a": integer | {"num_bits": 4}}, "all of it in integers of 8 bits"),
        ({"a": simulated[0], "b": {}}, "all of it of 4, 6 or 8 bits and a known softmax"),
        ({"a": simulated[0] | {"num_bits": 5}}, "all of it of 4, 6 or 8 bits and a known softmax"),
        ({"a": simulated[0] | {"softmax": "x"}}, "all of it of 4, 6 or 8 bits and a known softmax"),
    ]:
        with pytest.raises(ValueError, match=f"quantization_config has attention .*{wanted}"):
            attention_settings({"attention": settings})
