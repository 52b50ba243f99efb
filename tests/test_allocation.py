"""The choice of schemes: within the budget, least harm, the same again; what cannot be is said."""

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ptq4arvg
from ptq4arvg import allocation
from ptq4arvg.allocation import Budget, assign, choose
from ptq4arvg.numerics import SCHEMES
from ptq4arvg.plan import LayerPlan

BITS = (4, 6, 8)
harms = st.floats(0, 1, width=32)
cases = st.lists(
    st.tuples(st.integers(1, 50), st.tuples(harms, harms, harms)), min_size=1, max_size=5
)


def options_of(case):
    return [size for size, _ in case], [list(zip(BITS, h, strict=True)) for _, h in case]


def outcome(sizes, options, found):
    """(bits of all weights, total harm) of a choice."""
    picked = [o[i] for o, i in zip(options, found, strict=True)]
    bits = sum(size * b for size, (b, _) in zip(sizes, picked, strict=True))
    return bits, sum(harm for _, harm in picked)


@given(cases, st.floats(4, 8))
def test_the_choice_is_that_of_trying_all(case, target):
    sizes, options = options_of(case)
    bits, harm = outcome(sizes, options, choose(sizes, options, target))
    assert bits <= target * sum(sizes)
    everything = (
        outcome(sizes, options, found)
        for found in itertools.product(range(len(BITS)), repeat=len(sizes))
    )
    best = min(harm for bits, harm in everything if bits <= target * sum(sizes))
    assert harm == pytest.approx(best, rel=1e-12, abs=1e-12)


@given(cases, st.floats(4, 8), st.floats(4, 8))
def test_a_higher_target_never_harms(case, one, other):
    sizes, options = options_of(case)
    low, high = (
        outcome(sizes, options, choose(sizes, options, target))[1]
        for target in sorted((one, other))
    )
    assert high <= low + 1e-12


def test_sizes_without_a_divisor_keep_the_budget_and_lose_little():
    sizes = [1_000_003, 999_983, 3_000_017, 2_000_003, 777_767]
    options = [[(4, h), (6, h / 5), (8, h / 40)] for h in (0.5, 0.1, 0.7, 0.9, 0.2)]
    found = choose(sizes, options, 5.5)
    bits, harm = outcome(sizes, options, found)
    assert bits <= 5.5 * sum(sizes)
    all_ = [outcome(sizes, options, f) for f in itertools.product(range(3), repeat=5)]
    assert harm == min(harm for bits, harm in all_ if bits <= 5.5 * sum(sizes))
    assert choose(sizes, options, 8) == [2] * 5


@pytest.mark.parametrize("target", [4.5, 5.5, 6.7])
@pytest.mark.parametrize("levels", [2, 7, 30])
def test_parts_of_the_budget_are_rounded_to_its_side(levels, target, monkeypatch):
    monkeypatch.setattr(allocation, "LEVELS", levels)
    sizes = [1009, 997, 3001, 2003, 769, 101]
    options = [[(4, 1.0), (6, 0.2), (8, 0.0)]] * 6
    found = choose(sizes, options, target)
    assert outcome(sizes, options, found)[0] <= target * sum(sizes)


def test_of_equal_harm_the_fewest_bits_are_taken():
    assert choose([3, 3], [[(8, 0.0), (6, 0.0), (4, 0.0)]] * 2, 8) == [2, 2]


def test_activation_bits_may_make_more_weight_bits_worse():
    assert choose([3], [[(4, 0.1), (6, 0.2), (8, 0.05)]], 6.5) == [0]


def test_too_small_a_budget_is_an_error():
    with pytest.raises(ValueError, match="fewest bits of each linear are more than 5 on average"):
        choose([1], [[(6, 0.0), (8, 0.0)]], 5)


def fake_model(**sizes):
    transformer = nn.ModuleDict({name: nn.Linear(size, 1) for name, size in sizes.items()})
    specs = [SimpleNamespace(name=name) for name in sizes]
    return SimpleNamespace(transformer=transformer, linears=lambda: specs)


def test_overrides_stay_and_count_and_ignored_linears_do_not():
    model = fake_model(a=10, b=10, c=1000)
    budget = Budget.of(model, 6, ignore=["c"], overrides={"a": "W8A8"})
    assert budget.free == {"b"} and budget.sizes == {"a": 10, "b": 10}
    found = assign(budget, {"b": {"W4A8": 0.3, "W6A8": 0.2, "W8A8": 0.1}})
    assert [p.scheme and p.scheme.name for p in found.plan] == ["W8A8", "W4A8", None]
    assert (found.mean_bits, found.predicted) == (6.0, 0.3)
    assert found.record() == {
        "target_bits": 6.0, "mean_bits": 6.0, "schemes": {"a": "W8A8", "b": "W4A8"},
    }  # fmt: skip
    assert isinstance(found.plan[0], LayerPlan) and budget.candidates[0] is SCHEMES["W4A8"]


