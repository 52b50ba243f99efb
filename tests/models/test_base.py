"""What all families inherit: labels, defaults of sampling, images some at a time, captures."""

import pytest
import torch

from ptq4arvg.models import base, build_model
from tests.models.tiny import TINY


@pytest.fixture(scope="module")
def model():
    return build_model("small", TINY["var"], seed=0)


@pytest.mark.parametrize("given", [2, torch.tensor(2), [2], torch.tensor([[2]], dtype=torch.uint8)])
def test_one_label_is_a_list_of_one(model, given):
    labels = model.check_labels(given)
    assert labels.tolist() == [2] and labels.dtype == torch.int64


def test_zero_switches_a_default_off(model, monkeypatch):
    made = []
    monkeypatch.setattr(base, "Sampler", lambda *args: made.append(args))
    defaults = model.config.sampling
    for top_k, top_p in ((None, None), (0, 0.0), (3, 0.5)):
        model._sampler(4, 9, top_k, top_p, 1)
    assert made == [(4, 9, defaults.top_k, defaults.top_p, 1), (4, 9, 0, 0.0, 1), (4, 9, 3, 0.5, 1)]
    assert defaults.top_k and defaults.top_p


@pytest.mark.parametrize(("images", "parts"), [(0.5, [1] * 5), (2, [2, 2, 1]), (99, [3, 2])])
def test_a_cpu_decodes_few_pixels_at_a_time_and_an_image_at_least(
    model, monkeypatch, images, parts
):
    side, decode, seen = model.tokenizer.config.image_size, model.decode_ids, []
    monkeypatch.setattr(base, "DECODED", 3)
    monkeypatch.setattr(base, "DECODED_PIXELS_CPU", int(images * side**2))
    ids = torch.randint(40, (5, model.tokens), generator=torch.Generator().manual_seed(0))
    wanted = torch.cat([decode(row) for row in ids.split(1)])
    monkeypatch.setattr(model, "decode_ids", lambda ids: seen.append(len(ids)) or decode(ids))
    torch.testing.assert_close(model.decode_in_parts(ids), wanted, atol=1e-5, rtol=0)
    assert seen == parts


def test_why_nothing_is_captured(model):
    why = model.graphs.refusal(torch.device("cpu"))
    assert why and model.captures() == {} and model.graphs.eager == why
    assert model.captures(False) == {} and model.graphs.eager == "graphs=False"
    with pytest.raises(ValueError, match=r"graphs=True, but .*; wanted graphs=None or False"):
        model.captures(True)
