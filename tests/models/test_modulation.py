"""The table of modulations: computed once per label, within its budget, never out of date."""

import pytest
import torch

from ptq4arvg.models.modulation import ModulationTable, checksum

T, M = 6, 3
ROW = 4 * M  # bytes of one position of one label


class Computed:
    """(label, position) -> label * 100 + position, M times; keeps what it was asked for."""

    def __init__(self):
        self.calls = []

    def __call__(self, labels, begin, count):
        self.calls.append((labels.tolist(), begin, count))
        values = 100 * labels[:, None] + torch.arange(begin, begin + count)
        return values[..., None].expand(-1, -1, M).float()


def table(budget_in_labels, budget_rest=0):
    computed = Computed()
    return ModulationTable(computed, T, T * ROW * budget_in_labels + budget_rest), computed.calls


def run(table, labels, stamp=(0,)):
    """What all rows are told at all positions, [B, T]."""
    table.open(torch.tensor(labels), ROW, stamp)
    rows = torch.stack([table.at(position)[:, 0] for position in range(T)], 1)
    table.close()
    return rows


def wanted(labels):
    return torch.tensor([[100.0 * label + p for p in range(T)] for label in labels])


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 7])
def test_every_row_gets_its_own(budget):
    held, _ = table(budget)
    for labels in ([4, 9, 4, 4], [9], [1, 2, 4], [2, 2]):
        assert torch.equal(run(held, labels), wanted(labels))


def test_a_distinct_label_is_computed_once():
    held, calls = table(3)
    run(held, [4, 9, 4, 4])
    assert sorted(calls) == [([4], 0, T), ([9], 0, T)]
    run(held, [9, 5])
    assert calls[2:] == [([5], 0, T)]
    run(held, [4, 5, 9])
    assert len(calls) == 3


def test_the_least_recently_used_label_goes():
    held, calls = table(2)
    for labels in ([1], [2], [1], [3]):
        run(held, labels)
    assert set(held.kept) == {1, 3}
    assert sum(rows.nbytes for rows in held.kept.values()) <= held.budget
    assert len(calls) == 3


def test_more_labels_than_fit_are_served_in_windows():
    held, calls = table(1, budget_rest=2 * ROW)  # eight positions: four of each of two labels
    run(held, [1])
    run(held, [8, 5])
    assert calls[1:] == [([5, 8], 0, 4), ([5, 8], 4, 2)]
    assert not held.kept and not held._window


def test_a_budget_below_one_position_still_works():
    held, calls = table(0)
    assert torch.equal(run(held, [3, 4]), wanted([3, 4]))
    assert len(calls) == T


def test_another_stamp_forgets():
    held, calls = table(4)
    for stamp in ((0,), (0,), (1,), (0,)):
        run(held, [1], stamp)
    assert len(calls) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
@pytest.mark.parametrize("size", [7, 64])
def test_checksums_see_the_smallest_change(dtype, size):
    values = torch.arange(size).to(dtype)
    before = checksum([values, torch.ones(3)])
    assert checksum([values.clone(), torch.ones(3)]) == before
    changed = values.clone()
    changed.view(torch.uint8)[5] ^= 1
    assert checksum([changed, torch.ones(3)]) != before
    assert checksum([torch.ones(3), values]) != before


def test_checksums_of_what_is_not_contiguous():
    values = torch.arange(12.0).view(3, 4)
    before = checksum([values.t()])
    assert checksum([values.t()]) == before
    values[2, 1] += 1
    assert checksum([values.t()]) != before
