"""Files of finished batches: what they hold, what is missing, and which are refused."""

import pytest
import torch

from ptq4arvg.evaluation.parts import ImageParts

BATCHES = [torch.tensor([0, 3]), torch.tensor([1, 4]), torch.tensor([2])]


def rows(batch):
    return {"images": torch.stack([torch.full((2, 3), int(i), dtype=torch.uint8) for i in batch]),
            "pool": batch[:, None].float()}  # fmt: skip


@pytest.fixture
def parts(tmp_path):
    found = ImageParts(tmp_path / "p", {"seed": 1000, "weights": "ab"})
    for batch in reversed(BATCHES):
        found.write(batch, rows(batch))
    return found


def test_batches_come_back_in_the_order_of_the_images(parts):
    assert torch.equal(parts.read(BATCHES, "pool")[:, 0], torch.arange(5).float())
    each = list(parts.each(BATCHES, "images"))
    assert [image.shape for image in each] == 5 * [(1, 2, 3)]
    assert torch.equal(torch.cat(each), parts.read(BATCHES, "images"))
    assert parts.names(BATCHES[0]) == {"images", "pool"}
    names = sorted(path.name for path in parts.folder.iterdir())
    assert names[1] == "images-000001-000004-2.safetensors"


def test_what_is_there_is_not_missing(parts):
    parts.path(BATCHES[1]).unlink()
    again = ImageParts(parts.folder, {"seed": 1000, "weights": "ab"})
    assert again.missing(BATCHES) == [BATCHES[1]]
    assert ImageParts(parts.folder / "other", {}).missing(BATCHES) == BATCHES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1001}, "is of seed 1000, not 1001, so .*choose another one with --parts"),
        ({"weights": "cd"}, 'is of weights "ab", not "cd"'),
        ({"top_k": 3}, "is of top_k None, not 3"),
    ],
)
def test_batches_of_other_settings_are_refused(parts, settings, message):
    with pytest.raises(ValueError, match=message):
        ImageParts(parts.folder, {"seed": 1000, "weights": "ab"} | settings)


def test_a_file_that_is_none_of_ours_is_refused(parts):
    parts.path(BATCHES[0]).write_bytes(b"half of it")
    with pytest.raises(ValueError, match=r"images-000000-000003-2\S+ cannot be read .*; delete it"):
        ImageParts(parts.folder, {"seed": 1000, "weights": "ab"})


def test_only_batches_are_removed(parts):
    (parts.folder / ".images-000000-000003-2.safetensors.1f.tmp").write_bytes(b"half")
    (parts.folder / "notes.txt").write_text("mine")
    ImageParts.remove(parts.folder)
    assert [path.name for path in parts.folder.iterdir()] == ["notes.txt"]
    (parts.folder / "notes.txt").unlink()
    ImageParts.remove(parts.folder)
    assert not parts.folder.exists()
    ImageParts.remove(parts.folder)
