"""What `quantize_`, `calibrate` and `generate` refuse before any work, and leave as it was."""

import copy
import math
import threading

import pytest
import torch

import ptq4arvg
from ptq4arvg.calibration import Calibration, calibrate, check_rows
from ptq4arvg.models import build_model
from ptq4arvg.pipeline import quantize_
from tests.models.tiny import TINY


@pytest.fixture(scope="module")
def plain():
    """Tests must leave it as it is."""
    return ptq4arvg.load_model("rar-tiny")


@pytest.fixture(scope="module")
def rows(plain):
    return calibrate(plain, samples=4, keep=4, seed=0)


@pytest.fixture
def model(plain):
    return copy.deepcopy(plain)


@pytest.mark.parametrize(
    ("options", "phase", "step"),
    [
        ({"method": "rtn"}, "pack", 3),
        ({"method": "rtn", "pack": False}, "pack", 3),
        ({"method": "svdquant"}, "pack", 3),
        ({"method": "rtn", "attention": "int8"}, "pack", 1),
        ({"method": "rtn", "attention": "simulated"}, "pack", 1),
        ({"method": "rtn", "decoder": "W8A8"}, "decoder", 10),
    ],
)
def test_what_an_interrupted_run_left_is_not_quantized_on(model, rows, options, phase, step):
    def stop(name, done, total):
        if name == phase and done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_(model, "W8A8", calibration=rows, progress=stop, **options)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="quantized in part by a run that did not end; load the"):
        quantize_(model, "W8A8", calibration=rows, **options)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "named"),
    [({"ignore": ["re:.*fc2$"]}, "ignore"), ({"overrides": {"lm_head": "W8A8"}}, "overrides"),
     ({"pack": True}, "pack=True")],
)  # fmt: skip
def test_the_research_pipeline_takes_no_choice_of_linears(model, rows, options, named):
    with pytest.raises(ValueError, match=f"one scheme for all linears.*wanted no {named}"):
        quantize_(model, "W6A6", calibration=rows, compat="research", **options)


def test_nothing_left_to_quantize(model, rows):
    with pytest.raises(ValueError, match="every linear is ignored"):
        quantize_(model, "W6A6", calibration=rows, ignore=["*"])


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_nothing(model, rows, size):
    text = f"batch size is {size}; wanted 1 or more"
    with pytest.raises(ValueError, match=text):
        model.generate([3], batch_size=size)
    with pytest.raises(ValueError, match=text):
        calibrate(model, samples=4, keep=4, batch_size=size)
    with pytest.raises(ValueError, match=text):
        quantize_(model, "W8A8", "rtn", rows, batch_size=size)


@pytest.mark.parametrize("labels", [[], [3.9], torch.tensor([1.0]), "cat", {1, 2}, None])
def test_labels_that_are_no_whole_numbers(plain, labels):
    with pytest.raises(ValueError, match="wanted one or more whole numbers from 0 to 31"):
        plain.generate(labels)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"cfg": math.nan}, "cfg is nan"), ({"cfg": math.inf}, "cfg is inf"),
     ({"top_p": -0.5}, "top_p -0.5"), ({"top_p": 96}, "top_p 96"), ({"top_k": -1}, "top_k is -1")],
)  # fmt: skip
def test_sampling_options_that_mean_nothing(plain, options, text):
    with pytest.raises(ValueError, match=text):
        plain.generate([3], **options)


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_temperatures_that_mean_nothing(temperature):
    model = ptq4arvg.load_model("mar-tiny")
    with pytest.raises(ValueError, match=f"temperature is {temperature}; wanted 0 or more"):
        model.generate([3], temperature=temperature)


def changed(rows, **fields):
    ids, labels = fields.get("ids", rows.ids), fields.get("labels", rows.labels)
    return Calibration(ids, labels)


def test_rows_that_are_not_the_models(plain, model, rows):
    check_rows(plain, rows)
    wrong = {
        r"rows \[4, 10\]": {"ids": rows.ids[:, :10]},
        "up to 99999": {"ids": rows.ids + 99999 - rows.ids.max()},
        "torch.float32": {"ids": torch.randn(4, plain.tokens, 8)},
        "labels -1 to": {"labels": rows.labels - rows.labels.min() - 1},
        "labels .* to 33,": {"labels": torch.full_like(rows.labels, 33)},
        "torch.float64": {"labels": rows.labels.double()},
    }
    for text, fields in wrong.items():
        with pytest.raises(ValueError, match=text):
            quantize_(model, "W8A8", "rtn", changed(rows, **fields))
    with pytest.raises(ValueError, match=r"wanted \[rows, 64\] of continuous tokens"):
        check_rows(ptq4arvg.load_model("mar-tiny"), rows)


