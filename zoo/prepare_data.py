#!/usr/bin/env python3
"""Make the training pictures of var-tiny: two emoji sets in 32 classes, on white.

    python zoo/prepare_data.py --out DIR [--size 32|64]

Downloads the npm packages emoji-datasource-twitter and emoji-datasource-google, 16.0.0, with
``npm pack`` into DIR/downloads, unless they are there, and writes DIR/emoji64.npz (for training)
and DIR/emoji32.npz (its 2x2 means, for statistics), or only the one that --size names:

    images  uint8 [N, S, S, 3]  RGB        labels   int64 [N]  class
    vendor  int64 [N]  0 Twemoji, 1 Noto   heldout  bool [N]   not for training
    names   str [N]    short names         classes  str [32]   flip_ok  bool [32]

An emoji is held out, in both sets, if crc32(short name) is a multiple of 10.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

if not __package__:  # run as a file: the folder that holds zoo/ is not on the path
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from ptq4arvg.progress import make_progress
from zoo.classes import CLASSES, FLIP_OK, pictures

VERSION = "16.0.0"
VENDORS = ("twitter", "google")
NATIVE = 64  # side of the pictures in the packages
MIN_VISIBLE = 40  # pixels; less is a blank picture


def held_out(emoji: str) -> bool:
    """Whether the pictures of this short name are kept out of training: one in ten."""
    return zlib.crc32(emoji.encode()) % 10 == 0


def download(vendor: str, folder: Path, say: Any) -> Path:
    """The package of ``vendor`` in ``folder``, fetched by npm unless it is there."""
    package = f"emoji-datasource-{vendor}"
    path = folder / f"{package}-{VERSION}.tgz"
    if path.is_file():
        say(f"found {path.name}")
        return path
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"npm is not installed. Install Node.js, or put {path.name} of the npm package "
            f"{package} into {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # npm writes beside its final name only when complete, but into its own folder to be sure.
    part = folder / f".{vendor}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    done = threading.Event()
    watch = threading.Thread(target=_tell_waiting, args=(package, done, say), daemon=True)
    watch.start()
    try:
        result = subprocess.run(
            [npm, "pack", f"{package}@{VERSION}", "--silent"],
            cwd=part, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        done.set()
        watch.join()
    if result.returncode or not (part / path.name).is_file():
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise RuntimeError(
            f"npm pack {package}@{VERSION} failed: {lines[-1] if lines else 'it wrote no file'}. "
            "Check the connection and try again"
        )
    (part / path.name).replace(path)
    part.rmdir()
    return path


def _tell_waiting(package: str, done: threading.Event, say: Any) -> None:
    start = time.monotonic()
    say(f"downloading {package} (tens of megabytes, usually under two minutes)")
    while not done.wait(10):
        say(f"downloading {package}: {time.monotonic() - start:.0f} s so far")


def read_package(path: Path, vendor: str) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """(entries of emoji.json, file name -> PNG) of one package. ValueError if it is no such one."""
    folder, entries, images = f"package/img/{vendor}/{NATIVE}/", None, {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name == "package/emoji.json":
                    entries = json.load(tar.extractfile(member))
                elif member.name.startswith(folder) and member.name.endswith(".png"):
                    images[member.name.removeprefix(folder)] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, zlib.error, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}). Delete it and run this again to download it anew"
        ) from None
    if entries is None or not images:
        raise ValueError(f"{path} holds no emoji.json or no {folder}*.png; it is another package")
    return entries, images


def on_white(png: bytes) -> tuple[np.ndarray, int]:
    """(picture float32 [64, 64, 3] in 0..255 on white, number of visible pixels)."""
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=np.float32)
    opacity = rgba[..., 3:] / 255.0
    picture = rgba[..., :3] * opacity + 255.0 * (1.0 - opacity)
    if picture.shape[:2] != (NATIVE, NATIVE):
        whole = Image.fromarray(picture.round().astype(np.uint8))
        picture = np.asarray(whole.resize((NATIVE, NATIVE), Image.Resampling.BOX), np.float32)
    return picture, int((opacity > 0.5).sum())


def shrink(picture: np.ndarray, size: int) -> np.ndarray:
    """A float picture [64, 64, 3] as uint8 [size, size, 3], by means over squares."""
    step = NATIVE // size
    if step > 1:
        picture = picture.reshape(size, step, size, step, 3).mean(axis=(1, 3))
    return picture.round().clip(0, 255).astype(np.uint8)


def collect(
    packages: dict[str, tuple[list[dict[str, Any]], dict[str, bytes]]],
    sizes: Sequence[int],
    progress: Any,
) -> tuple[dict[str, np.ndarray], dict[int, np.ndarray]]:
    """(arrays common to all sizes, size -> images uint8 [N, size, size, 3]) of all packages."""
    columns: dict[str, list[Any]] = {"labels": [], "vendor": [], "heldout": [], "names": []}
    images: dict[int, list[np.ndarray]] = {size: [] for size in sizes}
    for vendor, (entries, files) in packages.items():
        wanted = [p for p in pictures(entries) if p.file in files]
        for i, picture in enumerate(wanted):
            progress(f"{vendor} pictures", i, len(wanted))
            whole, visible = on_white(files[picture.file])
            if visible < MIN_VISIBLE:
                continue
            for size in sizes:
                images[size].append(shrink(whole, size))
            row = (picture.label, VENDORS.index(vendor), held_out(picture.emoji), picture.name)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
        progress(f"{vendor} pictures", len(wanted), len(wanted))
    common = {name: np.array(values) for name, values in columns.items()}
    common |= {"classes": np.array(CLASSES), "flip_ok": np.array(FLIP_OK)}
    return common, {size: np.stack(pictures) for size, pictures in images.items()}


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write ``path``, which appears only when it is complete."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)


def summary(common: dict[str, np.ndarray]) -> str:
    """A line per class with its pictures, and the totals."""
    labels, out = common["labels"], common["heldout"]
    lines = [f"{'class':26} {'train':>6} {'held out':>9}"]
    for label, name in enumerate(CLASSES):
        mine = labels == label
        lines.append(f"{name:26} {(mine & ~out).sum():6} {(mine & out).sum():9}")
    lines.append(f"{'all':26} {(~out).sum():6} {out.sum():9}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Download, convert, write and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the data set")
    parser.add_argument("--size", type=int, choices=(32, 64), help="default: both")
    options = parser.parse_args(argv)
    sizes = (options.size,) if options.size else (64, 32)
    try:
        with make_progress() as progress:
            downloads = options.out / "downloads"
            paths = {vendor: download(vendor, downloads, progress.say) for vendor in VENDORS}
            packages = {}
            for i, (vendor, path) in enumerate(paths.items()):
                progress("reading packages", i, len(paths))
                packages[vendor] = read_package(path, vendor)
            common, images = collect(packages, sizes, progress)
            for size in sizes:
                progress.say(f"writing {options.out / f'emoji{size}.npz'}")
                write_npz(options.out / f"emoji{size}.npz", {"images": images[size], **common})
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run it again to go on, complete downloads are kept", file=sys.stderr)
        return 130
    print(summary(common))
    return 0


if __name__ == "__main__":
    sys.exit(main())
