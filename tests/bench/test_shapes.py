"""The table of shapes, and the lists of M."""

import pytest
import shapes

from ptq4arvg.models.registry import build_model, model_config


@pytest.mark.parametrize("name", shapes.names())
def test_every_model_has_positive_shapes(name):
    found = shapes.linears(name)
    assert len({linear.layer for linear in found}) == len(found) >= 5
    assert all(linear.n > 0 and linear.k % 64 == 0 for linear in found)


def test_shapes_are_those_of_the_model():
    model = build_model("var-d16", model_config("var-d16"))
    wanted = {spec.role: spec.name for spec in model.linears()}
    for linear in shapes.linears("var-d16"):
        name = wanted[linear.layer]
        assert list(model.transformer.get_submodule(name).weight.shape) == [linear.n, linear.k]


def test_an_unknown_name_offers_the_closest():
    with pytest.raises(ValueError, match="Closest: 'var-d16'"):
        shapes.linears("var-16")


def test_m_lists():
    assert shapes.parse_m("128, 1,8,1") == [1, 8, 128]
    assert shapes.parse_m("decode") == list(shapes.DECODE_M)
    assert shapes.parse_m("var")[:3] == [2, 8, 18]
    assert shapes.parse_m("var:8")[-1] == 4096
    assert sum(shapes.var_m(1, guidance=False)) == 680


@pytest.mark.parametrize("text", ["", "0", "1,x", "-3", "var:0", "decode:2", "8:2", "1,,2"])
def test_bad_m_is_an_error(text):
    with pytest.raises(ValueError, match="--m"):
        shapes.parse_m(text)
