"""RAR's decoding loop: streams, cache, modulations per distinct label, and its stressed twin."""

import contextlib

import pytest
import torch
from torch.testing import assert_close

from ptq4arvg.calibration import Calibration
from ptq4arvg.models import build_model, model_config
from ptq4arvg.models.loading import load_strict_
from ptq4arvg.models.rar import RARConfig
from ptq4arvg.models.stress import stress_
from ptq4arvg.pipeline import quantize_
from tests.golden_cases import forced, greedy

CONFIG = {
    "family": "rar",
    "transformer": {"depth": 2, "embed_dim": 64, "ffn_dim": 192, "num_heads": 4, "num_classes": 5,
                    "tokens": 16, "vocab_size": 32},
    "tokenizer": {"vocab_size": 32, "z_channels": 16, "ch": 32, "ch_mult": [1, 2],
                  "num_res_blocks": 1, "grid": 4},
}  # fmt: skip
LABELS = torch.tensor([3, 1, 3, 0, 1])


def tiny(dtype=torch.float32, seed=0):
    return build_model("rar-tiny", CONFIG, seed=seed).to(dtype)


@pytest.fixture(scope="module")
def model():
    return tiny()


def rows(model, n=4):
    ids = torch.randint(32, (n, model.tokens), generator=torch.Generator().manual_seed(1))
    return Calibration(ids, torch.arange(n) * model.null_label // (n - 1), select="given")


def decoded(model, ids, labels):
    """Logits of stepwise decoding when the tokens are given, [n, L, V]."""
    seen = []
    model.sample_ids(labels, cfg=0, choose=forced(seen, ids.split(1, 1)))
    return torch.cat(seen, 1)


def adaln_rows(model, run):
    """Rows that the first block's AdaLN linear computes during ``run``."""
    seen = []
    linear = model.transformer.blocks[0].adaLN_modulation[1]
    handle = linear.register_forward_hook(lambda _m, args, _y: seen.append(args[0][..., 0].numel()))
    run()
    handle.remove()
    return sum(seen)


def test_an_image_depends_on_its_index_only(model):
    together = model.sample_ids(LABELS, seed=9)
    for first, count in ((0, 1), (1, 3), (4, 1)):
        alone = model.sample_ids(LABELS[first : first + count], seed=9, index=first)
        assert torch.equal(alone, together[first : first + count])
    assert not torch.equal(model.sample_ids(LABELS, seed=10), together)
    assert not torch.equal(together[0], together[2])  # of one class


def test_images(model):
    images = model.generate([0, 4, 2], seed=1, batch_size=2)
    assert images.shape == (3, 3, 8, 8) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    again = model.generate([0, 4, 2], seed=1)
    assert_close(images, again, atol=1e-5, rtol=0)


def test_sampling_options(model):
    best = model.sample_ids(LABELS, choose=greedy([]))
    assert torch.equal(model.sample_ids(LABELS, seed=3, top_k=1), best)
    assert torch.equal(model.sample_ids(LABELS, seed=3, top_p=1e-9), best)
    assert not torch.equal(model.sample_ids(LABELS, cfg=0, choose=greedy([])), best)


def test_sampling_settings_are_those_published():
    """Guidance at the end of the sequence, the power of the progress towards it, temperature."""
    wanted = {"rar-b": (16.0, 2.75, 1.0), "rar-l": (15.5, 2.5, 1.02), "rar-xl": (6.9, 1.5, 1.02),
              "rar-xxl": (8.0, 1.2, 1.02)}  # fmt: skip
    for name, settings in wanted.items():
        c = RARConfig(**model_config(name)["transformer"])
        assert (c.sampling["cfg"], c.guidance_power, c.temperature) == settings, name


def test_a_label_that_is_no_class(model):
    with pytest.raises(ValueError, match=r"rar-tiny: label 5; wanted 0 to 4"):
        model.sample_ids(torch.tensor([5]))


def stop(_logits, _step):
    raise KeyboardInterrupt


@pytest.mark.parametrize("choose", [None, stop])
def test_nothing_of_a_batch_stays(choose):
    model = tiny()
    model.modulation_table.budget = 0  # windows, which are dropped too
    with pytest.raises(KeyboardInterrupt) if choose else contextlib.nullcontext():
        model.sample_ids(LABELS, choose=choose)
    assert all(block.attn.cache is None for block in model.transformer.blocks)
    assert not model.modulation_table._window


def test_a_mask_in_the_file_is_ignored():
    model, other = tiny(), tiny(seed=1)
    state = {**other.transformer.state_dict(), "attn_mask": torch.zeros(18, 18)}
    load_strict_(model.transformer, state, "weights")
    assert torch.equal(model.transformer.cls_token, other.transformer.cls_token)


def test_modulations_are_computed_once_per_class():
    model = tiny()
    classes = len(set(LABELS.tolist())) + 1  # and none
    assert adaln_rows(model, lambda: model.sample_ids(LABELS)) == classes * model.positions
    assert adaln_rows(model, lambda: model.sample_ids(LABELS[:2], seed=1)) == 0
    fresh = torch.tensor([4, 4, 3])
    assert adaln_rows(model, lambda: model.sample_ids(fresh)) == model.positions


@pytest.mark.parametrize("budget", [0, 20_000, 100_000])
def test_a_small_budget_changes_no_logit(model, budget):
    other = tiny()
    other.modulation_table.budget = budget
    ids = model.sample_ids(LABELS, seed=4)
    assert_close(decoded(other, ids, LABELS), decoded(model, ids, LABELS))
    held = other.modulation_table.kept.values()
    assert sum(rows.nbytes for rows in held) <= budget


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("less", "kept"), [(0, 4), (1, 0)])
def test_modulations_stay_if_the_budget_holds_those_of_a_batch(dtype, less, kept):
    model = tiny(dtype)
    model.sample_ids(LABELS)
    taken = sum(rows.nbytes for rows in model.modulation_table.kept.values())
    fresh = tiny(dtype)
    fresh.modulation_table.budget = taken - less
    fresh.sample_ids(LABELS)
    assert len(fresh.modulation_table.kept) == kept  # three classes and none


