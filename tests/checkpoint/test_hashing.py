"""The content hash follows the content and nothing else."""

import hashlib
import struct
from types import SimpleNamespace

import pytest
import torch

from ptq4arvg.checkpoint import content_hash
from ptq4arvg.checkpoint.hashing import model_hash, text_hash

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2], dtype=torch.uint16)}
CONFIG = {"x": 1, "y": [1.5, None]}


def test_order_and_hashes_of_files_do_not_matter():
    first = content_hash(CONFIG, TENSORS)
    config = {"y": [1.5, None], "hash": "z", "files": {"recipe.yaml": "z"}, "x": 1}
    assert content_hash(config, dict(reversed(TENSORS.items()))) == first
    assert content_hash(CONFIG, {**TENSORS, "a": TENSORS["a"].T.contiguous().T}) == first
    assert len(first) == 64


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({**CONFIG, "x": 2}, TENSORS),
        (CONFIG, {**TENSORS, "a": TENSORS["a"].view(3, 2)}),
        (CONFIG, {**TENSORS, "a": TENSORS["a"] + 1}),
        (CONFIG, {**TENSORS, "a": TENSORS["a"].to(torch.int32).view(torch.float32)}),
        (CONFIG, {**TENSORS, "b": TENSORS["b"].view(torch.int16)}),
        (CONFIG, {"a": TENSORS["a"], "c": TENSORS["b"]}),
        (CONFIG, {**TENSORS, "c": torch.zeros(0)}),
    ],
    ids=["config", "shape", "value", "bits", "dtype", "name", "empty tensor"],
)
def test_every_part_matters(config, tensors):
    assert content_hash(config, tensors) != content_hash(CONFIG, TENSORS)


def test_it_is_sha_256_of_what_the_docstring_says():
    weight = torch.nn.Parameter(torch.tensor([[1.0], [-2.0]]))
    parts = (
        b'{"x":1,"y":[1.5,null]}',
        b"\nb torch.uint16 [2]\n", struct.pack("<2H", 1, 2),
        b"\nw torch.float32 [2, 1]\n", struct.pack("<2f", 1, -2),
    )  # fmt: skip
    found = content_hash(CONFIG, {"w": weight, "b": TENSORS["b"]})
    assert found == hashlib.sha256(b"".join(parts)).hexdigest()
    assert text_hash(" \u00fc\n") == hashlib.sha256(b" \xc3\xbc\n").hexdigest()


def test_both_configurations_and_the_weights_are_a_models():
    def hashed(config=1, tokenizer=1, weight=1.0):
        return model_hash(SimpleNamespace(
            config={"a": config}, tokenizer=SimpleNamespace(config={"b": tokenizer}),
            state_dict=lambda: {"c": torch.tensor([weight])},
        ))  # fmt: skip

    assert hashed() == hashed()
    assert len({hashed(), hashed(config=2), hashed(tokenizer=2), hashed(weight=2.0)}) == 4
