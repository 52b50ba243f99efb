"""Weights mapped from a file: the same bits as loaded ones, in a fraction of the memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ptq4arvg
from ptq4arvg.memory import release_mapped
from ptq4arvg.models import load_model, model_config, store_weights
from ptq4arvg.models.loading import read_state, strict_tensors
from ptq4arvg.models.mapped import LARGE, check_mappable, write_tensors
from tests.models.published import publish, withdraw

NAME = "par-mapped"
SIZES = {"embed_dim": 256, "hidden": 512, "num_heads": 4}
linux = pytest.mark.skipif(
    not os.access("/proc/self/pagemap", os.R_OK), reason="the system does not tell which pages are"
)


@pytest.fixture(scope="module", autouse=True)
def known():
    publish(NAME, **SIZES)
    yield
    withdraw(NAME)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("mapped") / "weights.safetensors"
    store_weights(NAME, path, "random")
    return path


def load(file, mmap=True, dtype=torch.bfloat16, **more):
    return load_model(NAME, weights=file, tokenizer="random", dtype=dtype, mmap=mmap, **more)


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_bits_as_random_weights_and_as_a_plain_load(file):
    mapped = load(file).state_dict()
    same(mapped, load("random", mmap=False).state_dict())
    same(mapped, load(file, mmap=False).state_dict())


def test_quantizing_a_mapped_model_gives_the_same_checkpoint(file):
    models = [load(file), load(file, mmap=False)]
    rows = ptq4arvg.calibrate(models[1], samples=4, keep=2)
    before = file.read_bytes()
    for model in models:
        assert ptq4arvg.calibrate(model, samples=4, keep=2).hash == rows.hash
        ptq4arvg.quantize_(model, "W4A8", calibration=rows)
    same(models[0].state_dict(), models[1].state_dict())
    assert models[0].report.to_dict() == models[1].report.to_dict()
    assert file.read_bytes() == before


def test_published_files_are_rewritten_under_our_names(file, tmp_path):
    state = load_file(file)
    for name in [n for n in state if n.endswith("w13.weight")]:
        w1, w3 = state.pop(name).chunk(2)
        stem = name.removesuffix("w13.weight")
        state |= {f"{stem}w1.weight": w1, f"{stem}w3.weight": w3}
    state = {name: value.float() for name, value in state.items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "published.pt")
    store_weights(NAME, tmp_path / "ours.safetensors", tmp_path / "published.pt")
    assert (tmp_path / "ours.safetensors").read_bytes() == file.read_bytes()


@linux
@pytest.mark.parametrize("mmap", [True, False])
def test_published_files_are_mapped_if_asked_for(tmp_path, mmap):
    torch.save({"x": torch.ones(LARGE)}, tmp_path / "published.pt")
    x = read_state(tmp_path / "published.pt", mmap=mmap)["x"]
    assert x.sum() == LARGE  # read, so that it is in memory
    assert (release_mapped([x]) >= x.nbytes) == mmap


@linux
def test_a_tensor_leaves_memory_before_the_next_one_comes(file):
    module, state = load("random", mmap=False).transformer, read_state(file)
    seen = []
    for _, tensor in strict_tensors(module, state, "mapped"):
        # The system maps a few pages around one that is read, also of a neighbour.
        assert all(release_mapped([t]) < t.nbytes / 2 for t in seen)
        seen = [t for t in (*seen, tensor) if t.nbytes >= LARGE]
        tensor.sum()
    assert len(seen) > 3


@linux
def test_large_layers_leave_memory_after_use(file):
    model = load(file)
    linear = model.transformer.layers[0].attention.wqkv
    assert linear.weight.nbytes >= LARGE
    before = linear.weight.clone()
    assert release_mapped([linear.weight]) >= linear.weight.nbytes
    assert release_mapped([linear.weight]) == 0
    rows = ptq4arvg.calibrate(model, samples=2, keep=2)
    model.replay(rows.ids, rows.labels)
    # The system maps a few pages around one that is read, also of a neighbour.
    assert release_mapped([linear.weight]) < linear.weight.nbytes / 2
    assert torch.equal(linear.weight, before)


@linux
def test_what_was_written_in_place_stays_and_does_not_reach_the_file(file):
    model = load(file)
    weight = model.transformer.layers[0].attention.wqkv.weight
    before, bytes_before = weight.clone(), file.read_bytes()
    weight.data[100].add_(1)
    release_mapped([weight])
    expected = before.clone()
    expected[100] += 1
    assert torch.equal(weight, expected)
    assert file.read_bytes() == bytes_before
    assert torch.equal(load(file).transformer.layers[0].attention.wqkv.weight, before)


@linux
def test_no_copy_of_the_whole_model_is_held(tmp_path):
    """Growth of a process that loads, calibrates, quantizes and generates, over float32's bytes."""
    sizes = {"small": SIZES, "large": {"embed_dim": 512, "hidden": 1408, "depth": 24}}
    files = {name: tmp_path / f"{name}.safetensors" for name in sizes}
    for name, fields in sizes.items():
        publish(name, **fields)
        store_weights(name, files[name], "random")
        withdraw(name)
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "mapped_memory.py", files["small"],
         files["large"], json.dumps(sizes)],
        capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                          # Of a small model the heap's free pieces would count for too much.
                          "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"},
    )  # fmt: skip
    growth, float32 = int(done.stdout), 2 * files["large"].stat().st_size
    # Packed weights take 0.125, samples and statistics the rest; a copy in bfloat16 takes 0.5.
    assert growth < 0.4 * float32, f"{growth / float32:.2f}"


