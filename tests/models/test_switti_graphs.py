"""Captured scales of Switti: where guidance ends, and other prompts."""

import torch

from tests.graph_cases import build

ROWS = 4


def same(model, labels, **options):
    """Whether captured scales make the images that eager ones make."""
    wanted = model.generate(labels, seed=2, graphs=False, **options)
    found = model.generate(labels, seed=2, **options)
    assert model.graphs.eager == "" and [rows for rows, _ in model.graphs.captured] == [ROWS]
    return torch.equal(found, wanted)


def test_where_guidance_ends_decides_the_rows_of_a_step():
    """Also where all rows are as many: two guided images, four that are not."""
    model = build("switti")
    for guided in (2, 1, 3, 2):
        assert same(model, [1, 3], guided_scales=guided)
    assert same(model, [0, 1, 2, 3], cfg=0) and same(model, [1, 3], guided_scales=1)
    (captured,) = model.graphs.captured.values()
    assert captured == {
        "prompts": 6, "scale 0": 6, "scale 1": 4, "scale 1, 2 rows": 2,
        "scale 2": 2, "scale 2, 2 rows": 4,
    }  # fmt: skip


def test_other_prompts_are_captured_anew():
    model = build("switti")
    assert same(model, [1, 3])
    captures = model.graphs.backend.captures
    net, generator = model.transformer, torch.Generator().manual_seed(1)
    shapes = (net.prompts.embeddings.shape, net.prompts.pooled.shape)
    model.set_prompts(*(torch.randn(shape, generator=generator) for shape in shapes))
    assert same(model, [1, 3])
    assert model.graphs.backend.captures == 2 * captures
