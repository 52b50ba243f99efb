"""An evaluation that ended early goes on; what it cannot go on from is refused."""

from dataclasses import replace

import pytest
import torch

from ptq4arvg.distributed import Group
from ptq4arvg.evaluation import run
from ptq4arvg.evaluation.drawing import Drawing, remove_parts
from ptq4arvg.evaluation.protocol import find_protocol
from ptq4arvg.evaluation.run import evaluate
from ptq4arvg.evaluation.spaces import bundled_reference, bundled_space
from ptq4arvg.graphs import StepGraphs
from ptq4arvg.models.registry import build_model
from tests.graph_tape import TapeBackend
from tests.models.tiny import TINY

SMOKE = find_protocol("smoke").with_(images=6, compared=3)


@pytest.fixture(scope="module")
def space():
    return bundled_space()


@pytest.fixture
def model():
    return build_model("var", TINY["var"], seed=0)


@pytest.fixture(autouse=True)
def bundled(monkeypatch):
    monkeypatch.setattr(run, "BUNDLED", ("var",))


def measure(model, space, parts, **more):
    settings = {"seed": 3, "resamples": 0, "batch_size": 2} | more
    return evaluate(model, SMOKE, space, bundled_reference(), parts=parts, **settings)


def test_an_interrupted_evaluation_goes_on(model, space, tmp_path, monkeypatch):
    parts, drawn, draw = tmp_path / "parts", [], Drawing.images

    def images(self, batch):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append((self.seed, *batch.tolist()))
        return draw(self, batch)

    monkeypatch.setattr(Drawing, "images", images)
    with pytest.raises(KeyboardInterrupt):
        measure(model, space, parts)
    assert drawn == [(3, 0, 4), (3, 1, 5)]
    told = []
    monkeypatch.setattr(Drawing, "images", draw)
    found = measure(model, space, parts, progress=lambda *step: told.append(step))
    assert told[:3] == [("generate", 4, 6), ("generate", 5, 6), ("generate", 6, 6)]
    assert found.figures == measure(model, space, None).figures
    remove_parts(parts)
    assert not parts.exists()


def test_steps_are_captured_as_by_generate(model, space):
    labels = torch.arange(3)
    eager = Drawing(model, SMOKE, labels, 3, space, 2).images(labels)
    model.graphs = StepGraphs(TapeBackend())
    assert torch.equal(Drawing(model, SMOKE, labels, 3, space, 2).images(labels), eager)
    assert len(model.graphs.captured) == 1 and not model.graphs.eager


def test_images_that_other_weights_drew_are_refused(model, space, tmp_path):
    measure(model, space, tmp_path)
    with torch.no_grad():
        model.transformer.pos_start.add_(1)
    with pytest.raises(ValueError, match=r"is of weights .* so this run cannot go on from it"):
        measure(model, space, tmp_path)
    with pytest.raises(ValueError, match="is of batch_size 2, not 3"):
        measure(build_model("var", TINY["var"], seed=0), space, tmp_path, batch_size=3)
    with pytest.raises(ValueError, match="is of images kept false, not true"):
        measure(build_model("var", TINY["var"], seed=0), space, tmp_path,
                samples=tmp_path / "s.npz")  # fmt: skip


def test_images_are_resized_where_the_protocol_says_so(model, space):
    labels, protocol = torch.arange(3), SMOKE.with_(size=5, resize="bicubic")
    assert Drawing(model, protocol, labels, 3, space, 2).images(labels).shape == (3, 5, 5, 3)


def test_images_depend_on_all_that_their_files_name(model, space):
    given = {"protocol": SMOKE, "labels": torch.arange(6) % 5, "seed": 3, "space": space,
             "batch_size": 2, "keep": False}  # fmt: skip
    others = {"protocol": SMOKE.with_(top_k=5), "labels": torch.arange(6) % 4, "seed": 4,
              "space": replace(space, hash="f" * 64), "batch_size": 3, "keep": True}  # fmt: skip
    first = Drawing(model, **given).settings()
    assert Drawing(model, **given).settings() == first
    for name, other in others.items():
        assert Drawing(model, **given | {name: other}).settings() != first, name


def test_several_processes_need_a_folder_that_all_see(model, space, tmp_path, monkeypatch):
    group = Group(0, 2)
    monkeypatch.setattr("ptq4arvg.distributed._current", group)
    with pytest.raises(ValueError, match="rank 0 of 2 has no parts; wanted a folder that all"):
        measure(model, space, None)
    monkeypatch.setattr(Group, "barrier", lambda self: None)
    drawing = Drawing(model, SMOKE, torch.arange(6) % 5, 3, space, 2)
    with pytest.raises(RuntimeError, match=r"lacks 2 of 4 batches that .*Type --parts FOLDER"):
        drawing.draw(tmp_path / "model", None, "generate")