def test_a_transformer_in_float64(model, rows):
    with pytest.raises(ValueError, match="the transformer is in float64"):
        quantize_(model.double(), "W8A8", "rtn", rows)
    quantize_(model, "W8A8", "rtn", rows, pack=False)


@pytest.mark.parametrize("family", ["var", "switti"])
def test_a_model_generates_in_one_thread_at_a_time(family):
    """The second call says so; the first one is not disturbed."""
    model = build_model("small", TINY[family], seed=0)
    if family == "switti":  # whose prompts are a table
        c = model.config
        model.set_prompts(torch.ones(3, c.text_tokens, c.text_dim), torch.ones(3, c.pooled_dim))
    wanted = model.sample_ids(torch.tensor([1]), seed=0)
    inside, go_on, found = threading.Event(), threading.Event(), []

    def first():
        def choose(logits, step):
            inside.set()
            assert go_on.wait(60)
            return sampler(logits, step)

        sampler = model._sampler(1, 0, None, None, 0)
        found.append(model.sample_ids(torch.tensor([1]), seed=0, choose=choose))

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(60)
    with pytest.raises(RuntimeError, match="generates already, in another thread"):
        model.generate([0], seed=1)
    go_on.set()
    thread.join()
    assert torch.equal(found[0], wanted)
    assert torch.equal(model.sample_ids(torch.tensor([1]), seed=0), wanted)


class _WithMore(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def test_linears_that_are_more_than_linears(model, rows):
    """What a subclass or a hook does would be lost, so neither is quantized; ignored, they stay."""
    name, part = "blocks.0.mlp.fc1", model.transformer.blocks[0].mlp
    plain, part.fc1 = part.fc1, _WithMore(part.fc1.in_features, part.fc1.out_features)
    with pytest.raises(ValueError, match=rf"{name} is a _WithMore.*ignore=\['{name}'\]"):
        quantize_(model, "W8A8", "rtn", rows)
    part.fc1 = plain
    handle = plain.register_forward_hook(lambda _module, _args, y: y + 1)
    with pytest.raises(ValueError, match=f"{name} has forward hooks, and what that does"):
        quantize_(model, "W8A8", "rtn", rows)
    quantize_(copy.deepcopy(model), "W8A8", "rtn", rows, ignore=[name])
    handle.remove()
    quantize_(model, "W8A8", "rtn", rows)


def _no_work(*_):
    raise AssertionError("found before any work")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(model, rows, value):
    model.transformer.blocks[1].attn.proj.bias.data[3] = value
    refused = pytest.raises(ValueError, match=r"blocks.1.attn.proj.bias has infinite numbers, or")
    for options in ({}, {"target_bits": 5}, {"calibration": None}):
        with refused:
            quantize_(model, "W8A8", **({"calibration": rows} | options), progress=_no_work)


def test_rows_that_are_none(model, rows):
    with pytest.raises(ValueError, match="the calibration is a tuple; wanted rows of"):
        quantize_(model, "W8A8", "rtn", (rows.ids, rows.labels))
    with pytest.raises(ValueError, match=r"seed is 1\.5; wanted a whole number"):
        calibrate(model, samples=4, keep=4, seed=1.5)


def test_continuous_rows_that_are_not_finite():
    mar = ptq4arvg.load_model("mar-tiny")
    ids = torch.zeros_like(calibrate(mar, samples=2, keep=2).ids)
    check_rows(mar, Calibration(ids, torch.zeros(2, dtype=torch.int64)))
    ids[1, 0, 0] = math.nan
    with pytest.raises(ValueError, match="calibration rows with infinite numbers, or such that"):
        check_rows(mar, Calibration(ids, torch.zeros(2, dtype=torch.int64)))


def test_names_in_place_of_models(rows):
    with pytest.raises(ValueError, match="'rar-tiny' is a str; wanted a model"):
        quantize_("rar-tiny", "W8A8", "rtn", rows)


@pytest.mark.parametrize("cfg", ["4", [4.0]])
def test_guidance_that_is_no_number(plain, cfg):
    with pytest.raises(ValueError, match="wanted a finite number, 1 for no guidance"):
        plain.generate([1], cfg=cfg)
