"""The tokenizer's decoder in integers: observe its convolutions, fit grids, install.

The decoder draws pixels from tokens with convolutions alone, and takes about as long as a quantized
transformer. Pixels have no positions in a sequence, so that every convolution has one static grid.
Weights of fewer than 8 bits are rounded column by column, fitted to patches of the inputs (GPTQ).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .calibration import Calibration
from .memory import release_mapped
from .models.convolutions import decoder_convolutions, replace_convolution_
from .nn import PackedConv2d
from .numerics import (
    LinearQuantization,
    Scheme,
    affine_grid,
    round_to_grid,
    round_weight,
    search_range,
    weight_grid,
    weight_range,
)
from .reference_map import conv_columns
from .rounding import channel_products, compensated_codes

__all__ = ["check_decoder", "quantize_decoder_"]

# Images that are decoded for the ranges: up to so many, of so many pixels together, but the last
# number at least.
IMAGES, PIXELS, LEAST = 64, 2**21, 16

# Patches of a convolution's input that its weight is fitted to: up to so many, so that those of all
# convolutions together have no more than so many numbers.
PATCHES, NUMBERS = 4096, 2**27

# What the range of an input is multiplied by: other images go beyond it, and clipping costs a
# single image far more than finer steps bring to all.
HEADROOM = 1.2

Progress = Callable[[str, int, int], None]


def check_decoder(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions of ``model``'s decoder that can be in integers, by their paths inside
    ``tokenizer``. ValueError if they are already, or compute in float64."""
    convolutions = decoder_convolutions(model.tokenizer)
    for name, conv in convolutions.items():
        if isinstance(conv, PackedConv2d):
            raise ValueError(f"{model.name}: tokenizer.{name} is in integers already")
        if conv.weight.dtype == torch.float64:
            raise ValueError(
                f"{model.name}: its tokenizer is in float64, and integer convolutions take "
                "float32, bfloat16 and float16"
            )
    return convolutions


