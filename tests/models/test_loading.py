"""Weight files: both formats, published nesting, and refusal of what does not fit."""

import pickle
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ptq4arvg.models import load_model
from ptq4arvg.models.loading import load_strict_, read_state, strict_tensors
from tests.golden_cases import find_cases

CASE = find_cases()[0]


@pytest.fixture
def state():
    return read_state(CASE.beside("weights.safetensors"))


@pytest.fixture
def transformer():
    return CASE.build().transformer


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize(
    "nesting", [(), ("state_dict",), ("model",), ("module",), ("model", "state_dict")]
)
def test_files_of_every_kind(state, tmp_path, suffix, nesting):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        if nesting:
            pytest.skip("safetensors files are flat")
        save_file(state, path)
    else:
        nested = state
        for key in reversed(nesting):
            nested = {key: nested, "epoch": 3, "args": Namespace(lr=1e-4)}
        torch.save(nested, path)
    read = read_state(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_averaged_weights_where_the_family_wants_them(state, tmp_path):
    average = {name: value + 1 for name, value in state.items()}
    path = tmp_path / "weights.pth"
    torch.save({"model": state, "model_ema": average, "args": Namespace(lr=1e-4)}, path)
    name = "pos_1LC"
    assert torch.equal(read_state(path)[name], state[name])
    assert torch.equal(read_state(path, ("model_ema",))[name], average[name])
    torch.save({"model": state}, path)
    assert torch.equal(read_state(path, ("model_ema",))[name], state[name])


def test_a_tensor_may_have_the_name_of_a_nesting(tmp_path):
    torch.save({"module": {"model": torch.ones(2), "x": torch.zeros(3)}}, tmp_path / "x.pth")
    assert {n: v.tolist() for n, v in read_state(tmp_path / "x.pth").items()} == {
        "model": [1, 1], "x": [0, 0, 0]
    }  # fmt: skip


def test_what_does_not_fit_is_listed_up_to_four():
    module = nn.ParameterDict({name: torch.zeros(2) for name in "abcdef"})
    state = {name: torch.zeros(2) for name in "abcdef"}
    for given, message in [
        ({}, "missing 'a', 'b', 'c', 'd' and 2 more"),
        ({name: state[name] for name in "cf"}, "missing 'a', 'b', 'd', 'e'"),
        (state | dict.fromkeys("vwxyz", state["a"]), "unexpected 'v', 'w', 'x', 'y' and 1 more"),
        ({name: torch.zeros(3) for name in state},
         "; ".join(f"{name} is [3], wanted [2]" for name in "abcd")),
        ({name: value.int() for name, value in state.items()},
         "; ".join(f"{name} is torch.int32, wanted floats" for name in "abcd")),
    ]:  # fmt: skip
        with pytest.raises(ValueError) as refused:
            load_strict_(module, given, "small")
        assert str(refused.value) == (
            f"small: these weights do not fit the model: {message}. "
            "Is it the right file for this name?"
        )


@pytest.mark.parametrize("assign", [False, True])
def test_whole_numbers_stay_whole(assign):
    module = nn.Linear(2, 3, bias=False)
    module.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
    state = {"weight": torch.ones(3, 2).double(), "steps": torch.tensor([2**24 + 1])}
    load_strict_(module, state, "small", assign=assign)
    assert module.weight.dtype == torch.float32 and module.weight.eq(1).all()
    assert module.steps.dtype == torch.int64 and module.steps.item() == 2**24 + 1


def test_a_complex_number_is_no_whole_one():
    module = nn.Module()
    module.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
    wrong = {"steps": torch.zeros(1, dtype=torch.complex64)}
    with pytest.raises(ValueError, match=r"steps is torch.complex64, wanted whole numbers"):
        load_strict_(module, wrong, "small")


def test_a_tensor_without_values_is_read():
    module, state = nn.ParameterDict({"a": torch.ones(0, 3)}), {"a": torch.ones(0, 3)}
    load_strict_(module, state, "small")
    assert [value.shape for _, value in strict_tensors(module, state, "small")] == [(0, 3)]


def test_a_part_that_files_do_not_have_is_zero():
    module = nn.Linear(2, 6)
    module.joined = {"bias": ("q_bias", None, "v_bias")}
    state = {"weight": torch.ones(6, 2), "q_bias": torch.tensor([1.0, 2]),
             "v_bias": torch.tensor([3.0, 4])}  # fmt: skip
    found = dict(strict_tensors(module, state, "small"))
    assert list(found) == ["bias", "weight"] and torch.equal(found["weight"], state["weight"])
    assert found["bias"].tolist() == [1, 2, 0, 0, 3, 4]


def test_every_tensor_is_expected_and_none_is_extra(state, transformer):
    name = "blocks.0.attn.proj.weight"
    lost = {key: value for key, value in state.items() if key != name}
    with pytest.raises(ValueError, match=f"golden: .*missing '{name}'"):
        load_strict_(transformer, lost, "golden")
    with pytest.raises(ValueError, match=r"unexpected 'blocks\.9\.x'"):
        load_strict_(transformer, {**state, "blocks.9.x": torch.zeros(1)}, "golden")
    renamed = {**lost, "blocks.0.attn.prj.weight": state[name]}
    with pytest.raises(ValueError, match=f"unexpected .*Closest: '{name}'"):
        load_strict_(transformer, renamed, "golden")
    cut = {**state, name: state[name][:3]}
    with pytest.raises(ValueError, match=rf"{name} is \[3, \d+\], wanted \["):
        load_strict_(transformer, cut, "golden")


def test_nothing_changes_when_loading_fails(state, transformer):
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    doubled = {name: value * 2 for name, value in state.items()}
    del doubled["pos_1LC"]
    with pytest.raises(ValueError, match="missing 'pos_1LC'"):
        load_strict_(transformer, doubled, "golden")
    assert all(torch.equal(value, before[n]) for n, value in transformer.state_dict().items())


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Surprise:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "bad.pth"
    path.write_bytes(pickle.dumps(Surprise()))
    with pytest.raises(ValueError, match=r"bad\.pth"):
        read_state(path)
    torch.save({"x": Surprise()}, path)
    with pytest.raises(ValueError, match="other than plain tensors") as refused:
        read_state(path)
    assert "io.open" in str(refused.value)
    for advice in ("weights_only", "add_safe_globals"):  # to run it all the same
        assert advice not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_not_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weight file .*gone\.pth"):
        read_state(tmp_path / "gone.pth")
    for name in ("x.safetensors", "x.pth"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(ValueError, match=f"{name}' cannot be read|{name}' is no weight"):
            read_state(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"{name}' cannot be read as a weight file: it is em"):
            read_state(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(ValueError, match="wanted a flat dictionary of tensors"):
        read_state(tmp_path / "epoch.pth")


def test_a_truncated_file_is_refused(tmp_path):
    whole = CASE.beside("weights.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as a weight file"):
        read_state(tmp_path / "cut.safetensors")


def test_a_truncated_file_of_the_old_format_is_refused(tmp_path):
    torch.save({"x": torch.ones(9)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "x.pth").read_bytes()
    for count, reason in ((50, "it ends too early"), (len(whole) - 5, "unexpected EOF")):
        (tmp_path / "cut.pth").write_bytes(whole[:count])
        with pytest.raises(ValueError, match=f"cannot be read as a weight file: {reason}"):
            read_state(tmp_path / "cut.pth")


def test_the_bundled_model_from_files(tmp_path):
    model = load_model("var-tiny")
    torch.save(model.transformer.state_dict(), tmp_path / "t.pth")
    save_file(dict(model.tokenizer.state_dict()), tmp_path / "v.safetensors")
    again = load_model("var-tiny", weights=tmp_path / "t.pth", tokenizer=tmp_path / "v.safetensors")
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.bool, torch.complex64], ids=str)
def test_weights_that_are_no_floats_are_refused(state, transformer, dtype):
    name = "blocks.0.attn.proj.weight"
    wrong = {**state, name: state[name].to(dtype)}
    for assign in (False, True):
        with pytest.raises(ValueError, match=rf"golden: .*{name} is {dtype}, wanted floats"):
            load_strict_(transformer, wrong, "golden", assign=assign)
    assert all(value.is_floating_point() for value in transformer.state_dict().values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_refused(state, transformer, bad, dtype):
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    name = "blocks.0.attn.proj.weight"
    wrong = {key: (value * 2).to(dtype) for key, value in state.items()}
    wrong[name][3, 5] = bad
    with pytest.raises(ValueError, match=rf"golden: {name} has values that are NaN or infinite"):
        load_strict_(transformer, wrong, "golden")
    assert all(torch.equal(value, before[n]) for n, value in transformer.state_dict().items())
    with pytest.raises(ValueError, match=rf"golden: {name} has values that are NaN or infinite"):
        list(strict_tensors(transformer, wrong, "golden"))


def test_weights_of_one_byte_are_read(state, transformer):
    name = "blocks.0.attn.proj.weight"
    small = {**state, name: state[name].to(torch.float8_e4m3fn)}
    load_strict_(transformer, small, "golden")
    assert torch.equal(transformer.state_dict()[name], small[name].float())
    found = dict(strict_tensors(transformer, small, "golden"))
    assert found[name].dtype == torch.float8_e4m3fn
