"""The data script: which emoji are used, in which class, what is held out, and how pixels come."""

from __future__ import annotations

import io
import json
import stat
import tarfile

import numpy as np
import pytest
from PIL import Image

from ptq4arvg.models import model_config
from zoo import prepare_data
from zoo.classes import CLASSES, FLIP_OK, pictures


def entry(order, name, category, subcategory, tones=()):
    return {
        "sort_order": order,
        "short_name": name,
        "category": category,
        "subcategory": subcategory,
        "image": f"{name}.png",
        "skin_variations": {tone: {"image": f"{name}-{tone}.png"} for tone in tones},
    }


ALL_TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF", "1F3FB-1F3FF")
ENTRIES = [
    entry(9, "wave", "People & Body", "hand-fingers-open", ALL_TONES),
    entry(1, "grinning", "Smileys & Emotion", "face-smiling"),
    entry(2, "boom", "Smileys & Emotion", "emotion"),
    entry(3, "dog", "Animals & Nature", "animal-mammal"),
    entry(4, "ox", "Animals & Nature", "animal-mammal"),
    entry(5, "cat", "Objects", "tool"),
    entry(6, "bed", "Travel & Places", "place-other"),
    entry(7, "runner", "People & Body", "person-activity", ALL_TONES),
    entry(8, "clock1", "Travel & Places", "time"),
]


def test_every_emoji_gets_the_class_of_its_subcategory_with_the_exceptions():
    found = [(p.name, p.file, CLASSES[p.label]) for p in pictures(ENTRIES)]
    assert found == [
        ("grinning", "grinning.png", "smiley face"),
        ("dog", "dog.png", "animal face"),  # a face, though among the mammals
        ("ox", "ox.png", "mammal"),
        ("cat", "cat.png", "tool"),  # the exception is for animals only
        ("runner", "runner.png", "person in motion"),  # skin tones for hands only
        ("clock1", "clock1.png", "clock"),
        ("wave", "wave.png", "hand"),
        ("wave-1F3FB", "wave-1F3FB.png", "hand"),
        ("wave-1F3FD", "wave-1F3FD.png", "hand"),
        ("wave-1F3FF", "wave-1F3FF.png", "hand"),
    ]
    assert {p.emoji for p in pictures(ENTRIES) if p.name.startswith("wave")} == {"wave"}


def test_the_classes_are_those_of_the_bundled_model():
    names = model_config("var-tiny")["transformer"]["class_names"]
    assert list(CLASSES) == names and len(FLIP_OK) == len(names) == 32
    mirrored = dict(zip(CLASSES, FLIP_OK, strict=True))
    assert mirrored["heart"] and not mirrored["clock"] and not mirrored["flag"]


def test_about_a_tenth_is_held_out_by_name():
    # Known members of either side: the bundled model was trained with this division.
    for name in ("grinning", "star-struck", "stuck_out_tongue", "shaking_face", "woozy_face"):
        assert prepare_data.held_out(name)
    for name in ("smiley", "smile", "grin", "laughing", "sweat_smile", "joy"):
        assert not prepare_data.held_out(name)
    assert 150 < sum(prepare_data.held_out(f"emoji{i}") for i in range(2000)) < 250


def png(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture, "RGBA").save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_are_laid_on_white_and_halved():
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[:32] = (255, 0, 0, 255)
    picture[32, 0] = (0, 0, 0, 128)
    whole, visible = prepare_data.on_white(png(picture))
    assert visible == 32 * 64 + 1
    assert whole[0, 0].tolist() == [255, 0, 0] and whole[63, 63].tolist() == [255, 255, 255]
    assert whole[32, 0] == pytest.approx(255 * (1 - 128 / 255))
    assert prepare_data.shrink(whole, 64)[32, 0].tolist() == [127] * 3
    # One of four pixels is half transparent black, the others are white.
    assert prepare_data.shrink(whole, 32)[16, 0].tolist() == [round((127 + 3 * 255) / 4)] * 3


def test_pictures_of_another_size_are_resized():
    small = np.full((72, 72, 4), 255, np.uint8)
    assert prepare_data.on_white(png(small))[0].shape == (64, 64, 3)


HELD_OUT = ["grinning"] * 2


