"""Divergence and agreement of logits, over batches and against a toy model."""

import math

import pytest
import torch

from ptq4arvg.evaluation import (
    Agreement,
    agreement,
    evaluation_rows,
    float_logits,
    relative_error,
)


class Toy(torch.nn.Module):
    """Two classes and a null label, five tokens, logits from a table that noise may disturb."""

    num_classes, null_label, tokens = 2, 2, 5

    def __init__(self, noise=0.0):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.table = torch.randn(3, 7, 7, generator=g)
        self.table = self.table + noise * torch.randn(3, 7, 7, generator=g)

    def replay(self, ids, labels):
        return self.table[labels[:, None], ids]

    def sample_rows(self, labels, seed):
        g = torch.Generator().manual_seed(seed)
        return torch.randint(7, (len(labels), 5), generator=g, dtype=torch.int32)


def test_equal_logits_agree_fully():
    logits = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(1))
    result = Agreement().update(logits, logits.clone())
    assert (result.tokens, result.kl, result.top1, result.relative_error) == (6, 0, 1, 0)


def test_divergence_of_two_known_distributions():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.125, 0.125, 0.75])
    result = Agreement().update(p.log()[None], q.log()[None])
    assert result.kl == pytest.approx(1.25 * math.log(2) - 0.25 * math.log(3), rel=1e-6)
    assert result.top1 == 0


def test_adding_a_constant_to_the_logits_changes_nothing_but_their_error():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(2))
    result = Agreement().update(logits, logits + 3)
    assert result.kl == pytest.approx(0, abs=1e-6)
    assert all(Agreement().update(row, row + 1e-4 * k).kl >= 0 for row in logits for k in range(9))
    assert result.top1 == 1
    assert result.relative_error > 0


def test_batches_give_the_figures_of_the_whole():
    g = torch.Generator().manual_seed(3)
    fp, q = torch.randn(2, 10, 4, 6, generator=g)
    whole = Agreement().update(fp, q)
    parts = Agreement()
    for a, b in zip(fp.split(3), q.split(3), strict=True):
        parts.update(a, b)
    assert parts.kl == pytest.approx(whole.kl)
    assert parts.top1 == whole.top1
    assert parts.relative_error == pytest.approx(relative_error(fp, q))


def test_logits_that_cannot_be_compared_are_an_error():
    with pytest.raises(ValueError, match="same shape"):
        Agreement().update(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="not all finite"):
        Agreement().update(torch.zeros(1, 2), torch.tensor([[0.0, torch.inf]]))
    with pytest.raises(ValueError, match="call update"):
        _ = Agreement().kl


def test_continuous_tokens_have_an_error_but_no_divergence():
    fp = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(5))
    result = Agreement(continuous=True).update(fp, 1.1 * fp)
    assert (result.kl, result.top1) == (None, None)
    assert result.relative_error == pytest.approx(0.01, rel=1e-4)

    class Vectors(torch.nn.Module):
        def __init__(self, gain):
            super().__init__()
            self.gain = gain

        def replay(self, ids, labels):
            return self.gain * ids

    labels = torch.zeros(2, dtype=torch.int64)
    assert agreement(Vectors(1.0), Vectors(1.1), fp, labels) == result


def test_rows_are_conditional_then_unconditional_over_the_same_tokens():
    classes = torch.tensor([0, 1, 0])
    ids, labels = evaluation_rows(Toy(), classes, seed=4)
    assert labels.tolist() == [0, 1, 0, 2, 2, 2]
    assert torch.equal(ids[:3], ids[3:])
    assert torch.equal(ids, evaluation_rows(Toy(), classes, seed=4)[0])
    assert not torch.equal(ids, evaluation_rows(Toy(), classes, seed=5)[0])
    again, _ = evaluation_rows(Toy(), classes, seed=9, ids=ids[:3])
    assert torch.equal(again, ids)
    with pytest.raises(ValueError, match="2 rows of ids, 3 labels"):
        evaluation_rows(Toy(), classes, ids=ids[:2])


def test_models_are_compared_on_the_same_rows():
    fp, q = Toy(), Toy(noise=0.3)
    ids, labels = evaluation_rows(fp, torch.tensor([0, 1, 0]), seed=4)
    seen = []
    result = agreement(fp, q, ids, labels, batch_size=4, progress=lambda *a: seen.append(a))
    assert result.tokens == 30
    assert 0 < result.kl < 1
    assert seen == [("agreement", 1, 2), ("agreement", 2, 2)]
    kept = float_logits(fp, ids, labels, batch_size=4)
    assert agreement(kept, q, ids, labels, batch_size=4) == result
    with pytest.raises(ValueError, match="reference logits come in batches"):
        agreement(kept, q, ids, labels, batch_size=3)
