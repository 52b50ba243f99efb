"""PAR against records of the original code, over every configuration that is found."""

import functools

import pytest
import torch
from torch.testing import assert_close

from ptq4arvg.sampling import filter_logits
from tests.golden_cases import sub_sampled
from tests.par_cases import IMAGES, LOGITS, ParCase, find_par_cases


@functools.cache
def built(case: ParCase):
    return case.build()


@pytest.fixture(params=find_par_cases(), ids=lambda case: case.name)
def golden(request):
    """(case, its float32 model). Tests must leave the model as it is."""
    return request.param, built(request.param)


def greedy(seen):
    """A choice of the most likely tokens that keeps the logits it was shown."""

    def choose(logits, _step):
        seen.append(logits)
        return logits.argmax(-1)

    return choose


def test_rotary_factors(golden):
    case, model = golden
    factors = torch.view_as_real(model.transformer.rotation)
    assert_close(factors, case.records["freqs_cis"], atol=1e-6, rtol=0)


def test_group_mask(golden):
    case, model = golden
    wanted = case.records["group_mask"].bool()
    assert torch.equal(model.transformer.mask(len(wanted)), wanted)
    cached = case.records["gen.causal_mask"].bool()
    n = model.tokens
    assert torch.equal(model.transformer.mask(n), cached[:n, :n])


def test_positions_of_the_calls(golden):
    case, model = golden
    steps = case.records["gen.step_lengths"]
    assert model.config.order.steps == steps.tolist()
    of_position = torch.arange(len(steps)).repeat_interleave(steps)
    assert torch.equal(model.config.order.step(model.tokens), of_position)


def test_teacher_forcing_logits(golden):
    case, model = golden
    records = case.records
    with torch.inference_mode():
        logits = model.transformer(records["tf.labels"], records["tf.ids"])
    assert_close(logits, records["tf.logits"], **LOGITS)


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
        model.transformer(case.records["tf.labels"], case.records["tf.ids"])
    for handle in handles:
        handle.remove()
    compared = [i for i in states if f"tf.layer{i}_out_sample0" in case.records]
    assert compared
    for i in compared:
        wanted = case.records[f"tf.layer{i}_out_sample0"]
        assert_close(states[i][:1, : wanted.shape[1]], wanted, **LOGITS)


def test_replay_is_in_raster_order(golden):
    case, model = golden
    records, raster = case.records, model.config.order.raster()
    ids = torch.empty_like(records["tf.ids"])
    ids[:, raster] = records["tf.ids"]
    with torch.inference_mode():
        logits = model.replay(ids, records["tf.labels"])
    assert_close(logits[:, raster], records["tf.logits"][:, : model.tokens], **LOGITS)


def test_greedy_generation(golden):
    case, model = golden
    records, seen, drawn = case.records, [], []

    def choose(logits, step):
        drawn.append(greedy(seen)(logits, step))
        return drawn[-1]

    ids = model.sample_ids(records["gen.labels"], cfg=case.config["cfg"], choose=choose)
    assert torch.equal(ids, records["gen.ids_raster"])
    assert torch.equal(torch.cat(drawn, 1), records["gen.ids_sequence_order"])
    # Guidance multiplies the difference of two logits, and with it their rounding.
    bound = LOGITS["atol"] * max(2 * case.config["cfg"] - 1, 1)
    assert_close(torch.cat(seen, 1), records["gen.mixed_logits"], atol=bound, rtol=0)


def test_cached_decoding_equals_teacher_forcing(golden):
    case, model = golden
    ids, labels = case.records["gen.ids_raster"], case.records["gen.labels"]
    raster, seen = model.config.order.raster(), []
    parts = iter(ids[:, raster].split(model.config.order.steps, 1))

    def forced(logits, _step):
        seen.append(logits)
        return next(parts)

    model.sample_ids(labels, cfg=0, choose=forced)
    decoded = torch.cat(seen, 1)
    with torch.inference_mode():
        assert_close(decoded, model.replay(ids, labels)[:, raster], **LOGITS)
    assert_close(decoded, case.records["gen.raw_logits"][: len(ids)], **LOGITS)


def test_filters(golden):
    case, _ = golden
    names = [key for key in case.records if key.startswith("filter.k")]
    if not names:
        pytest.skip(f"{case.name} has no filter records")
    for name in names:
        top_k, top_p = name.removeprefix("filter.k").removesuffix(".filtered").split("_p")
        filtered = filter_logits(case.records["filter.logits"], int(top_k), float(top_p))
        assert torch.equal(filtered, case.records[name]), name


def test_tokenizer(golden):
    case, model = golden
    if "vq.ids" not in case.records:
        pytest.skip(f"{case.name} has no tokenizer records")
    records, tokenizer = case.records, model.tokenizer
    image = records["vq.image_in_half"].repeat_interleave(2, -1).repeat_interleave(2, -2)
    with torch.inference_mode():
        h = tokenizer.latents(image)
        ids = tokenizer.encode(image)
        codes = tokenizer.quantize.decode(ids)
        of_ids = tokenizer.quantize.decode(records["vq.decode_ids"])
        decoded = tokenizer.decode_latents(of_ids)
        images = model.decode_ids(records["vq.decode_ids"])
    assert_close(h, records["vq.h"], atol=1e-4, rtol=1e-4)
    assert torch.equal(ids.flatten(), records["vq.ids"])
    assert_close(codes, records["vq.quant"], atol=1e-5, rtol=0)
    wanted = records["vq.decoded"]
    assert_close(sub_sampled(decoded, wanted), wanted, **IMAGES)
    assert images.shape[-1] == tokenizer.config.image_size
    assert_close(sub_sampled(images, wanted), wanted.clamp(-1, 1) / 2 + 0.5, **IMAGES)
