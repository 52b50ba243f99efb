"""Small models whose decoding steps are captured, and what they draw."""

import copy
import functools

import torch

from ptq4arvg.calibration import Calibration
from ptq4arvg.graphs import StepGraphs
from ptq4arvg.models import build_model
from ptq4arvg.numerics import SCHEMES
from ptq4arvg.pipeline import quantize_
from tests.graph_tape import TapeBackend
from tests.models.tiny import TINY

LLAMAGEN = {**TINY["par"], "transformer": {**TINY["par"]["transformer"], "parallel": 1}}
CONFIGS = {
    "var": TINY["var"], "switti": TINY["switti"], "rar": TINY["rar"], "par": TINY["par"],
    "llamagen": LLAMAGEN,
}  # fmt: skip
# Whose steps have a graph of their own for every position: they do the same as eager ones.
EXACT = ("var", "switti")
MODELS = CONFIGS | {"mar": TINY["mar"]}  # MAR's steps have no logits: see test_mar_graphs.py
# How a model is made: options of ``quantize_``; None: a float model.
KINDS = {
    "float32": None,
    "float64": None,
    "bfloat16": None,
    "W8A8": {},
    "W4A8": {},
    "simulated": {"pack": False},
    "sinks": {"sink": "float"},
    "attention": {"pack": False, "attention": "simulated"},
}
LABELS = torch.tensor([0, 2, 4])


def build(name, dtype=torch.float32, backend=None):
    model = build_model(f"{name}-test", MODELS[name], seed=0, dtype=dtype)
    model.graphs = StepGraphs(backend or TapeBackend())
    return model


def quantized(model, scheme="W8A8", **options):
    generator = torch.Generator().manual_seed(1)
    if model.continuous:
        ids = torch.randn(2, model.tokens, model.config.channels, generator=generator)
    else:
        ids = torch.randint(40, (2, model.tokens), generator=generator)
    rows = Calibration(ids, torch.tensor([0, model.null_label]), seed=1, select="given")
    quantize_(model, scheme, "rtn", rows, **options)


@functools.cache
def quantized_once(name, kind):
    model = build(name)
    quantized(model, kind if kind in SCHEMES else "W6A6", **KINDS[kind])
    return model


def made(name, kind, backend=None):
    if KINDS[kind] is None:
        return build(name, getattr(torch, kind), backend)
    model = copy.deepcopy(quantized_once(name, kind))
    model.graphs = StepGraphs(backend or TapeBackend())
    return model


def run(model, labels=LABELS, seed=3, ids=None, **options):
    """(ids, logits of all steps); ids: what to draw instead, in the order of the steps."""
    draw, logits, drawn = model._sampler(len(labels), seed, None, None, 0), [], []

    def choose(guided, step):
        logits.append(guided.clone())
        at = sum(part.shape[1] for part in drawn)
        drawn.append(draw(guided, step) if ids is None else ids[:, at : at + guided.shape[1]])
        return drawn[-1]

    model.sample_ids(labels, choose=choose, **options)
    return torch.cat(drawn, 1), torch.cat(logits, 1)
