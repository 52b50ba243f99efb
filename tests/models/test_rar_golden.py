"""RAR against records of the original code, over every configuration that is found."""

import pytest
import torch
from torch.testing import assert_close

from tests.golden_cases import IMAGES, LOGITS, forced, greedy, sub_sampled


def every_nth(logits, like):
    """Logits [B, t, V] at the positions that the record ``like`` keeps."""
    return logits[:, :: -(-logits.shape[1] // like.shape[1])]


def test_teacher_forcing_logits(golden_rar):
    case, model = golden_rar
    records, labels = case.records, case.labels("tf")
    with torch.inference_mode():
        logits = model.transformer(records["tf.ids"], labels)
        replayed = model.replay(records["tf.ids"], labels)
    assert_close(logits, records["tf.logits"], **LOGITS)
    assert_close(replayed, records["tf.logits"][:, :-1], **LOGITS)
    assert (logits - records["tf.logits"]).norm() < 1e-4 * records["tf.logits"].norm()


def test_blocks_under_the_original_signature(golden_rar):
    case, model = golden_rar
    records, states = case.records, {}
    handles = [
        model.transformer.get_submodule(name).register_forward_hook(
            lambda _module, args, output, i=i: states.__setitem__(i, (args, output))
        )
        for i, name in enumerate(model.block_names())
    ]
    with torch.inference_mode():
        model.transformer(records["tf.ids"], case.labels("tf"))
        for handle in handles:
            handle.remove()
        for i, ((x, mask, condition), output) in states.items():
            wanted = records[f"tf.block{i}_out_sample0"]
            assert_close(output[:1, : wanted.shape[1]], wanted, **LOGITS)
            block = model.transformer.blocks[i]
            assert torch.equal(block(x, attn_mask=mask, c=condition), output)


def test_a_prefix(golden_rar):
    case, model = golden_rar
    wanted = case.records["prefix.logits"]
    with torch.inference_mode():
        logits = model.transformer(case.records["tf.ids"][:, : model.tokens // 2],
                                   case.labels("tf"))  # fmt: skip
    assert_close(every_nth(logits, wanted), wanted, **LOGITS)


def test_other_orders_of_the_tokens(golden_rar):
    case, model = golden_rar
    records, wanted = case.records, case.records["rand.logits"]
    with torch.inference_mode():
        logits = model.transformer(
            records["rand.labels"], case.labels("tf"), records["rand.orders"]
        )
    assert_close(every_nth(logits, wanted), wanted, **LOGITS)


def test_greedy_generation(golden_rar):
    case, model = golden_rar
    seen = []
    ids = model.sample_ids(case.records["gen.labels"], choose=greedy(seen))
    assert torch.equal(ids, case.records["gen.ids"])
    # Guidance multiplies the difference of two logits, and with it their rounding.
    bound = LOGITS["atol"] * (1 + 2 * case.config["guidance_scale"])
    assert_close(torch.cat(seen, 1), case.records["gen.logits"], atol=bound, rtol=1e-4)


def test_greedy_generation_without_guidance(golden_rar):
    case, model = golden_rar
    ids = model.sample_ids(case.records["gen.labels"], cfg=0, choose=greedy([]))
    assert torch.equal(ids, case.records["gen_noguidance.ids"])


def test_the_guidance_schedule(golden_rar):
    case, model = golden_rar
    wanted, config = case.records["gen.cfg_scale"], model.config
    scales = [config.guidance(step, config.sampling.cfg) for step in range(config.tokens)]
    assert_close(torch.tensor(scales), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cfg", [0.0, 1.0])
def test_stepwise_generation_equals_teacher_forcing(golden_rar, cfg):
    """The cache and the modulations per distinct label change nothing but rounding."""
    case, model = golden_rar
    ids, labels, seen = case.records["gen.ids"], case.records["gen.labels"], []
    model.sample_ids(labels, cfg=cfg, choose=forced(seen, ids.split(1, 1)))
    # Guidance of scale 1 is the conditional branch alone, computed beside the unconditional one.
    wanted = model.replay(ids, labels) / model.config.temperature
    assert_close(torch.cat(seen, 1), wanted, **LOGITS)


def test_decoding_of_tokens(golden_rar):
    case, model = golden_rar
    records, ids = case.records, case.records["vq.decode_ids"]
    with torch.inference_mode():
        raw, image = model.tokenizer.decode_unclamped(ids), model.decode_ids(ids)
    size = model.tokenizer.config.image_size
    assert image.shape == (len(ids), 3, size, size)
    for found, name in ((raw, "vq.decoded_unclamped"), (image, "vq.decoded")):
        assert_close(sub_sampled(found, records[name]), records[name], **IMAGES)


def test_encoding_of_images(golden_rar):
    case, model = golden_rar
    records, tokenizer = case.records, model.tokenizer
    image = records["vq.image_in"]
    repeat = tokenizer.config.image_size // image.shape[-1]
    image = image.repeat_interleave(repeat, -1).repeat_interleave(repeat, -2)
    with torch.inference_mode():
        z, ids = tokenizer.encoder(image), tokenizer.encode(image)
    assert_close(sub_sampled(z, records["vq.z"]), records["vq.z"], atol=1e-4, rtol=1e-4)
    assert torch.equal(ids, records["vq.ids"])