def make_package(path, vendor, skip=()):
    random = np.random.default_rng(len(vendor))
    names = [p.file for p in pictures(ENTRIES) if p.name not in skip]
    files = {"package/emoji.json": json.dumps(ENTRIES).encode()}
    for name in names:
        picture = random.integers(0, 256, (64, 64, 4), dtype=np.uint8)
        picture[..., 3] = 0 if name == "ox.png" else 255  # a blank picture is not used
        files[f"package/img/{vendor}/64/{name}"] = png(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_the_command_writes_both_sizes_from_packages_that_are_there(tmp_path, monkeypatch, capsys):
    for vendor, skip in (("twitter", ()), ("google", ("dog",))):
        name = f"emoji-datasource-{vendor}-16.0.0.tgz"
        make_package(tmp_path / "downloads" / name, vendor, skip)
    monkeypatch.setattr("subprocess.run", None)  # nothing is downloaded
    assert prepare_data.main(["--out", str(tmp_path)]) == 0
    with np.load(tmp_path / "emoji64.npz") as large, np.load(tmp_path / "emoji32.npz") as small:
        assert large["images"].shape == (17, 64, 64, 3) and small["images"].shape[1:] == (32, 32, 3)
        assert large["vendor"].tolist() == [0] * 9 + [1] * 8
        names = large["names"].tolist()
        assert names[:3] == ["grinning", "dog", "cat"] and "ox" not in names
        assert names[9:11] == ["grinning", "cat"]
        # Of these emoji only the first is held out, in both sets.
        assert [n for n, out in zip(names, large["heldout"], strict=True) if out] == HELD_OUT
        for key in ("labels", "vendor", "heldout", "names", "classes", "flip_ok"):
            assert np.array_equal(large[key], small[key])
        means = large["images"].reshape(17, 32, 2, 32, 2, 3).mean((2, 4))
        assert np.abs(means - small["images"]).max() <= 1
    shown = capsys.readouterr()
    assert "twitter pictures: 10/10" in shown.err
    assert shown.out.splitlines()[-1].split()[0] == "all"
    assert not list(tmp_path.glob("*.part"))


def test_size_chooses_one_file(tmp_path):
    for vendor in ("twitter", "google"):
        make_package(tmp_path / "downloads" / f"emoji-datasource-{vendor}-16.0.0.tgz", vendor)
    assert prepare_data.main(["--out", str(tmp_path), "--size", "32"]) == 0
    assert [path.name for path in tmp_path.glob("*.npz")] == ["emoji32.npz"]


def fake_npm(folder, script):
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)


def test_packages_are_fetched_by_npm_once(tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    fake_npm(tmp_path, f'echo "$@" >> {calls}\n: > emoji-datasource-google-16.0.0.tgz')
    monkeypatch.setattr("shutil.which", lambda name: str(tmp_path / name))
    said = []
    for _ in range(2):
        path = prepare_data.download("google", tmp_path / "downloads", said.append)
    assert path == tmp_path / "downloads" / "emoji-datasource-google-16.0.0.tgz" and path.is_file()
    assert calls.read_text().splitlines() == ["pack emoji-datasource-google@16.0.0 --silent"]
    assert said[0].startswith("downloading") and said[-1].startswith("found")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failing_npm_is_reported(tmp_path, monkeypatch, capsys):
    fake_npm(tmp_path, "echo no network >&2; exit 1")
    monkeypatch.setattr("shutil.which", lambda name: str(tmp_path / name))
    assert prepare_data.main(["--out", str(tmp_path / "out")]) == 1
    assert "failed: no network. Check the connection" in capsys.readouterr().err


def test_a_missing_npm_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert prepare_data.main(["--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "npm is not installed" in error and "emoji-datasource-twitter-16.0.0.tgz" in error


def test_damaged_and_wrong_packages_are_told_apart(tmp_path):
    path = tmp_path / "package.tgz"
    path.write_bytes(b"not a package")
    with pytest.raises(ValueError, match="is damaged"):
        prepare_data.read_package(path, "twitter")
    make_package(path, "google")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        prepare_data.read_package(path, "google")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="another package"):
        prepare_data.read_package(path, "twitter")
