"""A data set of random pictures in the form that zoo/prepare_data.py writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptq4arvg.models import load_model
from zoo.classes import CLASSES, FLIP_OK

PICTURES, HELD_OUT = 24, 6


@pytest.fixture(scope="module")
def bundled():
    """The bundled model."""
    return load_model("var-tiny")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Steps this small take far longer where several threads wait for a busy processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with emoji64.npz and emoji32.npz; the classes differ in their mean colour."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    labels = np.arange(PICTURES) % 4 * 5  # classes 0, 5, 10, 15
    mean = np.linspace(40, 200, 4)[np.arange(PICTURES) % 4]
    large = mean[:, None, None, None] + random.normal(0, 20, (PICTURES, 64, 64, 3))
    common = {
        "labels": labels.astype(np.int64),
        "vendor": (np.arange(PICTURES) % 2).astype(np.int64),
        "heldout": np.arange(PICTURES) >= PICTURES - HELD_OUT,
        "names": np.array([f"picture{i}" for i in range(PICTURES)]),
        "classes": np.array(CLASSES),
        "flip_ok": np.array(FLIP_OK),
    }
    small = large.reshape(PICTURES, 32, 2, 32, 2, 3).mean((2, 4))
    for size, images in ((64, large), (32, small)):
        pixels = images.round().clip(0, 255).astype(np.uint8)
        np.savez(folder / f"emoji{size}.npz", images=pixels, **common)
    return folder