def test_what_is_predicted_is_the_sum_of_the_chosen_harms():
    budget = Budget.of(fake_model(a=10, b=10), 5)
    harm = {"a": {"W4A8": 0.5, "W6A8": 0.25, "W8A8": 0.0}, "b": {"W4A8": 0.125}}
    harm["b"] |= {"W6A8": 0.125, "W8A8": 0.0}
    assert assign(budget, harm).predicted == 0.375


def test_candidates_are_an_argument():
    budget = Budget.of(fake_model(a=10, b=10), 7, candidates=("w8a8", "W6A6"))
    assert [s.name for s in budget.candidates] == ["W6A6", "W8A8"]
    harm = {name: {"W6A6": 0.2, "W8A8": 0.1} for name in "ab"}
    assert assign(budget, harm).mean_bits == 7
    with pytest.raises(ValueError, match="unknown scheme 'W5A5'"):
        Budget.of(fake_model(a=10), 7, candidates=("W5A5",))


@pytest.mark.parametrize("target", [3.9, 8.1, float("nan")])
def test_a_target_out_of_range_is_an_error(target):
    with pytest.raises(ValueError, match=r"target_bits is .*; wanted 4 to 8"):
        Budget.of(fake_model(a=10), target)


def test_a_target_out_of_reach_is_an_error():
    message = "target_bits is 5, but with every open linear at W4A8 the mean is 6 bits"
    with pytest.raises(ValueError, match=message):
        Budget.of(fake_model(a=10, b=10), 5, overrides={"a": "W8A8"})


@pytest.fixture(scope="module")
def rows():
    return ptq4arvg.calibrate(ptq4arvg.load_model("rar-tiny"), samples=8, keep=4, seed=0)


@pytest.fixture(scope="module")
def mixed(rows):
    """(model, report) at 5.5 bits with an ignored linear and an override."""
    model = ptq4arvg.load_model("rar-tiny")
    first = model.linears()[0].name
    report = ptq4arvg.quantize_(
        model, method="rtn", calibration=rows, target_bits=5.5, ignore=[first],
        overrides={"re:.*fc2$": "W4A8"},
    )  # fmt: skip
    return model, report


def test_the_report_says_what_was_chosen(mixed):
    model, report = mixed
    assert report.scheme == "mixed-5.5"
    chosen = report.allocation["schemes"]
    assert {layer.name: f"W{layer.w_bits}A{layer.a_bits}" for layer in report.layers} == chosen
    assert {chosen[layer.name] for layer in report.layers if layer.role == "fc2"} == {"W4A8"}
    assert len(set(chosen.values())) > 1 and report.kept == [model.linears()[0].name]
    weights = sum(layer.bytes_before / 2 for layer in report.layers)
    bits = sum(layer.bytes_before / 2 * layer.w_bits for layer in report.layers)
    assert report.allocation["mean_bits"] == bits / weights
    assert 5.3 < bits / weights <= 5.5
    assert {k: model.recipe[k] for k in ("target_bits", "mean_bits", "schemes")} == {
        k: v for k, v in report.allocation.items() if k != "harm"
    }


def test_the_same_bits_come_again_and_from_the_schemes_chosen(mixed, rows, tmp_path):
    model, report = mixed
    again = ptq4arvg.load_model("rar-tiny")
    ignored = report.kept
    second = ptq4arvg.quantize_(
        again, method="rtn", calibration=rows, target_bits=5.5, ignore=ignored,
        overrides={"re:.*fc2$": "W4A8"},
    )  # fmt: skip
    assert second.to_dict() == report.to_dict() and again.recipe == model.recipe
    spelled = ptq4arvg.load_model("rar-tiny")
    ptq4arvg.quantize_(
        spelled, method="rtn", calibration=rows, ignore=ignored,
        overrides=report.allocation["schemes"],
    )  # fmt: skip
    images = model.replay(rows.ids, rows.labels)
    assert images.equal(spelled.replay(rows.ids, rows.labels))
    hashes = [
        ptq4arvg.save_quantized(m, tmp_path / name) for m, name in ((model, "a"), (again, "b"))
    ]
    assert hashes[0] == hashes[1]
    loaded = ptq4arvg.load_quantized(tmp_path / "a")
    assert images.equal(loaded.replay(rows.ids, rows.labels))
    assert loaded.report.to_dict() == report.to_dict()
    assert ptq4arvg.save_quantized(loaded, tmp_path / "c") == hashes[0]
    assert "quantized to mixed-5.5, 5." in (tmp_path / "a" / "README.md").read_text()


def test_the_research_code_has_one_scheme(rows):
    model = ptq4arvg.load_model("var-tiny")
    with pytest.raises(ValueError, match=r"compat='research' has one scheme.* no target_bits"):
        ptq4arvg.quantize_(model, calibration=rows, compat="research", target_bits=5)
