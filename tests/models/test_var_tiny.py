"""The bundled model against records made with the original code and the same weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import ptq4arvg
from tests.golden_cases import LOGITS

RECORDS = load_file(Path(__file__).parents[1] / "golden/zoo/golden.safetensors")


@pytest.fixture(scope="module")
def model():
    return ptq4arvg.load_model("var-tiny")


def test_logits(model):
    ids, labels = RECORDS["tf.tokens"], RECORDS["tf.labels"]
    assert_close(model.replay(ids, labels), RECORDS["tf.logits"], **LOGITS)
    null = model.replay(ids[:1], torch.tensor([model.null_label]))
    assert_close(null, RECORDS["tf.logits_null_label_sample0"], **LOGITS)


def test_tokenizer(model):
    images = RECORDS["vq.images_u8"].float() / 127.5 - 1
    ids = model.tokenizer.encode(images)
    assert torch.equal(ids, RECORDS["vq.tokens"].long())
    assert_close(model.tokenizer.latents(images), RECORDS["vq.latent"], atol=1e-4, rtol=1e-4)
    recon = model.tokenizer.decode(ids)
    assert_close(recon, RECORDS["vq.recon"], atol=1e-4, rtol=0)


def test_greedy_generation(model):
    choose = lambda logits, _scale: logits.argmax(-1)  # noqa: E731
    ids = model.sample_ids(RECORDS["greedy.labels"], cfg=3.0, choose=choose)
    wanted = torch.cat([RECORDS[f"greedy.tokens_{i}"] for i in range(7)], 1)
    assert torch.equal(ids, wanted.long())
    image = model.decode_ids(ids)
    assert_close(image, RECORDS["greedy.image01"], atol=1e-4, rtol=0)


def test_an_image_depends_on_its_index_only(model):
    labels = torch.tensor([3, 7, 11, 0, 31, 20, 5])
    together = model.sample_ids(labels, seed=9)
    for first, count in ((0, 1), (2, 3), (6, 1)):
        alone = model.sample_ids(labels[first : first + count], seed=9, index=first)
        assert torch.equal(alone, together[first : first + count])
    assert not torch.equal(model.sample_ids(labels, seed=10), together)


def test_batches_do_not_change_the_images(model):
    labels = [3, 7, 11, 0, 31, 20, 5]
    assert_close(
        model.generate(labels, seed=2, batch_size=3), model.generate(labels, seed=2), atol=1e-5,
        rtol=0,
    )  # fmt: skip


def test_images_are_in_range_and_named_classes_exist(model):
    images = model.generate([0, 18], seed=0)
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert model.config.class_names[18] == "clock"


def test_progress_is_reported(model):
    calls = []
    model.generate([1, 2, 3], batch_size=2, progress=lambda *call: calls.append(call))
    assert calls == [("generate", 2, 3), ("generate", 3, 3)]


@pytest.mark.parametrize("label", [-1, 32])
def test_a_label_that_is_no_class(model, label):
    with pytest.raises(ValueError, match=rf"var-tiny: label {label}; wanted 0 to 31"):
        model.generate([0, label])


def test_the_cache_is_gone_after_generation(model):
    model.sample_ids(torch.tensor([1]))
    assert all(block.attn.cache is None for block in model.transformer.blocks)


def test_the_cache_is_gone_after_an_interrupt(model):
    def stop(_logits, _scale):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.sample_ids(torch.tensor([1]), choose=stop)
    assert all(block.attn.cache is None for block in model.transformer.blocks)


def test_a_transformer_in_another_dtype_than_the_tokenizer():
    """As users mix them; what is narrower rounds, and quantizes."""
    model = ptq4arvg.load_model("var-tiny")
    rows = ptq4arvg.calibrate(model, samples=4, keep=2)
    model.transformer.bfloat16()
    assert model.generate([1], seed=0).dtype == torch.float32
    ptq4arvg.quantize_(model, "W8A8", "rtn", rows)
    assert model.replay(rows.ids, rows.labels).dtype == torch.bfloat16


def test_a_quantized_model_takes_the_state_of_another():
    """Of the same recipe, with other rows: its scales, and what follows from them."""
    first, second = (ptq4arvg.load_model("var-tiny") for _ in range(2))
    rows = ptq4arvg.calibrate(first, samples=8, keep=4)
    ptq4arvg.quantize_(first, "W8A8", "rtn", rows)
    second.transformer.blocks[0].attn.scale_mul_1H11.data.mul_(0.9)
    ptq4arvg.quantize_(second, "W8A8", "rtn", ptq4arvg.calibrate(second, 4, 2, seed=9))
    wanted = first.replay(rows.ids, rows.labels)
    assert not torch.equal(second.replay(rows.ids, rows.labels), wanted)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.replay(rows.ids, rows.labels), wanted)
