"""The tensors that stay: taken by their place, shrunk without loss, put back with every check."""

import pytest
import torch
from torch import nn

from ptq4arvg.checkpoint.tensors import check_fit, fill, kept_tensors, shrink, some

CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2, bias=False)
        self.register_buffer("optional", None)
        self.register_buffer("steps", torch.tensor([1, 2]))
        self.register_buffer("derived", torch.ones(5), persistent=False)


def test_all_parameters_and_persistent_buffers_are_kept():
    names = set(kept_tensors(Net(), skip=set()))
    assert names == {"first.weight", "first.bias", "second.weight", "steps"}
    assert set(kept_tensors(Net(), skip={"first"})) == {"second.weight", "steps"}
    assert set(kept_tensors(Net(), skip={"fir"})) == names  # no module of that name
    nested = nn.ModuleDict({"net": Net(), "net2": nn.Linear(2, 2, bias=False)})
    assert set(kept_tensors(nested, skip={"net"})) == {"net2.weight"}


def test_hooks_of_the_state_dict_are_passed_by():
    net = Net()
    net.register_state_dict_post_hook(lambda module, state, *_: state.clear())
    assert "steps" in kept_tensors(net, skip=set())


def test_half_precision_only_where_nothing_is_lost():
    assert shrink(torch.tensor([0.5, -0.0, 65504.0])).dtype == torch.float16
    for lossy in (0.1, 65520.0, 1e-9, float("nan")):
        assert shrink(torch.tensor([0.5, lossy])).dtype == torch.float32
    assert shrink(torch.tensor([0.5], dtype=torch.float64)).dtype == torch.float64
    assert shrink(torch.tensor([0.5], dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert shrink(torch.tensor([3])).dtype == torch.int64
    for tensor in (nn.Parameter(torch.ones(2, 3).T), nn.Parameter(torch.full((2, 3), 0.1).T)):
        assert shrink(tensor).is_contiguous() and not shrink(tensor).requires_grad


def test_round_trip_is_exact_bit_by_bit():
    source, target = Net(), Net()
    source.first.weight.data.copy_(torch.linspace(-1, 1, 12).view(4, 3).half().float())
    source.optional = torch.tensor([0.1, -0.0])
    tensors = {name: shrink(t) for name, t in kept_tensors(source, set()).items()}
    assert tensors["first.weight"].dtype == torch.float16
    fill(target, tensors, set(), torch.float32, CPU)
    for name, tensor in kept_tensors(source, set()).items():
        back = kept_tensors(target, set())[name]
        assert back.dtype == tensor.dtype, name
        assert torch.equal(back, tensor), name
    assert not target.first.weight.requires_grad
    assert torch.signbit(target.optional[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("first.bias"), "missing: first.bias; .* none"),
        (lambda t: t.update(other=torch.zeros(1)), "missing: none; not known .* other"),
        (lambda t: t.update(derived=torch.ones(5)), "not known .* derived"),
        (lambda t: t.update({"first.bias": torch.zeros(5)}), r"first.bias has shape \[5\]"),
        (lambda t: t.update(steps=torch.zeros(2, dtype=torch.int32)), "steps is torch.int32"),
        (lambda t: t.update(steps=torch.zeros(2)), "steps is torch.float32; wanted torch.int64"),
        (
            lambda t: t.update({"first.bias": torch.zeros(4, dtype=torch.int8)}),
            "bias is torch.int8",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    tensors = dict(kept_tensors(Net(), set()))
    change(tensors)
    with pytest.raises(ValueError, match=message):
        fill(Net(), tensors, set(), torch.float32, CPU)
    with pytest.raises(ValueError, match=message):
        check_fit(Net(), tensors, set())


def test_tensors_take_the_dtype_that_is_there_and_the_device_that_is_asked_for():
    tensors = kept_tensors(Net(), set()) | {"optional": torch.ones(2)}
    check_fit(Net(), tensors, set())
    net = Net()
    fill(net, tensors, set(), torch.bfloat16, torch.device("meta"))
    assert {t.device.type for t in kept_tensors(net, set()).values()} == {"meta"}
    assert net.first.weight.dtype == torch.float32 and net.optional.dtype == torch.bfloat16
    assert net.steps.dtype == torch.int64
    net = Net()
    fill(net, tensors | {"optional": torch.tensor([1, 2])}, set(), torch.bfloat16, CPU)
    assert net.optional.dtype == torch.int64


def test_three_names_are_told():
    assert some([]) == "none" and some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d"]) == "a, b, c and 1 more"
