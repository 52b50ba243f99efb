"""Calibration rows: the own samples of a model, reproducible, global random state untouched."""

import random

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ptq4arvg import load_model
from ptq4arvg.calibration import Calibration, calibrate
from ptq4arvg.dgc import mahalanobis, research_ratio
from ptq4arvg.models import build_model
from tests.models.tiny import TINY


@pytest.fixture(scope="module")
def model():
    return load_model("var-tiny")


@pytest.mark.parametrize("select", ["dgc", "random", "first", "research_code"])
def test_rows_are_the_models_own_of_both_kinds(model, select):
    rows = calibrate(model, samples=16, keep=8, seed=0, select=select)
    assert rows.ids.shape == (8, model.tokens) and rows.labels.shape == (8,)
    null = (rows.labels == model.null_label).sum().item()
    # The research code's ratio may keep one kind alone; the others mix both.
    assert 0 <= null <= 8 if select == "research_code" else 2 <= null <= 6
    assert rows.ids.min() >= 0


def test_same_arguments_same_rows_whatever_the_batch_size(model):
    first = calibrate(model, samples=16, keep=8, seed=3)
    again = calibrate(model, samples=16, keep=8, seed=3, batch_size=5)
    other = calibrate(model, samples=16, keep=8, seed=4)
    assert first.hash == again.hash != other.hash


def test_images_are_drawn_for_all_classes_in_turn_in_random_orders():
    """Each of them as it would be drawn alone, and once more as a row without a class."""
    model = build_model("small", TINY["var"], seed=0)
    classes = model.num_classes
    images = 2 * classes + 1
    rows = calibrate(model, 2 * images, 2 * images, seed=3, batch_size=2)
    g = torch.Generator().manual_seed(3)
    labels = torch.cat([torch.randperm(classes, generator=g) for _ in range(3)])[:images]
    assert torch.equal(rows.labels[:images], labels)
    assert (rows.labels[images:] == model.null_label).all()
    for i in (0, 1, images - 1):
        assert torch.equal(rows.ids[i : i + 1], model.sample_ids(labels[i : i + 1], 3, index=i))
    assert torch.equal(rows.ids[:images], rows.ids[images:])
    assert (rows.seed, rows.select, rows.samples, rows.model) == (3, "dgc", 2 * images, "small")


def test_a_random_choice_is_sorted_and_the_first_are_as_many_of_both_kinds():
    model = build_model("small", TINY["var"], seed=0)
    g, samples = torch.Generator().manual_seed(3), 2 * model.num_classes
    torch.randperm(model.num_classes, generator=g)  # the labels, once each
    chosen = calibrate(model, samples, 5, seed=3, select="random").chosen
    assert torch.equal(chosen, torch.randperm(samples, generator=g)[:5].sort().values)
    for keep, kept in ((3, [0, 1, 6]), (4, [0, 1, 6, 7]), (7, [0, 1, 2, 3, 6, 7, 8])):
        assert calibrate(model, 12, keep, select="first").chosen.tolist() == kept


def test_what_the_choices_go_by():
    """The last block's outputs: their means over positions, in the authors' code the first one."""
    model, kept = build_model("small", TINY["var"], seed=0), []
    everything = calibrate(model, 12, 12)
    block = model.transformer.get_submodule(model.block_names()[-1])
    handle = block.register_forward_hook(lambda _module, _args, output: kept.append(output))
    model.replay(everything.ids, everything.labels)
    handle.remove()
    rows = calibrate(model, 12, 5, batch_size=12)
    assert_close(rows.distance, mahalanobis(kept[0].mean(1).double()), rtol=1e-4, atol=1e-6)
    conditional, unconditional = kept[0][:, 0].split(6)
    for keep in (5, 9):
        count = min(round(research_ratio(conditional, unconditional, keep) * keep), 6)
        wanted = [*range(count), *range(6, 6 + min(keep - count, 6))]
        assert calibrate(model, 12, keep, select="research_code").chosen.tolist() == wanted
    assert not block._forward_hooks


def test_distances_are_kept_where_they_decided(model):
    rows = calibrate(model, samples=16, keep=8, seed=3)
    assert rows.distance.shape == (16,) and rows.distance.dtype == torch.float64
    everything = calibrate(model, samples=16, keep=16, seed=3)
    assert everything.distance is None and len(everything.labels) == 16
    assert torch.equal(rows.labels, everything.labels[rows.chosen])
    assert torch.equal(rows.ids, everything.ids[rows.chosen])
    assert rows.distance.argmax() in rows.chosen
    assert calibrate(model, samples=16, keep=8, select="random").distance is None


def test_global_random_state_is_not_touched(model):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    calibrate(model, samples=8, keep=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_progress_is_reported(model):
    seen = []
    calibrate(model, samples=8, keep=4, progress=lambda *event: seen.append(event))
    assert ("sample", 4, 4) in seen and ("select", 8, 8) in seen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"select": "dcg"}, "unknown select 'dcg'.*dgc"),
        ({"samples": 7, "keep": 4}, "samples 7, keep 4; wanted an even number"),
        ({"samples": 8, "keep": 9}, "samples 8, keep 9"),
        ({"samples": 8, "keep": 0}, "1 <= keep <= samples"),
    ],
)
def test_bad_arguments_say_what_was_wanted(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        calibrate(model, **arguments)


@pytest.mark.parametrize("ids", [torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 2, 4).long()])
def test_rows_of_the_wrong_shape_are_an_error(ids):
    wanted = r"wanted ids \[rows, positions\], or continuous tokens \[rows, positions, channels\]"
    with pytest.raises(ValueError, match=rf"ids \[3.*{wanted}"):
        Calibration(ids, torch.zeros(3))


@pytest.mark.parametrize("labels", [torch.zeros(2), torch.zeros(3, 1), torch.zeros(())])
def test_labels_of_the_wrong_shape_are_an_error(labels):
    with pytest.raises(ValueError, match=r"and labels \[.*wanted ids"):
        Calibration(torch.zeros(3, 2).long(), labels.long())


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match=r"ids \[0, 2\] and labels \[0\].*at least one row"):
        Calibration(torch.zeros(0, 2).long(), torch.zeros(0).long())


def test_the_hash_is_of_shape_and_values_and_not_of_types():
    ids, labels = torch.arange(6).view(3, 2), torch.tensor([1, 0, 2])
    rows = Calibration(ids, labels)
    assert rows.hash == Calibration(ids.int(), labels.short()).hash
    assert rows.hash != Calibration(ids, labels.flip(0)).hash
    tokens = torch.arange(24.0).view(3, 2, 4)
    first, second = Calibration(tokens, labels), Calibration(tokens.view(3, 4, 2), labels)
    assert first.hash == Calibration(tokens.double(), labels).hash != second.hash


def test_continuous_tokens_are_rows_too():
    tokens = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3)
    rows = Calibration(tokens, labels)
    assert rows.hash == Calibration(tokens.clone(), labels).hash
    assert rows.hash != Calibration(tokens + 1e-3, labels).hash
    assert [len(part) for part, _ in rows.batches(2)] == [2, 1]
    assert torch.equal(torch.cat([part for part, _ in rows.batches(2)]), tokens)
