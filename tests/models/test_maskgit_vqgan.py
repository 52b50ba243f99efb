"""The tokenizer of RAR beyond the records: its codes, of several images."""

import torch

from ptq4arvg.models.maskgit_vqgan import Codebook, MaskGITVQGANConfig


def test_every_pixel_of_every_image_has_its_nearest_code():
    g = torch.Generator().manual_seed(0)
    book = Codebook(MaskGITVQGANConfig(vocab_size=24, z_channels=5)).requires_grad_(False)
    book.embedding.weight.copy_(torch.randn(24, 5, generator=g))
    z = torch.randn(3, 5, 4, 4, generator=g)
    ids = book.encode(z)
    assert ids.shape == (3, 16) and ids.dtype == torch.int64
    latents = book(ids, 4)
    assert latents.shape == z.shape
    for image in range(3):
        for y in range(4):
            for x in range(4):
                gaps = (book.embedding.weight - z[image, :, y, x]).norm(dim=1)
                assert ids[image, 4 * y + x] == gaps.argmin()
                assert torch.equal(latents[image, :, y, x], book.embedding.weight[gaps.argmin()])
