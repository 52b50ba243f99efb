"""Quantization of a golden RAR on golden rows, against records of the authors' research code."""

import json

import pytest
import torch
from safetensors.torch import load_file

import ptq4arvg
from ptq4arvg.calibration import Calibration, calibrate
from ptq4arvg.nn import PackedLinear
from ptq4arvg.pipeline import quantize_
from tests.golden_cases import ROOT, RARCase, find_cases, forced, relative_error

FOLDERS = sorted(path.parent for path in ROOT.rglob("e2e_rar.golden.safetensors"))
SCHEMES = ("W8A8", "W6A6")
needs_records = pytest.mark.skipif(not FOLDERS, reason=f"no e2e_rar records below {ROOT}")


class Records:
    """Rows, float logits and the research code's results of one folder."""

    def __init__(self, folder):
        self.tensors = load_file(folder / "e2e_rar.golden.safetensors")
        self.results = json.loads((folder / "e2e_rar.results.json").read_text())
        self.case = RARCase(folder.parent / "rar/main.config.json")
        self.rows = Calibration(*self.given("cal"), seed=0, select="given")

    def given(self, prefix):
        """(ids, labels); the records leave out the last token, which no position reads."""
        ids = self.tensors[f"{prefix}.ids"].long()
        condition = self.tensors[f"{prefix}.condition_ids"]
        labels = condition - self.case.config["codebook_size"] - 1
        return torch.cat([ids, torch.zeros_like(ids[:, :1])], 1), labels

    def error(self, model):
        return relative_error(model.replay(*self.given("tf")), self.tensors["tf.logits_fp"])


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def records(request):
    return Records(request.param)


@needs_records
def test_records_and_float_model_agree(records):
    assert records.error(records.case.build()) < 1e-9


@needs_records
@pytest.mark.parametrize("scheme", SCHEMES)
def test_linears_alone(records, scheme):
    """Below the research code's error, and far below plain rounding's."""
    recorded = records.results[scheme]["linear_layers_only"]
    model, plain = records.case.build(), records.case.build()
    report = quantize_(model, scheme, calibration=records.rows)
    assert {layer.name for layer in report.layers} == {spec.name for spec in model.linears()}
    assert records.error(model) < recorded["official"]
    quantize_(plain, scheme, "rtn", records.rows)
    assert records.error(model) < records.error(plain) / 3


@needs_records
@pytest.mark.parametrize("scheme", SCHEMES)
def test_with_attention_products(records, scheme):
    """At most half of the research code's error, which the attention products dominate.

    On rows of the model's own: the ranges of q and k are found for every position, and the four
    images among the recorded rows are too few for that.
    """
    model = records.case.build()
    rows = calibrate(model, 64, 32, seed=1)
    quantize_(model, scheme, calibration=rows, attention="simulated")
    assert records.error(model) < records.results[scheme]["rel_mse_teacher_forcing"] / 2


@pytest.fixture(scope="module", params=find_cases(RARCase), ids=lambda case: case.name)
def quantized(request):
    """(float model, W6A6 model calibrated on its own samples)."""
    reference, model = request.param.build(), request.param.build()
    quantize_(model, "W6A6", calibration=calibrate(model, 16, 8, seed=2))
    return reference, model


def decoded(model, ids, labels):
    """Logits of stepwise decoding when the tokens are given, [n, L, V]."""
    seen = []
    model.sample_ids(labels, cfg=0, choose=forced(seen, ids.split(1, 1)))
    return torch.cat(seen, 1) * model.config.temperature


def test_decoding_in_integers_is_teacher_forcing(quantized):
    """Every position, the two of the prefill included, uses its own scales: far closer to each
    other than either is to the float model."""
    reference, model = quantized
    labels = torch.tensor([1, 4, 1])
    ids = model.sample_ids(labels, seed=5)
    stepwise, replayed = decoded(model, ids, labels), model.replay(ids, labels)
    off = relative_error(replayed, reference.replay(ids, labels))
    assert relative_error(stepwise, replayed) < 0.02 * off
    assert all(
        isinstance(model.transformer.get_submodule(spec.name), PackedLinear)
        for spec in model.linears()
    )


@pytest.mark.parametrize("position", [0, 1, 2])
def test_each_position_has_its_own_modulation_scale(quantized, position):
    """The table is read at the position itself: another scale there changes the logits from there
    on, and none before."""
    _, model = quantized
    labels = torch.tensor([1, 4])
    ids = model.sample_ids(labels, seed=6)
    before = decoded(model, ids, labels)
    linear = model.transformer.blocks[0].adaLN_modulation[1]
    table = linear.a_scale
    linear.a_scale = torch.where(torch.arange(len(table)) == position, 2 * table, table)
    after = decoded(model, ids, labels)
    linear.a_scale = table
    changed = (after != before).any(-1).any(0)  # [L], logits of positions 1 to L
    first = max(position - 1, 0)
    assert not changed[:first].any()
    assert changed[first]


def test_a_checkpoint_holds_it_all(quantized, tmp_path):
    _, model = quantized
    model.save_pretrained(tmp_path / "q")
    again = ptq4arvg.load_quantized(tmp_path / "q")
    labels = torch.tensor([2, 0])
    ids = model.sample_ids(labels, seed=7)
    assert torch.equal(again.sample_ids(labels, seed=7), ids)
    assert torch.equal(again.replay(ids, labels), model.replay(ids, labels))
    assert torch.equal(again.decode_ids(ids), model.decode_ids(ids))
    norm = again.transformer.blocks[0].norm1
    assert norm.constant is not None and norm.quantizer is not None


@pytest.mark.parametrize("scheme", ["W8A8", "W4A8"])
def test_sinks_in_float(scheme):
    model = find_cases(RARCase)[0].build()
    rows = calibrate(model, 8, 4, select="first")
    quantize_(model, scheme, calibration=rows, sink="float")
    labels = torch.tensor([1])
    ids = rows.ids[:1]
    stepwise, replayed = decoded(model, ids, labels), model.replay(ids, labels)
    assert relative_error(stepwise, replayed) < 1e-4
