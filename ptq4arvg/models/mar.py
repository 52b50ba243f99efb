"""MAR, masked autoregressive generation without vector quantization (Li et al. 2024).

Tokens are continuous, come in a random order that is each image's own, and many at a time: an
encoder reads a buffer of class tokens and the tokens that are there, a decoder the whole sequence
with mask tokens in the gaps, and a diffusion head draws the next tokens from the decoder's output.
Shapes: n images, N tokens of each, C channels of a token, S steps of the diffusion head.

Static tables have a row per slot: the buffer's, then the image's. What an image slot holds changes
with the order, so all of them share one grid, as in the paper. The tables of the diffusion head,
which the paper leaves in float, have a row per diffusion step. Its first, noisiest step is the most
sensitive, and declared a sink; where it is too sensitive for integers, a quantized head does
without it (``DiffLoss.begins_in_noise``). Patterns that ignore "diffloss.*" leave the head in
float.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..nn import Cursor
from ..sampling import image_streams, number, whole
from .base import ARVGModel, LinearSpec
from .decoding import decoding
from .family import Family, PublishedFiles
from .klvae import KLVAE, KLVAEConfig
from .layers import absorb_constant_, divide_rows_, fold_modulation_
from .mar_net import MAR, MARConfig

__all__ = ["FAMILY", "ImageNoise", "MARModel", "NoiseSource", "mask_sizes"]

REPLAY_ITERATIONS = 8  # of the mask schedule that a replay visits at most
REPLAY_TOKENS = 4  # that the diffusion head is shown in each
REPLAY_SEED = 0  # of the noise that a replay adds to the tokens
STEP_BINS = 10  # runs of diffusion steps whose input ranges are alike


def mask_sizes(tokens: int, num_iter: int) -> list[int]:
    """How many tokens are masked before each iteration, and after the last: num_iter + 1 numbers.

    The cosine schedule: every iteration predicts at least one token, and the last one the rest.
    ValueError unless num_iter is a whole number with 1 <= num_iter <= tokens.
    """
    num_iter = whole("num_iter", num_iter)
    if not 1 <= num_iter <= tokens:
        raise ValueError(f"num_iter is {num_iter}; wanted 1 to {tokens}, the number of tokens")
    sizes = [tokens]
    for i in range(1, num_iter):
        wanted = math.floor(tokens * math.cos(math.pi / 2 * i / num_iter))
        sizes.append(max(1, min(sizes[-1] - 1, wanted)))
    return [*sizes, 0]


class NoiseSource(Protocol):
    """Where the random order and the noise of a sampling come from."""

    def orders(self, tokens: int) -> Tensor:
        """A permutation of the positions for every image, int64 [n, N]."""

    def draw(self, steps: int, tokens: int, channels: int) -> Tensor:
        """Normal noise of one iteration, float32 [S, n, tokens, C]."""


class ImageNoise:
    """The noise of every image comes from a stream that depends on its seed and index only."""

    def __init__(self, images: int, seed: int, index: int | Tensor = 0) -> None:
        self.streams = image_streams(images, seed, index)

    def orders(self, tokens: int) -> Tensor:
        """See ``NoiseSource``."""
        return torch.stack([torch.randperm(tokens, generator=s) for s in self.streams])

    def draw(self, steps: int, tokens: int, channels: int) -> Tensor:
        """See ``NoiseSource``."""
        shape = steps, tokens, channels
        return torch.stack([torch.randn(shape, generator=s) for s in self.streams], 1)


class MARModel(ARVGModel):
    """MAR with its tokenizer. Its "ids" are continuous tokens float32 [n, N, C]."""

    family = "mar"
    continuous = True
    sampling_options = ("num_iter", "temperature")
    # Linears that stay in float, with the reason.
    kept_in_float: ClassVar = {
        "z_proj": "it reads the few channels of a token",
        "decoder_embed": "one small linear between encoder and decoder, as in the paper",
        "diffloss.net.input_proj": "it reads the few channels of a token",
        "diffloss.net.final_layer.linear": "it makes the few channels of a token",
        "diffloss.net.time_embed.mlp.0": "it runs once for all tokens",
        "diffloss.net.time_embed.mlp.2": "it runs once for all tokens",
    }

    @property
    def cursors(self) -> tuple[Cursor, ...]:
        return self.cursor, self.transformer.diffloss.cursor

    def cursor_of(self, name: str) -> Cursor:
        return self.transformer.diffloss.cursor if name.startswith("diffloss.") else self.cursor

    def visits(self, name: str) -> int:
        return self._visited * (REPLAY_TOKENS if name.startswith("diffloss.") else 1)

    @property
    def _visited(self) -> int:
        """Iterations of the mask schedule that a replay visits."""
        return min(REPLAY_ITERATIONS, self.config.num_iter)

    @property
    def sampling_note(self) -> str:
        head = self.transformer.diffloss
        if not head.begins_in_noise:
            return ""
        return (
            f"The noisiest of the {head.steps} diffusion steps is taken to hold nothing but noise: "
            f"it multiplies errors by {head.schedule.amplification()[-1]:.0f}."
        )

    def block_names(self) -> list[str]:
        c = self.config
        return [
            *(f"encoder_blocks.{i}" for i in range(c.encoder_depth)),
            *(f"decoder_blocks.{i}" for i in range(c.decoder_depth)),
        ]

    def attention_cores(self) -> list[str]:
        """None: as in the paper, the attention products of this family are not quantized."""
        return []

    def integer_cores(self) -> list[str]:
        """Those of all blocks: without a cache, every token attends to all that there are."""
        return [f"{block}.attn.core" for block in self.block_names()]

    def linears(self) -> list[LinearSpec]:
        """Per block: qkv, proj, fc1, fc2; then the diffusion head's."""
        c, specs = self.config, []
        paper = (*range(c.buffer), *(c.buffer,) * c.tokens)
        kind = (0,) * c.buffer + (1,) * c.tokens
        slots = {"groups": paper, "scale_groups": kind, "finest": paper}
        for i, block in enumerate(self.block_names()):
            norm1, norm2 = f"{block}.norm1", f"{block}.norm2"
            specs += [
                LinearSpec(f"{block}.attn.qkv", "qkv", i, **slots, fold=norm1, norm=norm1),
                LinearSpec(f"{block}.attn.proj", "proj", i, **slots, fold=f"{block}.attn.qkv",
                           core=f"{block}.attn.core"),
                LinearSpec(f"{block}.mlp.fc1", "fc1", i, **slots, fold=norm2, norm=norm2,
                           act=f"{block}.mlp.act", consumer=f"{block}.mlp.fc2"),
                LinearSpec(f"{block}.mlp.fc2", "fc2", i, **slots,
                           no_fold="its input is the output of GELU"),
            ]  # fmt: skip
        return specs + self._head_linears(len(self.block_names()))

    def _head_linears(self, blocks: int) -> list[LinearSpec]:
        """The diffusion head's linears, whose positions are the diffusion steps."""
        c, net = self.config, "diffloss.net"
        steps = c.diffusion_steps
        bins = tuple(s * min(STEP_BINS, steps) // steps for s in range(steps))
        # The sampler multiplies an error of the noisiest step's prediction most, of the next by up
        # to 1.5, of all others by less than one.
        each = {"groups": tuple(range(steps)), "scale_groups": bins, "sink": (steps - 1,)}
        silu = {"no_fold": "its input is the output of SiLU"}
        # What the decoder's last norm makes of the image tokens is read by nothing else.
        specs = [LinearSpec(f"{net}.cond_embed", "diff_cond", blocks, (0,), (0,),
                            fold="decoder_norm")]  # fmt: skip
        for i in range(c.diff_depth):
            part, block = f"{net}.res_blocks.{i}", blocks + i
            ada = f"{part}.adaLN_modulation.1"
            specs += [
                LinearSpec(ada, "diff_ada", block, **each, **silu),
                LinearSpec(f"{part}.mlp.0", "diff_fc1", block, **each, fold=ada,
                           norm=f"{part}.in_ln", act=f"{part}.mlp.1", consumer=f"{part}.mlp.2"),
                LinearSpec(f"{part}.mlp.2", "diff_fc2", block, **each, **silu),
            ]  # fmt: skip
        final = f"{net}.final_layer.adaLN_modulation.1"
        return [*specs, LinearSpec(final, "diff_ada", blocks + c.diff_depth, **each, **silu)]

    @torch.no_grad()
    def fold_(self, name: str, scale: Tensor, shift: Tensor) -> None:
        spec = self._foldable(name)
        scale, shift = scale.double(), shift.double()
        into = self.transformer.get_submodule(spec.fold)
        width = len(scale)
        if spec.role == "proj":
            # Attention is linear in v, and each softmax row sums to one.
            divide_rows_(into, slice(2 * width, 3 * width), scale, shift)
        elif spec.role == "diff_fc1":
            norm = self.transformer.get_submodule(spec.norm)
            fold_modulation_(norm, into, slice(width, 2 * width), slice(width), scale, shift)
        else:
            into.fold_(scale, shift)
        if spec.role == "diff_cond":
            added = self.transformer.diffusion_pos_embed_learned
            scaled = nn.Parameter((added.double() / scale).to(added.dtype), requires_grad=False)
            self.transformer.diffusion_pos_embed_learned = scaled

    def absorb_constant_(self, name: str) -> None:
        spec = {spec.name: spec for spec in self.linears()}[name]
        if spec.role == "diff_fc1":
            norm, linear = map(self.transformer.get_submodule, (spec.norm, spec.fold))
            absorb_constant_(norm, linear, slice(norm.dim, 2 * norm.dim))

    def _split_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens [n, N, C], order int64 [n, N]) of what ``replay`` takes."""
        c = self.config
        if rows.ndim != 3 or rows.shape[1] != c.tokens or rows.shape[2] - c.channels not in (0, 1):
            raise ValueError(
                f"{self.name}: tokens {list(rows.shape)}; wanted [rows, {c.tokens}, {c.channels}], "
                "with one more channel if the order is in it"
            )
        like = self.transformer.fake_latent
        tokens = rows[..., : c.channels].to(like)
        if rows.shape[2] > c.channels:
            return tokens, rows[..., -1].argsort(1).to(like.device)
        generator = torch.Generator().manual_seed(REPLAY_SEED)
        order = torch.randperm(c.tokens, generator=generator).to(like.device)
        return tokens, order.expand(len(rows), -1)

    def replay(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Predicted noise [B, I * R * S, C] under teacher forcing of tokens [B, N, C] or rows of
        ``sample_rows`` [B, N, C + 1] with labels [B]; tokens alone take one fixed order.

        I iterations (at most 8), spread evenly over the mask schedule, the first and the last among
        them, are computed. In each the head is shown R = 4 of the tokens that are still masked,
        from the next one to the last, noised to the level of all S diffusion steps with noise that
        the position decides.
        """
        net, c = self.transformer, self.config
        tokens, order = self._split_rows(ids)
        condition = net.condition(labels.to(tokens.device).long())
        generator = torch.Generator().manual_seed(REPLAY_SEED)
        shape = c.tokens, c.diffusion_steps, c.channels
        noise = torch.randn(shape, generator=generator).to(tokens)
        rows, predicted = torch.arange(len(tokens), device=tokens.device), []
        sizes = mask_sizes(c.tokens, c.num_iter)
        for i in range(self._visited):
            masked = sizes[round(i * (c.num_iter - 1) / max(self._visited - 1, 1))]
            visible = order[:, masked:].sort(1).values
            z = net.decode(net.encode(tokens, visible, condition), visible)
            for j in range(REPLAY_TOKENS):
                at = order[:, masked - 1 - j * masked // REPLAY_TOKENS]
                predicted.append(net.diffloss.all_steps(tokens[rows, at], z[rows, at], noise[at]))
        return torch.cat(predicted, 1)

    def sample_ids(self, labels: Tensor, seed: int = 0, **options: Any) -> Tensor:
        """Tokens float32 [n, N, C] of one image per label [n], in raster order.

        Options: cfg (1: no guidance), num_iter, temperature, index, and noise: a
        ``NoiseSource``, by default an ``ImageNoise``. graphs: replay every iteration as two CUDA
        graphs, the transformer's of its own, the diffusion head's shared by all iterations that
        draw as many tokens.
        """
        return self._sample(labels, seed, **options)[0]

    def sample_rows(self, labels: Tensor, seed: int = 0, index: int | Tensor = 0) -> Tensor:
        """Samples float32 [n, N, C + 1]: the tokens, and the place of each in the order."""
        tokens, order = self._sample(labels, seed, index=index)
        return torch.cat([tokens, order.argsort(1)[..., None].to(tokens)], -1)

    @torch.inference_mode()
    def _sample(
        self,
        labels: Tensor,
        seed: int,
        cfg: float | None = None,
        num_iter: int | None = None,
        temperature: float | None = None,
        index: int | Tensor = 0,
        noise: NoiseSource | None = None,
        graphs: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(tokens float32 [n, N, C], order int64 [n, N]); the order's last tokens come first."""
        net, c = self.transformer, self.config
        cfg = c.sampling.cfg if cfg is None else cfg
        temperature = c.temperature if temperature is None else temperature
        if not 0 <= number(temperature) < math.inf:
            raise ValueError(f"{self.name}: temperature is {temperature!r}; wanted 0 or more")
        sizes = mask_sizes(c.tokens, c.num_iter if num_iter is None else num_iter)
        noise = noise or ImageNoise(len(labels), seed, index)
        like, n, guided = net.fake_latent, len(labels), cfg != 1.0
        condition = net.condition(self._label_rows(labels, guided))
        order = noise.orders(c.tokens).to(like.device)
        dtype, copies = torch.promote_types(like.dtype, torch.float32), 1 + guided
        tokens = like.new_zeros(n, c.tokens, c.channels, dtype=dtype)
        every, times = torch.arange(n, device=like.device)[:, None], net.diffloss.times()
        heat, head = tokens.new_full((), temperature, dtype=torch.float64), net.diffloss.sample
        with decoding(self, copies * n, like, graphs) as steps:
            for masked, after in itertools.pairwise(sizes):
                visible = order[:, masked:].sort(1).values
                wanted = order[:, after:masked].sort(1).values  # [n, p]
                there, p = visible.shape[1], wanted.shape[1]
                of_rows = (torch.cat([t] * copies) for t in (tokens.to(like), visible, wanted))
                z = steps.run(f"{p} after {there}", self._conditions, *of_rows, condition)
                drawn = noise.draw(c.diffusion_steps, p, c.channels).to(tokens).flatten(1, 2)
                strength = [heat.new_full((), self._strength(cfg, max(after, 1)))] * guided
                name = f"draw {p}" + ", guided" * guided
                x = steps.run(name, head, z, drawn, times, heat, *strength)
                tokens[every, wanted] = x.unflatten(0, wanted.shape)  # [n p, C] -> [n, p, C]
        return tokens.float(), order

    def _conditions(self, known: Tensor, seen: Tensor, wanted: Tensor, condition: Tensor) -> Tensor:
        """The diffusion head's conditions [B p, D] for the positions wanted [B, p], from tokens
        [B, N, C] of which those at seen [B, v] are known."""
        encoded = self.transformer.encode(known, seen, condition, sampling=True)
        z = self.transformer.decode(encoded, seen, sampling=True)
        every = torch.arange(len(z), device=z.device)[:, None]
        return z[every, wanted].flatten(0, 1)

    def _strength(self, cfg: float, masked: int) -> float:
        """Guidance of the iteration that leaves ``masked`` tokens."""
        if self.config.cfg_schedule == "constant":
            return cfg
        return 1 + (cfg - 1) * (self.tokens - masked) / self.tokens

    def latents(self, tokens: Tensor) -> Tensor:
        """Latents [n, z, h, h] of tokens [n, N, C]."""
        c = self.config
        # [n, N, C] -> [n, grid, grid, z, patch, patch] -> [n, z, grid * patch, grid * patch]
        x = tokens.view(-1, c.grid, c.grid, c.z_channels, c.patch, c.patch)
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def decode_ids(self, ids: Tensor) -> Tensor:
        """Images [n, 3, H, W] in [0, 1] of tokens [n, N, C]."""
        weight = self.tokenizer.post_quant_conv.weight
        return self.tokenizer.decode_scaled(self.latents(ids.to(weight))).add(1).mul(0.5)

    def decode_rows(self, rows: Tensor) -> Tensor:
        return self.decode_ids(rows[..., :-1])  # without the places in the order


def _size(
    width: int, depth: int, heads: int, head: tuple[int, int], cfg: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A published size; head: (width, depth) of the diffusion head."""
    sampling = {"cfg": cfg, "top_k": 0, "top_p": 0.0}
    return {
        "embed_dim": width, "encoder_depth": depth, "decoder_depth": depth, "num_heads": heads,
        "diff_width": head[0], "diff_depth": head[1], "sampling": sampling,
    }, {}  # fmt: skip


_SIZES = {
    "mar-b": _size(768, 12, 12, (1024, 6), 2.9),
    "mar-l": _size(1024, 16, 16, (1280, 8), 3.0),
    "mar-h": _size(1280, 20, 16, (1536, 12), 3.2),
}
_FOLDERS = {"mar-b": "mar_base", "mar-l": "mar_large", "mar-h": "mar_huge"}

FAMILY = Family(
    "mar", MARConfig, KLVAEConfig, MAR, KLVAE, MARModel, _SIZES,
    {
        name: PublishedFiles(
            f"{folder}/checkpoint-last.pth", "kl16.ckpt",
            "the links in the README of github.com/LTH14/mar", "MIT",
        )
        for name, folder in _FOLDERS.items()
    },
)  # fmt: skip
