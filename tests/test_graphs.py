"""Captured decoding steps: what eager generation gives, from fixed memory, and never out of date.

The graphs are those of ``graph_tape``: recorded operators, repeated on the CPU.
"""

import contextlib
import copy
import functools
import inspect
import pickle

import pytest
import torch

from ptq4arvg import graphs
from ptq4arvg.fuse import fuse_, unfuse_
from ptq4arvg.graphs import CudaBackend, StepGraphs
from tests.graph_cases import CONFIGS, EXACT, KINDS, LABELS, build, made, quantized, run
from tests.graph_tape import DirectBackend, TapeBackend

STEPS = {
    "var": {"class": 1, "scale 0": 1, "scale 1": 1, "scale 2": 1},
    "switti": {"prompts": 1, "scale 0": 1, "scale 1": 1, "scale 2, 3 rows": 1},
    "rar": {"first": 1, "token": 16},
    "par": {"1 at once": 4, "4 at once": 3},
    "llamagen": {"1 at once": 16},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_captured_steps_give_what_eager_ones_give(name, kind):
    """VAR and Switti bit for bit. Elsewhere attention sums over the hidden positions, too, whose
    weights are zero, but in another order: a few units in the last place, which may move a
    quantized value on the edge of two codes."""
    model = made(name, kind)
    for seed in (3, 4):  # the second time nothing is captured
        ids, logits = run(model, seed=seed)
        captured = run(model, seed=seed, ids=ids, graphs=True)[1]
        if name in EXACT:
            assert torch.equal(captured, logits)
        size, error = logits.double().norm(), (captured.double() - logits.double()).norm()
        assert error <= {"float32": 1e-6, "float64": 1e-14}.get(kind, 2e-2) * size
        if name in EXACT or kind.startswith("float"):
            assert torch.equal(run(model, seed=seed, graphs=True)[0], ids)
    if kind != "sinks" or name in EXACT:
        times = 4 if name in EXACT or kind.startswith("float") else 2
        wanted = {step: times * count for step, count in STEPS[name].items()}
        assert model.graphs.captured == {(6, captured.dtype): wanted}
        assert model.graphs.backend.captures == len(STEPS[name])


@pytest.mark.parametrize("kind", ["float32", "W8A8", "attention", "sinks"])
@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_but_the_buffers_and_the_position_changes_between_replays(name, kind):
    """A step repeated as recorded, where Python did not run again, and one that is called anew."""
    recorded, called = made(name, kind), made(name, kind, DirectBackend())
    for labels, seed in ((LABELS, 1), (LABELS.flip(0), 2), (torch.tensor([4, 4, 1]), 3)):
        one, other = (run(model, labels, seed, graphs=True) for model in (recorded, called))
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("name", ["rar", "par", "llamagen"])
def test_positions_of_float_sinks_run_eagerly_and_are_named(name):
    model = made(name, "sinks")
    model.generate([1, 2], seed=1)
    last = {"rar": 1, "par": 7, "llamagen": 1}[name]
    assert model.graphs.eager.startswith(f"positions to {last}: ")
    (replays,) = model.graphs.captured.values()
    assert (
        replays
        == {"rar": {"token": 15}, "par": {"4 at once": 2}, "llamagen": {"1 at once": 14}}[name]
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cfg", [0, 2.5])
def test_guidance_decides_the_rows(name, cfg):
    model = build(name)
    wanted = model.generate([1, 3], seed=2, cfg=cfg, graphs=False)
    assert torch.equal(model.generate([1, 3], seed=2, cfg=cfg), wanted)
    rows = 4 if cfg or name == "var" else 2
    assert list(model.graphs.captured) == [(rows, torch.float32)]


@pytest.mark.parametrize("name", CONFIGS)
def test_batches_of_two_sizes_have_graphs_of_their_own(name):
    model = build(name)
    labels = [0, 1, 2, 3, 4]
    for seed in (5, 6):
        wanted = model.generate(labels, seed=seed, batch_size=3, graphs=False)
        assert model.graphs.eager == "graphs=False"
        assert torch.equal(model.generate(labels, seed=seed, batch_size=3), wanted)
        assert model.graphs.eager == ""
    assert list(model.graphs.captured) == [(6, torch.float32), (4, torch.float32)]
    assert model.graphs.backend.captures == 2 * len(STEPS[name])
    assert "6 rows, float32: " in repr(model.graphs) and "replays" in repr(model.graphs)


def test_only_the_sizes_used_last_stay():
    model = build("par")
    for images in (1, 2, 1, 3):
        model.generate([0] * images)
    assert [rows for rows, _ in model.graphs.captured] == [2, 6]
    model.graphs.keep = 1
    model.generate([0])
    assert [rows for rows, _ in model.graphs.captured] == [2]
    model.graphs.drop()
    assert not model.graphs.captured


@pytest.mark.parametrize("name", CONFIGS)
def test_memory_is_used_again(name):
    model = build(name)
    steps = {}

    def addresses():
        model.generate([1, 2])
        (held,) = model.graphs._sizes.values()
        steps.update(held.steps)
        tensors = [t for kind in held._buffers.values() for t in kind]
        tensors += [t for step in held.steps.values() for t in step.inputs]
        return [t.data_ptr() for t in tensors]

    first, before = addresses(), dict(steps)
    assert addresses() == first and len(first) > 2
    assert all(steps[key] is before[key] for key in before)


def test_what_an_earlier_image_left_in_the_cache_is_hidden():
    model = build("rar")
    wanted = run(model, seed=8, graphs=True)[1]
    held = next(iter(model.graphs._sizes.values()))
    with torch.inference_mode():
        for buffer in held._buffers["values"]:
            buffer.fill_(torch.nan)
    assert torch.equal(run(model, seed=8, graphs=True)[1], wanted)


def moved(model):
    model.to(torch.float64)


def folded(model):
    spec = next(s for s in model.linears() if s.fold)
    k = model.transformer.get_submodule(spec.name).in_features
    model.fold_(spec.name, torch.full((k,), 2.0), torch.zeros(k))


def replaced(model):
    name = model.linears()[-1].name
    linear = copy.deepcopy(model.transformer.get_submodule(name))
    linear.weight.mul_(2)
    model.replace_(name, linear)


def new_position(model):
    model.cursor.position = torch.zeros(1, dtype=torch.int32)


@pytest.mark.parametrize("change", [moved, quantized, folded, replaced, new_position])
@pytest.mark.parametrize("name", ["var", "switti", "rar", "par"])
def test_a_changed_model_is_captured_anew(name, change):
    model = build(name)
    model.generate([1, 2])
    captures = model.graphs.backend.captures
    change(model)
    wanted = model.generate([1, 2], graphs=False)
    assert torch.allclose(model.generate([1, 2]), wanted, atol=1e-6)
    assert model.graphs.backend.captures == 2 * captures
    assert len(model.graphs.captured) == 1


def test_fusing_drops_what_was_captured():
    model = build("var")
    quantized(model)
    for change in (unfuse_, fuse_):
        model.generate([1])
        assert model.graphs.captured
        change(model)
        assert not model.graphs.captured


def test_weights_written_in_place_are_read():
    model = build("var")
    before = run(model, graphs=True)[1]
    model.transformer.head.bias.add_(1.0)
    logits = run(model, graphs=True)[1]
    assert model.graphs.backend.captures == len(STEPS["var"])
    assert not torch.equal(logits, before)
    assert torch.equal(run(model)[1], logits)


def test_a_copy_of_a_model_shares_no_graphs():
    model = build("var")
    wanted = model.generate([1], seed=1)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not other.graphs.captured and other.graphs.keep == model.graphs.keep
        assert torch.equal(other.generate([1], seed=1), wanted) and other.graphs.captured


def test_without_a_cuda_device_steps_run_eagerly_or_the_call_fails():
    model = build("var")
    model.graphs = StepGraphs()
    assert repr(model.graphs) == "no captured steps\neager: nothing was generated yet"
    model.generate([1])
    why = "the model is on cpu, and graphs need a cuda device"
    assert model.graphs.eager == why and repr(model.graphs) == f"no captured steps\neager: {why}"
    with pytest.raises(ValueError, match=rf"var-test: graphs=True, but {why}; wanted graphs=None"):
        model.generate([1], graphs=True)
    with pytest.raises(ValueError, match=f"no captured steps: {why}"):
        model.sample_ids(torch.tensor([1]), graphs=True)


@pytest.mark.parametrize("host", [lambda x: x.sum().item(), lambda x: x + torch.tensor([1.0, 2.0])])
def test_a_step_that_needs_the_host_is_named(host):
    steps = StepGraphs(TapeBackend()).open(1, torch.zeros(2), ())
    with pytest.raises(RuntimeError, match=r"step 'sum' cannot be captured: .*\n.*graphs=False"):
        steps.run("sum", host, torch.zeros(2))
    assert not steps.steps


def test_a_full_device_is_no_fault_of_the_step():
    def full(x):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError, match=r"^no memory$"):
        StepGraphs(TapeBackend()).open(1, torch.zeros(2), ()).run("sum", full, torch.zeros(2))


def test_inputs_unlike_the_captured_ones_are_refused():
    steps = StepGraphs(TapeBackend()).open(1, torch.zeros(2), ())
    assert steps.run("twice", lambda x: 2 * x, torch.ones(2)).tolist() == [2, 2]
    assert steps.run("twice", lambda x: 2 * x, torch.full((2,), 3.0)).tolist() == [6, 6]
    for other in (torch.ones(1), torch.ones(2, dtype=torch.float64)):
        with pytest.raises(
            ValueError, match=r"step 'twice': .*; it was captured for torch.float32"
        ):
            steps.run("twice", lambda x: 2 * x, other)


def test_as_many_inputs_as_at_the_capture():
    steps = StepGraphs(TapeBackend()).open(1, torch.zeros(2), ())
    steps.run("sum", torch.add, torch.ones(2), torch.ones(2))
    for count in (1, 3):
        with pytest.raises(ValueError, match="argument 2"):
            steps.run("sum", torch.add, *[torch.ones(2)] * count)


def test_given_inputs_are_not_written_to():
    steps, first = StepGraphs(TapeBackend()).open(1, torch.zeros(2), ()), torch.ones(2)
    for given in (first, torch.full((2,), 3.0)):
        steps.run("twice", lambda x: 2 * x, given)
    assert first.tolist() == [1, 1]


@pytest.mark.parametrize(
    "change", [torch.t, torch.flatten, lambda x: x.view(torch.int32), torch.clone]
)
def test_the_same_memory_read_otherwise_is_another_source(change):
    held, x, like = StepGraphs(TapeBackend()), torch.ones(2, 2), torch.zeros(2)
    steps = held.open(1, like, [x])
    assert held.open(1, like, [x]) is steps
    assert held.open(1, like, [change(x)]) is not steps


def test_the_order_of_calls_to_cuda(monkeypatch):
    """Warm-up on a side stream, between waits; then a capture there, whose graph is replayed."""
    calls, real = [], inspect.signature(torch.cuda.graph)

    class Stream:
        def __init__(self, device=None, name="side"):
            self.name = name

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self):
            calls.append("replay")

    @contextlib.contextmanager
    def within(name):
        calls.append(name)
        yield
        calls.append(f"end of {name}")

    def graph(*args, **kwargs):
        given = real.bind(*args, **kwargs).arguments
        assert isinstance(given["cuda_graph"], Graph) and given["pool"] == "pool"
        assert given["stream"].name == "side" and given["capture_error_mode"] == "thread_local"
        return within("capture")

    fakes = {
        "device": lambda device: within(f"device {device}"), "Stream": Stream, "graph": graph,
        "current_stream": lambda: Stream(name="main"), "CUDAGraph": Graph,
        "stream": lambda stream: within(f"{stream.name} stream"),
        "graph_pool_handle": lambda: "pool",
    }  # fmt: skip
    for name, fake in fakes.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, fake)
    own = functools.cache(graphs._side_stream.__wrapped__)  # keeps no fake for later tests
    monkeypatch.setattr(graphs, "_side_stream", own)
    backend = CudaBackend()
    replay, outputs = backend.capture(lambda: calls.append("run") or 7, "cuda:1", backend.pool())
    assert outputs == 7
    replay()
    assert calls == [
        "device cuda:1", "side waits for main", "side stream", "run", "run", "end of side stream",
        "main waits for side", "capture", "run", "end of capture", "end of device cuda:1", "replay",
    ]  # fmt: skip
