"""Data, augmentation, schedule, average and export of the trainers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from zoo import common


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_data_is_read_as_channels_first_with_its_rows(data):
    found = common.load_data(data, 64)
    with np.load(data / "emoji64.npz") as file:
        assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), file["images"])
    assert found.train.tolist() == list(range(18)) and found.heldout.tolist() == list(range(18, 24))
    assert found.flip_ok.all() and found.labels.tolist()[:4] == [0, 5, 10, 15]
    unit = found.unit(torch.tensor([3, 1]))
    assert torch.equal(unit, found.images[[3, 1]].float() / 255)


@pytest.mark.parametrize("size", [32, 64])
def test_missing_data_says_how_to_make_it(tmp_path, size):
    with pytest.raises(FileNotFoundError, match=r"no emoji\d\d.npz .*prepare_data.py --out"):
        common.load_data(tmp_path / "nowhere", size)


def changed(data, tmp_path, **arrays):
    with np.load(data / "emoji32.npz") as file:
        kept = {name: file[name] for name in file.files}
    kept |= arrays
    np.savez(tmp_path / "emoji32.npz", **{k: v for k, v in kept.items() if v is not None})
    return tmp_path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": None}, "damaged or no data set"),
        ({"images": np.zeros((24, 16, 16, 3), np.uint8)}, r"wanted uint8 \[24, 32, 32, 3\]"),
        ({"images": np.zeros((24, 32, 32, 3), np.float32)}, "images are torch.float32"),
        ({"classes": np.array(["a"] * 32)}, "other classes"),
        ({"labels": np.full(24, 31) + 1}, "damaged|other classes"),
        ({"heldout": np.zeros(24, bool)}, "0 of 24 pictures held out"),
        ({"names": None, "vendor": None}, None),
    ],
)
def test_wrong_data_is_refused(data, tmp_path, arrays, message):
    folder = changed(data, tmp_path, **arrays)
    if message is None:  # arrays that training does not need
        assert len(common.load_data(folder, 32).labels) == 24
        return
    with pytest.raises(ValueError, match=message):
        common.load_data(folder, 32)


def test_a_truncated_file_is_refused(data, tmp_path):
    whole = (data / "emoji32.npz").read_bytes()
    (tmp_path / "emoji32.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        common.load_data(tmp_path, 32)


def test_augmentation_without_changes_returns_the_picture():
    images = torch.rand(3, 3, 64, 64, generator=generator())
    flip_ok = torch.ones(3, dtype=torch.bool)
    same = common.augment(images, flip_ok, generator(), mirror=0, affine=0, colour=0)
    torch.testing.assert_close(same, images, rtol=0, atol=2e-5)


def test_only_pictures_that_may_be_are_mirrored():
    images = torch.rand(2, 3, 64, 64, generator=generator())
    flip_ok = torch.tensor([True, False])
    out = common.augment(images, flip_ok, generator(), mirror=1, affine=0, colour=0)
    torch.testing.assert_close(out[0], images[0].flip(2), rtol=0, atol=2e-5)
    torch.testing.assert_close(out[1], images[1], rtol=0, atol=2e-5)


def test_white_stays_white_and_fills_what_moves_in():
    flip_ok = torch.ones(16, dtype=torch.bool)
    white = torch.ones(16, 3, 64, 64)
    white = common.augment(white, flip_ok, generator(), affine=1, colour=1)
    torch.testing.assert_close(white, torch.ones_like(white), rtol=0, atol=1e-5)
    black = torch.zeros(16, 3, 64, 64)
    moved = common.augment(black, flip_ok, generator(), affine=1, colour=0, scale=(0.5, 0.5))
    # Half the size and moved by less than a tenth: the corners are white, the centre is not.
    assert moved[:, :, :4, :4].min() > 0.9999 and moved[:, :, 28:36, 28:36].max() < 1e-4
    centre = (1 - moved[:, 0]).sum((1, 2)) / 64**2
    torch.testing.assert_close(centre, torch.full((16,), 0.25), rtol=0.05, atol=0)


def test_augmentation_stays_in_range_and_follows_its_generator():
    images = torch.rand(16, 3, 32, 32, generator=generator())
    flip_ok = torch.ones(16, dtype=torch.bool)
    first, again, other = (common.augment(images, flip_ok, generator(i)) for i in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= -1e-6 and first.max() <= 1 + 1e-6
    # Greys may change their brightness, but get no hue.
    grey = images.mean(1, keepdim=True).expand_as(images)
    out = common.augment(grey, flip_ok, generator(), affine=0, colour=1)
    torch.testing.assert_close(out, out[:, :1].expand_as(out), rtol=0, atol=1e-5)
    assert not torch.allclose(out, grey, atol=1e-2)


def test_halving_takes_means():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    assert common.halve(images).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_the_rate_rises_and_then_falls_to_the_floor():
    rates = [common.cosine(i, 100, peak=1.0, warmup=10, floor=0.1) for i in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert rates[10 + 45] == pytest.approx(0.55, abs=0.01)  # half way
    assert common.cosine(0, 1, peak=1.0, warmup=10) == 1.0  # a run of one step


def test_every_pass_shows_every_row_once_in_a_new_order():
    rows = torch.arange(100, 120)
    passes = [
        torch.cat([common.epoch_rows(rows, 5, 4 * epoch + i, seed=3) for i in range(4)])
        for epoch in range(2)
    ]
    for order in passes:
        assert order.sort().values.tolist() == rows.tolist()
    assert passes[0].tolist() != passes[1].tolist()
    assert len(common.epoch_rows(rows, 64, 7, seed=3)) == 20  # a batch is never more than there is
    assert torch.equal(common.epoch_rows(rows, 5, 9, seed=3), common.epoch_rows(rows, 5, 9, seed=3))


def test_large_classes_are_drawn_more_often_but_less_than_in_proportion():
    weights = common.rare_weights(torch.tensor([4, 4, 4, 4, 7]))
    assert weights.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 1.0])


def test_the_average_follows_the_weights():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 0.0)
    average = common.Average(module, decay=0.9)
    wanted = 0.0
    for update in range(1, 151):
        torch.nn.init.constant_(module.weight, float(update % 3))
        average.update(module)
        decay = min(0.9, update / (update + 10))
        wanted = decay * wanted + (1 - decay) * (update % 3)
    assert average.values["weight"].item() == pytest.approx(wanted, rel=1e-5)
    other = common.Average(module, decay=0.9)
    other.load_state_dict(average.state_dict())
    assert other.updates == 150 and torch.equal(other.values["weight"], average.values["weight"])


def test_initial_weights_depend_on_their_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made = []
    for seed in (0, 0, 1):
        with common.fresh_weights(seed):
            made.append(torch.nn.Linear(4, 4).weight)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_export_halves_floats_and_keeps_the_rest(tmp_path):
    path = tmp_path / "new" / "weights.safetensors"
    state = {
        "a": torch.tensor([1.0, 1 / 3]),
        "b": torch.tensor([1 / 3], dtype=torch.float64),
        "c": torch.tensor([7]),
        "d": torch.arange(6.0).view(2, 3).T,
    }
    common.export(path, state)
    found = load_file(path)
    assert found["a"].dtype == torch.float16 and torch.equal(found["a"], state["a"].half())
    assert torch.equal(found["b"], state["b"]) and torch.equal(found["c"], state["c"])
    assert torch.equal(found["d"].float(), state["d"])
    assert [p.name for p in path.parent.iterdir()] == ["weights.safetensors"]


def test_weights_too_large_for_half_precision_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(ValueError, match="big does not fit half precision"):
        common.export(path, {"big": torch.tensor([1e6])})
    assert not path.exists()
