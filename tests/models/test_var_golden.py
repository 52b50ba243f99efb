"""VAR against records of the original code, over every configuration that is found."""

import pytest
import torch
from torch.testing import assert_close

from ptq4arvg.sampling import filter_logits
from tests.golden_cases import IMAGES, LOGITS, forced, greedy, sub_sampled


def test_teacher_forcing_logits(golden):
    case, model = golden
    records = case.records
    with torch.inference_mode():
        logits = model.transformer(records["tf.labels"], records["tf.x_BLCv_wo_first_l"])
        replayed = model.replay(records["tf.ids"], records["tf.labels"])
    assert_close(logits, records["tf.logits"], **LOGITS)
    assert_close(replayed, records["tf.logits"], **LOGITS)
    relative = (logits - records["tf.logits"]).norm() / records["tf.logits"].norm()
    assert relative < 1e-4


def test_teacher_forcing_input(golden):
    case, model = golden
    _, inputs = model.tokenizer.quantize.latents_and_inputs(case.records["tf.ids"])
    assert_close(inputs, case.records["tf.x_BLCv_wo_first_l"], atol=5e-5, rtol=1e-4)


def test_hidden_states(golden):
    case, model = golden
    states = {}
    handles = [
        model.transformer.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, i=i: states.__setitem__(i, output)
        )
        for i, name in enumerate(model.block_names())
    ]
    with torch.inference_mode():
        model.replay(case.records["tf.ids"], case.records["tf.labels"])
    for handle in handles:
        handle.remove()
    for i, state in states.items():
        if (wanted := case.records.get(f"tf.block{i}_out_sample0")) is not None:
            assert_close(state[:1, : wanted.shape[1]], wanted, **LOGITS)


def test_greedy_generation(golden):
    case, model = golden
    records, seen = case.records, []
    ids = model.sample_ids(records["gen.labels"], cfg=case.config["cfg"], choose=greedy(seen))
    assert torch.equal(ids, case.scales("gen.ids"))
    # Guidance multiplies the difference of two logits, and with it their rounding.
    bound = LOGITS["atol"] * (1 + 2 * case.config["cfg"])
    assert_close(torch.cat(seen, 1), case.scales("gen.logits"), atol=bound, rtol=1e-4)
    f_hat, _ = model.tokenizer.quantize.latents_and_inputs(ids)
    assert_close(f_hat, records["gen.f_hat"], atol=1e-4, rtol=1e-4)
    image = model.decode_ids(ids)
    assert_close(sub_sampled(image, records["gen.image"]), records["gen.image"], **IMAGES)


def test_the_original_sampler(golden):
    """With the original's stream: one generator for the whole batch, torch.multinomial."""
    case, model = golden
    if not case.has("sampled."):
        pytest.skip(f"{case.name} has no sampled records")
    settings = case.config["info"]["sampled"]
    stream = torch.Generator().manual_seed(settings["g_seed"])

    def choose(logits, scale):
        filtered = filter_logits(logits, settings["top_k"], settings["top_p"])
        wanted = case.records[f"sampled.logits.{scale}.filtered"]
        assert torch.equal(filtered.isinf(), wanted.isinf())
        bound = LOGITS["atol"] * (1 + 2 * settings["cfg"])
        assert_close(filtered, wanted, atol=bound, rtol=1e-4)
        rows = filtered.softmax(-1).view(-1, filtered.shape[-1])  # [n t, V]
        drawn = torch.multinomial(rows, 1, replacement=True, generator=stream)
        return drawn.view(logits.shape[:2])

    ids = model.sample_ids(case.records["gen.labels"], cfg=settings["cfg"], choose=choose)
    assert torch.equal(ids, case.scales("sampled.ids"))


def test_filters(golden):
    case, _ = golden
    names = [key for key in case.records if key.startswith("filter.k")]
    if not names:
        pytest.skip(f"{case.name} has no filter records")
    for name in names:
        top_k, top_p = name.removeprefix("filter.k").removesuffix(".filtered").split("_p")
        filtered = filter_logits(case.records["filter.logits"], int(top_k), float(top_p))
        assert torch.equal(filtered, case.records[name]), name


def test_stepwise_generation_equals_teacher_forcing(golden):
    """The cache and the modulations kept over the scales change nothing but rounding."""
    case, model = golden
    ids, seen = case.scales("gen.ids"), []
    labels = case.records["gen.labels"]
    parts = model.tokenizer.quantize.split(ids)
    model.sample_ids(labels, cfg=0.0, choose=forced(seen, parts))
    assert_close(torch.cat(seen, 1), model.replay(ids, labels), **LOGITS)


def test_tokenizer(golden):
    case, model = golden
    if not case.has("vq."):
        pytest.skip(f"{case.name} has no tokenizer records")
    records, tokenizer = case.records, model.tokenizer
    image = records["vq.image_in"]
    repeat = tokenizer.config.image_size // image.shape[-1]
    image = image.repeat_interleave(repeat, -1).repeat_interleave(repeat, -2)
    with torch.inference_mode():
        f = tokenizer.latents(image)
        ids = tokenizer.encode(image)
        f_hat, inputs = tokenizer.quantize.latents_and_inputs(ids)
        out = tokenizer.decode(ids)
    assert_close(f, records["vq.f"], atol=1e-4, rtol=1e-4)
    assert torch.equal(ids, case.scales("vq.ids"))
    assert_close(f_hat, records["vq.f_hat"], atol=1e-4, rtol=1e-4)
    assert_close(inputs, records["vq.var_input"], atol=1e-4, rtol=1e-4)
    assert_close(sub_sampled(out, records["vq.image_out"]), records["vq.image_out"], **IMAGES)
