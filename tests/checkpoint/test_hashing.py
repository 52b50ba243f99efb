"""The content hash follows the content and nothing else."""

import pytest
import torch

from ptq4arvg.checkpoint import content_hash

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
        (CONFIG, {"a": TENSORS["a"], "c": TENSORS["b"]}),
        (CONFIG, {**TENSORS, "c": torch.zeros(0)}),
    ],
    ids=["config", "shape", "value", "bits", "name", "empty tensor"],
)
def test_every_part_matters(config, tensors):
    assert content_hash(config, tensors) != content_hash(CONFIG, TENSORS)