def fold(model):
    generator = torch.Generator().manual_seed(5)
    for spec in model.linears():
        if spec.fold:
            k = model.transformer.get_submodule(spec.name).in_features
            scale = 1 + torch.rand(k, generator=generator, dtype=torch.float64)
            model.fold_(spec.name, scale, torch.zeros_like(scale))


CHANGES = {
    "fold": fold,
    "stress": lambda model: stress_(model, 30),
    "quantize": lambda model: quantize_(model, "W8A8", "rtn", rows(model)),
    "load": lambda model: model.load_state_dict(tiny(seed=1).state_dict()),
    "dtype": lambda model: model.double(),
    "one embedding": lambda model: model.transformer.embeddings.weight.data[36].mul_(2),
    "one position": lambda model: model.transformer.timesteps_embeddings.data[0, 16].mul_(2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_make_new_modulations(change):
    model = tiny()
    ids = model.sample_ids(LABELS)
    before = decoded(model, ids, LABELS)
    CHANGES[change](model)
    after = decoded(model, ids, LABELS)
    assert_close(after, model.replay(ids, LABELS), rtol=1e-4, atol=1e-4)
    if change not in ("stress", "dtype"):
        assert not torch.allclose(after, before, rtol=1e-3, atol=1e-3)
    if change == "dtype":
        assert after.dtype == torch.float64


def test_codes_that_a_quantized_model_loads_make_new_modulations():
    first, second = tiny(), tiny()
    second.transformer.blocks[0].adaLN_modulation[1].weight.data.mul_(2)
    for each in (first, second):
        quantize_(each, "W8A8", "rtn", rows(each))
    ids = second.sample_ids(LABELS)
    wanted = decoded(second, ids, LABELS)
    decoded(first, ids, LABELS)
    first.load_state_dict(second.state_dict())
    assert torch.equal(decoded(first, ids, LABELS), wanted)


@pytest.mark.gpu
def test_modulations_follow_to_another_device():
    model = tiny()
    ids = model.sample_ids(LABELS)
    before = decoded(model, ids, LABELS)
    model.to("cuda")
    assert_close(decoded(model, ids.cuda(), LABELS).cpu(), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheme", ["W8A8", "W4A8"])
def test_half_precision(scheme):
    """What is not quantized in bfloat16: images, and logits near those of float32."""
    model, exact = tiny(torch.bfloat16), tiny()
    for each in (model, exact):
        quantize_(each, scheme, "rtn", rows(exact))
    ids = exact.sample_ids(LABELS)
    found, wanted = decoded(model, ids, LABELS), decoded(exact, ids, LABELS)
    assert found.dtype == torch.bfloat16
    assert (found - wanted).norm() < 0.1 * wanted.norm()
    assert model.generate([1]).isfinite().all()


def test_stress_keeps_the_function_and_makes_outliers():
    plain, stressed = tiny(torch.float64), tiny(torch.float64)
    stress_(stressed, 30)
    ids, labels = rows(plain).ids, rows(plain).labels
    expected = plain.replay(ids, labels)
    assert (stressed.replay(ids, labels) - expected).abs().max() < 1e-10 * expected.abs().max()
    assert stressed.transformer.state_dict().keys() == plain.transformer.state_dict().keys()
    for role in ("qkv", "fc1"):
        most = [_channel_ratio(model, role) for model in (plain, stressed)]
        assert most[1] > 5 * most[0], role


def _channel_ratio(model, role):
    """Largest channel maximum over the median one, of the first linear of a role."""
    name = next(spec.name for spec in model.linears() if spec.role == role)
    seen = []
    linear = model.transformer.get_submodule(name)
    handle = linear.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model.replay(rows(model).ids, rows(model).labels)
    handle.remove()
    channels = seen[0].abs().amax((0, 1))
    return (channels.max() / channels.median()).item()


def test_steps_and_groups(model):
    """The paper's groups (table 1): every position for AdaLN, two sinks and the rest elsewhere."""
    for spec in model.linears():
        assert len(spec.groups) == len(spec.scale_groups) == model.positions == 17
        kinds = len(set(spec.groups))
        if "ada_lin" in spec.role:
            assert kinds == model.positions
        elif spec.role == "head":
            assert kinds == 1
        else:
            assert spec.groups == (0, 1, *(2,) * 15)
        quarters = (0,) * 4 + (1,) * 4 + (2,) * 4 + (3,) * 3  # of the tokens that are read
        if "head" in spec.role:
            assert spec.scale_groups == (0, 0, *quarters)
        else:
            assert spec.scale_groups == (0, 1, *(2 + q for q in quarters))
        assert spec.sink == (() if "ada_lin" in spec.role else (0, 1))


def test_the_head_knows_only_positions_that_predict(model):
    seen = []
    handle = model.transformer.lm_head.register_forward_pre_hook(lambda _m, args: seen.extend(args))
    logits = model.replay(rows(model).ids, rows(model).labels)
    handle.remove()
    assert logits.shape == (4, 16, 32)
    assert seen[0].shape[1] == model.positions
    assert torch.equal(seen[0][:, 0], seen[0][:, 1])