class _Inputs:
    """What a convolution reads: range, mean and mean square of every channel, and a histogram;
    patches: some of what its weight is multiplied with, [M, k k C], if it is fitted to them."""

    def __init__(self) -> None:
        self.lo = self.hi = self.mean = self.square = self.histogram = None
        self.patches: list[Tensor] = []

    def note_range(self, x: Tensor) -> None:
        lo, hi = x.amin().float().clamp(max=0.0), x.amax().float().clamp(min=0.0)
        self.lo = lo if self.lo is None else torch.minimum(self.lo, lo)
        self.hi = hi if self.hi is None else torch.maximum(self.hi, hi)

    def note_values(self, x: Tensor, bins: int, share: float) -> None:
        x = x.float()
        found = {
            "mean": x.mean((0, 2, 3)) * share,
            "square": x.square().mean((0, 2, 3)) * share,
            "histogram": torch.histc(x, bins, float(self.lo), float(self.hi)),
        }
        for name, value in found.items():
            old = getattr(self, name)
            setattr(self, name, value if old is None else old + value)

    def note_patches(self, x: Tensor, size: int, count: int, generator: torch.Generator) -> None:
        """``count`` patches of size x size pixels, around pixels of x [B, C, H, W] at random."""
        b, _, h, w = x.shape
        at = torch.randint(b * h * w, (count,), generator=generator).to(x.device)
        image, line, pixel = at // (h * w), at // w % h, at % w
        padded, side = F.pad(x, (size // 2,) * 4), range(size)
        parts = [padded[image, :, line + dy, pixel + dx] for dy in side for dx in side]
        self.patches.append(torch.cat(parts, 1))  # k k times [count, C] -> [count, k k C]


@contextmanager
def _watched(convolutions: Mapping[str, nn.Module], note: Callable[[str, Tensor], None]):
    """Within it ``note(name, input)`` is called whenever one of the convolutions runs."""

    def hook(name: str):
        return lambda _module, args: note(name, args[0])

    handles = [conv.register_forward_pre_hook(hook(name)) for name, conv in convolutions.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(model: nn.Module, calibration: Calibration) -> Tensor:
    """Some of the calibration rows, spread evenly over the conditional ones; an image has two rows
    with the same tokens."""
    rows = calibration.ids[calibration.labels != model.null_label]
    rows = rows if len(rows) else calibration.ids
    most = min(IMAGES, max(LEAST, PIXELS // model.tokenizer.config.image_size**2))
    chosen = torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()
    return rows[chosen].to(model.cursor.position.device)


def _quantized(conv: nn.Conv2d, seen: _Inputs, scheme: Scheme) -> LinearQuantization:
    lo, hi = (v[None] for v in (seen.lo, seen.hi))
    lo, hi = search_range(seen.histogram[None], lo, hi, scheme.a_bits)
    input_scale, input_zero = affine_grid(HEADROOM * lo, HEADROOM * hi, scheme.a_bits)
    weight = conv_columns(conv.weight.detach().float())  # [N, k k C]
    pixels = weight.shape[1] // len(seen.mean)
    mean, square = (v.repeat(pixels) for v in (seen.mean, seen.square))  # [k k C]
    mean_given = mean
    bits = scheme.w_bits
    w_scale, w_zero = weight_grid(*weight_range(weight, bits, square), bits)
    if seen.patches:
        patches = torch.cat(seen.patches).float()
        given = round_to_grid(patches, input_scale, input_zero, scheme.a_bits)
        codes = compensated_codes(weight, w_scale, w_zero, bits, channel_products(given))
        mean, mean_given = patches.mean(0), given.mean(0)
    else:
        codes = round_weight(weight, w_scale, w_zero, bits)
    # What rounding adds to the mean of an output comes off with the bias.
    rounded = codes.double() * w_scale.double()[:, None]
    error = rounded @ mean_given.double() - weight.double() @ mean.double()
    bias = torch.zeros_like(error) if conv.bias is None else conv.bias.detach().double()
    group = torch.zeros(1, dtype=torch.int64, device=weight.device)
    return LinearQuantization(
        codes, w_scale, w_zero, (bias - error).float(), input_scale, input_zero, group, bits,
        scheme.a_bits,
    )  # fmt: skip


@torch.no_grad()
def quantize_decoder_(
    model: nn.Module,
    scheme: Scheme,
    calibration: Calibration,
    progress: Progress | None = None,
    fitted: bool = True,
) -> dict[str, float | int | str]:
    """Replace the convolutions of the tokenizer's decoder by ones in integers.

    Ranges, the error that the search for them weighs, and the mean that comes off with the bias are
    those of up to 64 images of the calibration rows, 32 of 256 pixels a side. fitted: weights of
    fewer than 8 bits are rounded so that errors make up for each other over patches of these images
    (at 8 bits that would bring 0.1 dB). Returns what a report says of it: scheme, convolutions,
    images, psnr_db (of these images against those of the float decoder), bytes_before (of the
    weights in half precision) and bytes_after. ValueError as `check_decoder`.
    """
    convolutions = check_decoder(model)
    rows, bins = _rows(model, calibration), 4 * 2**scheme.a_bits
    seen = {name: _Inputs() for name in convolutions}
    done, total = 0, 3 * len(rows) + len(convolutions)

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress("decoder", done, total)

    def decode() -> list[Tensor]:
        images = []
        for row in rows.split(1):
            images.append(model.decode_rows(row).float())
            step()
        return images

    with _watched(convolutions, lambda name, x: seen[name].note_range(x)):
        wanted = decode()
    columns = sum(conv.weight[0].numel() for conv in convolutions.values())
    of_image = -(-min(PATCHES, NUMBERS // columns) // len(rows))
    generator = torch.Generator().manual_seed(0)

    def note(name: str, x: Tensor) -> None:
        seen[name].note_values(x, bins, x.shape[0] / len(rows))
        if fitted and scheme.w_bits < 8:
            size = convolutions[name].kernel_size[0]
            seen[name].note_patches(x, size, of_image, generator)

    with _watched(convolutions, note):
        decode()
    before = after = 0
    for name, conv in convolutions.items():
        q = _quantized(conv, seen.pop(name), scheme)
        packed = PackedConv2d(q, conv.in_channels, conv.weight.dtype)
        replace_convolution_(model.tokenizer, name, packed)
        release_mapped(conv.parameters())
        before += 2 * conv.weight.numel()
        after += packed.weight_bytes()
        step()
    errors = [(a - b).double().square().mean() for a, b in zip(decode(), wanted, strict=True)]
    # Pixels are in [0, 1].
    psnr = -10 * torch.log10(torch.stack(errors).mean().clamp_min(1e-20))
    return {
        "scheme": scheme.name, "convolutions": len(convolutions), "images": len(rows),
        "psnr_db": psnr.item(), "bytes_before": before, "bytes_after": after,
    }  # fmt: skip
