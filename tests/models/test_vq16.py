"""The tokenizer of LlamaGen beyond the records."""

import pytest
import torch

from ptq4arvg.models.vq16 import VQ16, VQ16Config

SMALL = {"vocab_size": 24, "code_dim": 4, "z_channels": 8, "ch": 32, "ch_mult": (1, 2),
         "num_res_blocks": 1, "grid": 6}  # fmt: skip


def build(**changes):
    generator = torch.Generator().manual_seed(0)
    tokenizer = VQ16(VQ16Config(**SMALL | changes)).eval().requires_grad_(False)
    for value in tokenizer.parameters():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    return tokenizer


def test_published_sizes():
    with torch.device("meta"):
        tokenizer = VQ16(VQ16Config())
    assert VQ16Config().image_size == 384
    millions = sum(p.numel() for p in tokenizer.parameters()) / 1e6
    assert millions == pytest.approx(72, abs=0.5)  # as the authors give


def test_codes_of_unit_length():
    book = build().quantize
    z = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    ids = book.encode(z)
    cosine = torch.cosine_similarity(
        z.flatten(2).transpose(1, 2)[:, :, None], book.embedding.weight, dim=-1
    )
    assert torch.equal(ids, cosine.argmax(-1))
    assert torch.equal(book.encode(7 * z), ids)
    torch.testing.assert_close(book.decode(ids).norm(dim=1), torch.ones(3, 6, 6))
    assert torch.equal(book.encode(book.decode(ids)), ids)


def test_codes_by_distance():
    book = build(l2_norm=False).quantize
    ids = torch.randint(24, (2, 36), generator=torch.Generator().manual_seed(1))
    assert torch.equal(book.decode(ids)[0, :, 0, 1], book.embedding.weight[ids[0, 1]])
    assert torch.equal(book.encode(book.decode(ids)), ids)


def test_images_there_and_back():
    tokenizer = build()
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ids = tokenizer.encode(images)
    assert ids.shape == (2, 36)
    decoded = tokenizer.decode(ids)
    assert decoded.shape == images.shape and decoded.abs().max() <= 1
    torch.testing.assert_close(decoded[:1], tokenizer.decode(ids[:1]), atol=1e-5, rtol=0)
