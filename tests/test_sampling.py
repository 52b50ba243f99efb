"""Sampling: streams per image, exact probabilities, filters, guidance."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq4arvg.sampling import Sampler, filter_logits, guide, image_generator, image_streams


def test_guidance():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
    assert torch.equal(guide(a, b, 0.0), a)
    assert torch.allclose(guide(a, b, 2.0), 3 * a - 2 * b)


def test_streams_differ_by_seed_and_index():
    draws = {
        torch.rand(1, generator=image_generator(seed, i), dtype=torch.float64).item()
        for seed in range(20)
        for i in range(20)
    }
    assert len(draws) == 400


def test_frequencies_are_the_probabilities():
    """Pearson's statistic of 200000 draws over 8 tokens: chi-squared with 7 degrees of freedom."""
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0, -3.0, 0.5, 0.1])
    n = 200_000
    ids = Sampler(1, seed=0, top_k=0, top_p=0.0)(logits.expand(1, n, 8), 0)
    expected = logits.softmax(0) * n
    statistic = ((torch.bincount(ids[0], minlength=8) - expected).square() / expected).sum()
    assert statistic < 24.3  # exceeded once in a thousand


def test_only_what_the_filters_leave_is_drawn():
    logits = torch.randn(2, 500, 30, generator=torch.Generator().manual_seed(0))
    ids = Sampler(2, seed=1, top_k=3, top_p=0.0)(logits, 0)
    assert logits.topk(3).indices.eq(ids[..., None]).any(-1).all()
    ids = Sampler(2, seed=1, top_k=9, top_p=0.5)(logits, 0)
    assert filter_logits(logits, 9, 0.5).gather(2, ids[..., None]).isfinite().all()
    best = Sampler(2, seed=1, top_k=1, top_p=0.0)(logits, 0)
    assert torch.equal(best, logits.argmax(-1))


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
def test_tokens_without_probability_are_not_drawn(number, monkeypatch):
    """Not even by the least and the largest random number that there is."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 300, 9, generator=g)
    logits[..., 0] = logits[..., -1] = -torch.inf
    numbers = torch.full((300, 1), number, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: numbers)
    ids = Sampler(1, 0, 0, 0.0)(logits, 0)
    assert (ids == (7 if number else 1)).all()


def test_every_image_has_a_stream_of_its_own():
    logits = torch.zeros(3, 50, 40)
    ids = Sampler(3, 7, 0, 0.0, index=5)(logits, 0)
    for row, index in zip(ids, (5, 6, 7), strict=True):
        uniform = torch.rand(50, generator=image_generator(7, index), dtype=torch.float64)
        assert torch.equal(row, (uniform * 40).long())
    assert len(set(map(tuple, ids.tolist()))) == 3


@pytest.mark.parametrize("top_k", [*range(10), 12])
def test_top_k_keeps_as_many(top_k):
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    kept = filter_logits(logits, top_k).isfinite()
    assert (kept.sum(1) == (min(top_k, 9) or 9)).all()


@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(-1, 0.0), (0, -0.1), (0, 1.5), (0, "0.5"), (0, float("nan")), (0, torch.zeros(2))],
)
def test_filters_that_are_none(top_k, top_p):
    message = re.escape(f"top_k is {top_k!r}, top_p {top_p!r}; wanted top_k of 0")
    with pytest.raises(ValueError, match=message):
        Sampler(1, 0, top_k, top_p)


@pytest.mark.parametrize("top_k", [2.5, "9", None])
def test_a_top_k_that_is_no_whole_number(top_k):
    with pytest.raises(ValueError, match=f"top_k is {top_k!r}; wanted a whole number"):
        Sampler(1, 0, top_k, 0.0)


def test_rows_do_not_depend_on_their_company():
    logits = torch.randn(5, 9, 40, generator=torch.Generator().manual_seed(0))
    whole = Sampler(5, 3, 20, 0.9)(logits, 0)
    part = Sampler(2, 3, 20, 0.9, index=3)(logits[3:], 0)
    assert torch.equal(part, whole[3:])
    picked = torch.tensor([4, 0])
    assert torch.equal(Sampler(2, 3, 20, 0.9, index=picked)(logits[picked], 0), whole[picked])
    with pytest.raises(ValueError, match=r"index has shape \[3\]; wanted one number, or \[2\]"):
        Sampler(2, 3, 20, 0.9, index=torch.arange(3))


def test_the_global_stream_is_left_alone():
    before = torch.get_rng_state()
    Sampler(1, 0, 0, 0.0)(torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(0)), 0)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 14), st.floats(0, 0.999))
@settings(deadline=None, max_examples=60)
def test_filters_keep_the_best_and_no_more_than_asked(seed, vocabulary, top_k, top_p):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, vocabulary, generator=generator)
    kept = filter_logits(logits, top_k, top_p).isfinite()
    assert kept.gather(1, logits.argmax(1, keepdim=True)).all()
    if top_k:
        assert (kept.sum(1) <= top_k).all()
    if top_p and not top_k:
        mass = (logits.softmax(1) * kept).sum(1)
        assert (mass >= top_p - 1e-5).all()
    assert torch.equal(filter_logits(logits), logits)


@pytest.mark.parametrize("top_p", [0.5, 0.9])
def test_top_p_keeps_the_smallest_set(top_p):
    probabilities = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    kept = filter_logits(probabilities.log(), 0, top_p).isfinite().sum().item()
    assert kept == {0.5: 2, 0.9: 3}[top_p]


def test_equal_logits_at_the_limit_stay_together():
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    assert filter_logits(logits, 2).isfinite().tolist() == [[True, True, True, True, False]]
    assert filter_logits(logits, 2, 0.999).isfinite().sum() == 4


@pytest.mark.parametrize("same", [3, 40])
def test_many_equal_logits(same):
    """However many are equal to the least of the top-k, all of them count."""
    logits = torch.cat([torch.arange(10.0, 5.0, -1), torch.zeros(same), -torch.ones(50)])[None]
    kept = filter_logits(logits.double(), 6, 1 - 1e-9).isfinite()
    assert kept[0, : 5 + same].all() and not kept[0, 5 + same :].any()


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 0.8), (0, 0.8), (40, 0.3)])
def test_top_p_counts_only_what_top_k_left(top_k, top_p):
    """Against the definition, one row at a time, in plain Python."""
    logits = torch.randn(6, 30, generator=torch.Generator().manual_seed(top_k), dtype=torch.float64)
    for row, kept in zip(logits, filter_logits(logits, top_k, top_p), strict=True):
        left = sorted(range(30), key=lambda i: -row[i].item())[: top_k or 30]
        mass = sum(row[i].exp().item() for i in left)
        up_to, wanted = 0.0, set(left[:1])
        for i in reversed(left):  # least likely first
            up_to += row[i].exp().item() / mass
            if up_to > 1 - top_p:
                wanted.add(i)
        assert set(kept.isfinite().nonzero().flatten().tolist()) == wanted


@pytest.mark.parametrize("seed", [3, True, np.int64(3), torch.tensor(3)])
def test_a_seed_is_the_number_that_it_is(seed):
    wanted = image_streams(2, int(seed), 4)
    for index in (4, np.int32(4), torch.tensor(4), torch.tensor([4, 5], dtype=torch.uint8)):
        streams = image_streams(2, seed, index)
        for stream, other in zip(streams, wanted, strict=True):
            assert torch.equal(stream.get_state(), other.get_state())


@pytest.mark.parametrize(
    ("seed", "index", "text"),
    [
        (3.0, 0, "seed is 3.0; wanted a whole number"),
        (None, 0, "seed is None; wanted a whole number"),
        ("3", 0, "seed is '3'; wanted a whole number"),
        (torch.Generator(), 0, "seed is .*; wanted a whole number"),
        (3, 1.5, "index is 1.5; wanted a whole number"),
        (3, torch.tensor([0.0, 1.0]), "index has dtype torch.float32; wanted whole numbers"),
        (3, torch.tensor([True, False]), "index has dtype torch.bool; wanted whole numbers"),
        (3, torch.tensor([1, 2, 3]), r"index has shape \[3\]; wanted one number, or \[2\]"),
    ],
)
def test_seeds_and_indices_that_are_none(seed, index, text):
    with pytest.raises(ValueError, match=text):
        image_streams(2, seed, index)


def test_logits_that_are_not_numbers():
    logits = torch.zeros(1, 4, 8)
    logits[0, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="step 7: some logits are not numbers; wanted finite"):
        Sampler(1, seed=0, top_k=0, top_p=0.0)(logits, 7)
