"""CUDA graphs of decoding steps on a device: what eager generation on it gives."""

from __future__ import annotations

import pytest
import torch

from ptq4arvg.graphs import CudaBackend
from tests.graph_cases import CONFIGS, LABELS, build, made, quantized, run

pytestmark = pytest.mark.gpu
KINDS = ("float32", "bfloat16", "W8A8", "W4A8", "simulated", "sinks")


def on_device(name: str, kind: str):
    return made(name, kind, CudaBackend()).to("cuda")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_captured_steps_give_what_eager_ones_give(name, kind):
    """Replayed at every position of two images' sequences; the second time nothing is captured.
    Sums may be in another order: a quantized value on the edge of two codes then moves."""
    model = on_device(name, kind)
    for seed in (3, 4):
        ids, logits = run(model, seed=seed)
        captured = run(model, seed=seed, ids=ids, graphs=True)[1]
        size, error = logits.double().norm(), (captured.double() - logits.double()).norm()
        assert error <= (1e-5 if kind == "float32" else 3e-2) * size
        if kind == "float32":
            assert torch.equal(run(model, seed=seed, graphs=True)[0], ids)


@pytest.mark.parametrize("kind", ["float32", "W8A8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_replays_are_equal_bit_by_bit(name, kind):
    model = on_device(name, kind)
    first = run(model, seed=5, graphs=True)
    run(model, LABELS.flip(0), seed=6, graphs=True)
    again = run(model, seed=5, graphs=True)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.parametrize("name", ["var", "rar", "par", "llamagen"])
def test_attention_in_integers(name):
    """Over a cache of codes that a step finds by the position on the device."""
    model = build(name, backend=CudaBackend())
    quantized(model, attention="int8")
    model.to("cuda")
    for seed in (3, 4):
        ids, logits = run(model, seed=seed)
        captured = run(model, seed=seed, ids=ids, graphs=True)[1]
        assert (captured.double() - logits.double()).norm() <= 3e-2 * logits.double().norm()
    first = run(model, seed=5, graphs=True)
    again = run(model, seed=5, graphs=True)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    held = next(iter(model.graphs._sizes.values()))
    assert {buffer.dtype for buffer in held._buffers["keys"]} == {torch.int8}


@pytest.mark.parametrize("name", CONFIGS)
def test_generate_captures_batches_of_two_sizes(name):
    model, labels = on_device(name, "float32"), [0, 1, 2, 3, 4]
    wanted = model.generate(labels, seed=7, batch_size=3, graphs=False)
    for _ in range(2):
        found = model.generate(labels, seed=7, batch_size=3)
        assert torch.allclose(found, wanted, atol=1e-4)
    assert list(model.graphs.captured) == [(6, torch.float32), (4, torch.float32)]
    assert model.graphs.eager == ""


def test_dropping_frees_the_memory():
    model = on_device("rar", "float32")
    left = []
    for _ in range(2):  # libraries keep what they took the first time
        model.generate([1])
        held = torch.cuda.memory_allocated()
        model.graphs.drop()
        left.append(torch.cuda.memory_allocated())
        assert left[-1] < held
    assert left[1] == left[0]


def test_what_waits_for_the_device_cannot_be_captured():
    model = on_device("var", "float32")
    steps = model.graphs.open(2, model.transformer.pos_start, ())
    with pytest.raises(RuntimeError, match="step 'sum' cannot be captured"):
        steps.run("sum", lambda x: x.sum().item(), torch.ones(3, device="cuda"))
