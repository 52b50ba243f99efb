"""Captured iterations of MAR: the transformer's graph of each, and the diffusion head's."""

import pytest
import torch

from tests.graph_cases import KINDS, LABELS, build, made
from tests.graph_tape import DirectBackend

# Four iterations over 16 tokens draw 2, 3, 5 and 6 of them.
STEPS = {"2 after 0", "3 after 2", "5 after 5", "6 after 10",
         *(f"draw {tokens}, guided" for tokens in (2, 3, 5, 6))}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"attention"}))
def test_captured_iterations_give_what_eager_ones_give(kind):
    model = made("mar", kind)
    for seed in (3, 4):  # the second time nothing is captured
        wanted = model.sample_ids(LABELS, seed)
        assert torch.equal(model.sample_ids(LABELS, seed, graphs=True), wanted)
    (captured,) = model.graphs.captured.values()
    assert captured == dict.fromkeys(STEPS, 2)
    assert model.graphs.backend.captures == len(STEPS)


@pytest.mark.parametrize("kind", ["float32", "W8A8", "sinks"])
def test_only_inputs_change_between_replays(kind):
    """Labels, order and noise, strength and temperature: as recorded, and when called anew."""
    recorded, called = made("mar", kind), made("mar", kind, DirectBackend())
    for labels, seed, options in (
        (LABELS, 1, {}), (LABELS.flip(0), 2, {"cfg": 4.0}),
        (torch.tensor([4, 4, 1]), 3, {"temperature": 0.5}),
    ):  # fmt: skip
        wanted = recorded.sample_ids(labels, seed, **options)
        for model in (recorded, called):
            assert torch.equal(model.sample_ids(labels, seed, graphs=True, **options), wanted)
    assert recorded.graphs.backend.captures == len(STEPS)


def test_iterations_and_guidance_of_other_numbers_have_steps_of_their_own():
    """Also where the rows are as many: two guided images, four that are not."""
    model = build("mar")
    cases = [([1, 3], {}), ([1, 3], {"num_iter": 3}), ([0, 1, 2, 3], {"cfg": 1.0}), ([1, 3], {})]
    for labels, options in cases:
        wanted = model.generate(labels, seed=2, graphs=False, **options)
        assert torch.equal(model.generate(labels, seed=2, **options), wanted)
        assert model.graphs.eager == ""
    ((size, captured),) = model.graphs.captured.items()
    assert size == (4, torch.float32)
    assert {"draw 2", "draw 2, guided"} < captured.keys() > STEPS
    assert captured["2 after 0"] == 3


def test_iterations_that_draw_as_many_share_the_graph_of_the_head():
    model = build("mar")
    model.generate([2], num_iter=16)
    (captured,) = model.graphs.captured.values()
    assert sum(count for name, count in captured.items() if name.startswith("draw")) == 16
    assert captured["draw 1, guided"] > 1 and len(captured) < 32