def test_what_cannot_be_mapped_is_refused(file, tmp_path):
    message = r"mapped transformer: .* is torch.bfloat16 in the file.*wanted torch.float32. Give dt"
    with pytest.raises(ValueError, match=message):
        load(file, dtype=torch.float32)
    with pytest.raises(ValueError, match="stress changes the weights"):
        load(file, stress=30)
    state = load_file(file)
    joined = state.pop("layers.0.feed_forward.w13.weight")
    for name, part in zip(("w1", "w3"), joined.chunk(2), strict=True):
        state[f"layers.0.feed_forward.{name}.weight"] = part.contiguous()
    save_file(state, tmp_path / "parts.safetensors")
    with pytest.raises(ValueError, match=r"w1\.weight is part of a tensor of the model.*store_we"):
        load(tmp_path / "parts.safetensors")
    assert model_config(NAME)["family"] == "par"


def test_only_what_would_have_to_change_cannot_be_mapped():
    module = nn.Linear(2, 6).bfloat16()
    module.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
    module.joined = {"bias": ("q_bias", None, "v_bias")}
    state = module.state_dict()
    check_mappable(module, state | {"recomputed": torch.ones(3)}, torch.bfloat16, "small")
    with pytest.raises(ValueError, match=r"small: bias is torch.float32 in the file"):
        check_mappable(module, state | {"bias": torch.ones(6)}, torch.bfloat16, "small")
    parts = {"weight": state["weight"], "v_bias": state["bias"][4:]}
    with pytest.raises(ValueError, match=r"small: v_bias is part of a tensor of the model"):
        check_mappable(module, parts, torch.bfloat16, "small")


@pytest.mark.parametrize("name", ["a", "ab", "abcde", "a" * 99])
def test_tensors_are_aligned_in_their_file(tmp_path, name):
    write_tensors(tmp_path / "x", {name: [2, 3]}, torch.float32, [(name, torch.ones(3, 2).t())])
    assert int.from_bytes((tmp_path / "x").read_bytes()[:8], "little") % 64 == 0
    assert torch.equal(load_file(tmp_path / "x")[name], torch.ones(2, 3))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", torch.ones(2))], r"b did not come"),
        ([("b", torch.ones(3)), ("a", torch.ones(2))], r"b \[3\] came; wanted a \[2\]"),
        ([("a", torch.ones(3))], r"a \[3\] came; wanted a \[2\]"),
        ([("a", torch.ones(2)), ("b", torch.ones(3)), ("c", torch.ones(1))],
         r"c \[1\] came; wanted None \[\]"),
    ],
)  # fmt: skip
def test_a_file_appears_complete_or_not_at_all(tmp_path, tensors, message):
    with pytest.raises(ValueError, match=f"write_tensors: {message}"):
        write_tensors(tmp_path / "x", {"a": [2], "b": [3]}, torch.float32, tensors)
    assert not list(tmp_path.iterdir())


def test_files_of_floats_only(tmp_path):
    with pytest.raises(ValueError, match=r"dtype is torch.int8; wanted one of torch.float32"):
        write_tensors(tmp_path / "x", {}, torch.int8, [])


def test_weights_that_stay_mapped_are_not_read_to_be_checked(file, tmp_path):
    state = load_file(file)
    name = "layers.0.attention.wqkv.weight"
    state[name][0, 0] = float("nan")
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=rf"{name} has values that are NaN or infinite"):
        load(tmp_path / "bad.safetensors", mmap=False)
    load(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=rf"{name} has values that are NaN or infinite"):
        store_weights(NAME, tmp_path / "new.safetensors", tmp_path / "bad.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]
