"""Which convolutions of a tokenizer can be in integers, and what computes them in float."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ptq4arvg
from ptq4arvg.models import build_model
from ptq4arvg.models.convolutions import (
    convolve_normalized,
    convolve_upsampled,
    decoder_convolutions,
    replace_convolution_,
)
from tests.models.tiny import TINY

BUNDLED = ("var-tiny", "rar-tiny", "par-tiny", "mar-tiny")
# The bundled RAR has the tokenizer of LlamaGen; MaskGIT's, as published, is that of "rar".
MODELS = (*BUNDLED, "rar", "switti")


@functools.cache
def model_of(name):
    """Tests must leave it as it is."""
    if name in BUNDLED:
        return ptq4arvg.load_model(name)
    return build_model(f"{name}-test", TINY[name], seed=0)


def rows_of(model, n=2):
    g = torch.Generator().manual_seed(1)
    if model.continuous:
        return torch.randn(n, model.tokens, model.config.channels + 1, generator=g)
    return torch.randint(model.config.vocab_size, (n, model.tokens), generator=g)


def decoded(model, gradients=False):
    with torch.set_grad_enabled(gradients):
        return model.decode_rows(rows_of(model))


@pytest.mark.parametrize("name", MODELS)
def test_they_are_convolutions_of_the_decoder_with_a_norm_or_an_upsampling_before(name):
    tokenizer = model_of(name).tokenizer
    found = decoder_convolutions(tokenizer)
    assert found
    for path, conv in found.items():
        assert path.startswith("decoder.") and tokenizer.get_submodule(path) is conv
        assert type(conv) is nn.Conv2d
        assert conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
    others = [
        (path, conv) for path, conv in tokenizer.decoder.named_modules()
        if isinstance(conv, nn.Conv2d) and f"decoder.{path}" not in found
    ]  # fmt: skip
    assert {"conv_in", "conv_out"} <= {path for path, _ in others}
    # What else stays is of one pixel: shortcuts, and the attention of the lowest resolution.
    assert all(
        conv.kernel_size == (1, 1) for path, conv in others if path not in ("conv_in", "conv_out")
    )


@pytest.mark.parametrize("name", MODELS)
def test_norms_are_those_of_the_originals(name):
    norms = [m for m in model_of(name).tokenizer.modules() if isinstance(m, nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps, norm.affine) for norm in norms} == {(32, 1e-6, True)}


@pytest.mark.parametrize("name", MODELS)
def test_they_do_nearly_all_multiplications_of_the_decoder(name):
    model, counts = model_of(name), {}
    found = {id(conv) for conv in decoder_convolutions(model.tokenizer).values()}

    def note(module, _args, output):
        counts[id(module)] = module.weight[0].numel() * output.numel()

    handles = [
        module.register_forward_hook(note)
        for module in model.tokenizer.modules()
        if isinstance(module, nn.Conv2d)
    ]
    decoded(model)
    for handle in handles:
        handle.remove()
    assert found <= counts.keys()  # all of them run
    share = sum(counts[key] for key in found) / sum(counts.values())
    assert share > 0.9  # measured: 0.926 to 0.972, and attention takes most of what is left


@pytest.mark.parametrize("name", MODELS)
def test_an_integer_convolution_is_still_one_of_them(name):
    tokenizer = copy.deepcopy(model_of(name).tokenizer)
    before = decoder_convolutions(tokenizer)
    state = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    place = list(before)[len(before) // 2]
    other = nn.Identity()
    replace_convolution_(tokenizer, place, other)
    after = decoder_convolutions(tokenizer)
    assert list(after) == list(before)
    assert {path for path in after if after[path] is not before[path]} == {place}
    assert after[place] is other
    left = tokenizer.state_dict()
    assert {key for key in state if key not in left} == {
        key for key in state if key.startswith(f"{place}.")
    }
    assert all(torch.equal(left[key], state[key]) for key in left)


@pytest.mark.parametrize("name", MODELS)
def test_images_are_the_same_with_gradients(name):
    model = copy.deepcopy(model_of(name))
    wanted = decoded(model)
    assert torch.equal(decoded(model, gradients=True), wanted)
    model.tokenizer.requires_grad_(True)
    images = decoded(model, gradients=True)
    assert torch.equal(images, wanted) and images.requires_grad
    images.double().sum().backward()
    for conv in decoder_convolutions(model.tokenizer).values():
        assert conv.weight.grad.isfinite().all() and conv.weight.grad.any()


def parts(seed=0):
    torch.manual_seed(seed)
    norm, conv = nn.GroupNorm(2, 6), nn.Conv2d(6, 4, 3, padding=1)
    nn.init.normal_(norm.weight)
    return norm, conv, torch.randn(2, 6, 5, 4), torch.randn(2, 4, 5, 4)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_a_convolution_after_a_norm(gradients, with_residual):
    norm, conv, x, residual = parts()
    given = residual if with_residual else None
    before = x.clone(), residual.clone()
    with torch.set_grad_enabled(gradients):
        y = convolve_normalized(norm, conv, x, given)
        wanted = conv(F.silu(norm(x)))
        assert torch.equal(y, residual + wanted if with_residual else wanted)
    assert y.requires_grad == gradients
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


def test_a_convolution_after_an_upsampling():
    _, conv, x, _ = parts()
    twice = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(convolve_upsampled(conv, x), conv(twice))
