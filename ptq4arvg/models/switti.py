"""Switti, text to image by next-scale prediction (Voronov et al. 2024).

Not a family of the quantization paper. VAR's scales and tokenizer with text: cross-attention to the
states of the text encoders, a modulation by their pooled output. A position attends to its own
scale only (the non-causal model), so there is no cache of earlier scales. Names in the state dict
are those of the published files, except that ``gate_proj`` and ``up_proj`` are one linear ``w13``
here and ``down_proj`` is ``w2``.

The text encoders are no part of this package: a prompt is a row of a table of their outputs
(``set_prompts``), a label is the number of a prompt, and the last row is the empty prompt, which
stands for none. Prompts are inputs, not weights: no file holds them.
Shapes: B rows, T positions (all scales), C width, H heads, d = C / H, P prompts of L text tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import AttentionCore, Cursor
from ..sampling import Choose, Sampler, guide
from .base import ARVGModel, LinearSpec, SamplingDefaults
from .family import Family, PublishedFiles
from .layers import (
    GatedFeedForward,
    ModulatedNorm,
    absorb_constant_,
    divide_rows_,
    fold_modulation_,
    rotate,
)
from .vqvae import VQVAE, VQVAEConfig

__all__ = ["FAMILY", "Switti", "SwittiConfig", "SwittiModel"]

# Row blocks of an AdaLN linear: gate1, gate2, scale1, scale2, shift1, shift2; of the head's: scale,
# shift. Role of the modulated linear -> (its scale, its shift).
MODULATION_ROWS = {"qkv": (2, 4), "fc1": (3, 5), "head": (0, 1)}
FFN_NAMES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class SwittiConfig:
    """Sizes of the transformer, by default 64 channels per head as published.

    text_tokens, text_width: of the encoders' states side by side; pooled_width: of the pooled
    output. rope_size: positions are spread over 0..rope_size at every scale. image_size: told to
    the model as the size that pictures had before cropping. guided_scales: how many scales are
    guided; the last ones need no guidance. stand_in_prompts: random prompts that a new model has,
    to be tried without a text encoder.
    """

    depth: int
    num_heads: int
    embed_dim: int
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
    vocab_size: int = 4096
    z_channels: int = 32
    text_tokens: int = 77
    text_width: int = 2048
    pooled_width: int = 1280
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_size: float = 128.0
    image_size: int = 512
    guided_scales: int = 8
    stand_in_prompts: int = 0
    sampling: SamplingDefaults = field(default_factory=lambda: SamplingDefaults(6.0, 400, 0.95))

    def __post_init__(self) -> None:
        if self.embed_dim % (4 * self.num_heads) or self.embed_dim % 8:
            raise ValueError(
                f"SwittiConfig: embed_dim is {self.embed_dim} for {self.num_heads} heads; wanted a "
                "multiple of 8 and of 4 per head, for rotations by row and column"
            )

    @property
    def tokens(self) -> int:
        """Positions of all scales together."""
        return sum(p * p for p in self.patch_nums)

    @property
    def hidden(self) -> int:
        """Width between the linears of the gated feed-forward."""
        return int(self.embed_dim * 8 / 3)


def _normalized(x: Tensor) -> Tensor:
    """Layer norm over all heads together, without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class SelfAttention(nn.Module):
    """Attention within a scale; q and k normalized, then rotated by row and column."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        c, self.heads = config.embed_dim, config.num_heads
        self.to_qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.core = AttentionCore()

    def forward(self, x: Tensor, rotation: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, t, C], rotation [t, 1, 1, d / 2], mask [t, t] or None -> [B, t, C]."""
        b, t, c = x.shape
        q, k, v = self.to_qkv(x).view(b, t, 3, c).unbind(2)
        both = torch.stack([_normalized(q), _normalized(k)], 2).unflatten(-1, (self.heads, -1))
        q, k = rotate(both, rotation).transpose(1, 3).unbind(2)  # each [B, H, t, d]
        v = v.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = self.core(q * (c // self.heads) ** -0.5, k, v, mask)
        return self.proj(mixed.transpose(1, 2).reshape(b, t, c))


class CrossAttention(nn.Module):
    """Attention to the text."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        c, self.heads = config.embed_dim, config.num_heads
        self.to_q, self.to_kv = nn.Linear(c, c), nn.Linear(config.text_width, 2 * c)
        self.proj, self.core = nn.Linear(c, c), AttentionCore()

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, t, C] -> [B, H, t, d]

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [B, H, L, d] of the normalized text [B, L, D]."""
        k, v = self.to_kv(context).chunk(2, -1)
        return self._split(_normalized(k)), self._split(v)

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """x [B, t, C], text as ``read``, mask bool [B, 1, 1, L] -> [B, t, C]."""
        q = self._split(_normalized(self.to_q(x)))
        mixed = self.core(q * q.shape[-1] ** -0.5, *text, mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each between two RMS norms."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        c, eps = config.embed_dim, config.norm_eps
        self.attn, self.cross_attn = SelfAttention(config), CrossAttention(config)
        self.ffn = GatedFeedForward(c, config.hidden, FFN_NAMES)
        for part in ("self_attention", "cross_attention", "ffn"):
            for number in (1, 2):
                norm = ModulatedNorm(c, eps, affine=True, rms=True)
                self.add_module(f"{part}_norm{number}", norm)
        self.attention_y_norm = ModulatedNorm(config.text_width, eps, affine=True, rms=True)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c, 6 * c))
        self.crop_cond_scales = nn.Parameter(torch.zeros(1, c))

    def modulation(self, pooled: Tensor, crop: Tensor) -> tuple[Tensor, ...]:
        """(gate1, gate2, scale1, scale2, shift1, shift2), each [B, 1, C]; pooled, crop [B, C]."""
        six = self.ada_lin(pooled + self.crop_cond_scales * crop)
        return six.view(len(pooled), 1, 6, -1).unbind(2)  # [B, 6 C] -> 6 x [B, 1, C]

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """What the cross-attention keeps of the text [B, L, D]."""
        return self.cross_attn.read(self.attention_y_norm(context))

    def forward(
        self,
        x: Tensor,
        modulation: tuple[Tensor, ...],
        text: tuple[Tensor, Tensor],
        text_mask: Tensor,
        rotation: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x [B, t, C]; text, text_mask: as ``CrossAttention`` takes them -> [B, t, C]."""
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation
        mixed = self.attn(self.self_attention_norm1(x, scale1, shift1), rotation, mask)
        x = x + self.self_attention_norm2(mixed) * gate1
        mixed = self.cross_attn(self.cross_attention_norm1(x), text, text_mask)
        x = x + self.cross_attention_norm2(mixed)
        return x + self.ffn_norm2(self.ffn(self.ffn_norm1(x, scale2, shift2))) * gate2


class HeadNorm(nn.Module):
    """The modulated norm before the head."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        c = config.embed_dim
        self.norm = ModulatedNorm(c, config.norm_eps)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c, 2 * c))

    def modulation(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """(scale, shift), each [B, 1, C], of pooled text [B, C]."""
        return self.ada_lin(pooled).view(len(pooled), 1, 2, -1).unbind(2)


class CropEmbedding(nn.Module):
    """Sines and cosines of four sizes in pixels, at frequencies drawn before training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width // 8))

    def forward(self, sizes: Tensor) -> Tensor:
        """Sizes [4] -> [1, C]."""
        angles = sizes[:, None] * self.weight * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], 1).reshape(1, -1)


class Switti(nn.Module):
    """The transformer: prompts and the inputs of all scales to logits."""

    recomputed = r"(^|\.)(lvl_1L|attn_bias_for_masking)$"
    joined: ClassVar = {
        "w13.weight": ("gate_proj.weight", "up_proj.weight"), "w2.weight": ("down_proj.weight",),
    }  # fmt: skip

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        self.config, self.cursor, self.text_cursor = config, Cursor(), Cursor()
        c = config.embed_dim
        self.word_embed = nn.Linear(config.z_channels, c)
        self.text_pooler = nn.Linear(config.pooled_width, c)
        self.pos_start = nn.Parameter(torch.zeros(1, config.patch_nums[0] ** 2, c))
        self.lvl_embed = nn.Embedding(len(config.patch_nums), c)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.crop_embed, self.crop_proj = CropEmbedding(c), nn.Linear(c, c)
        self.head_nm, self.head = HeadNorm(config), nn.Linear(c, config.vocab_size)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Make the scale of every position [T], and the stand-in prompts, anew."""
        c, like = self.config, self.word_embed.weight
        sides = enumerate(c.patch_nums)
        level = torch.cat([torch.full((p * p,), i) for i, p in sides])
        self.register_buffer("level", level, persistent=False)
        count, length = c.stand_in_prompts + 1, c.text_tokens
        if like.is_meta:
            return
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(count, length, c.text_width, generator=generator)
        pooled = torch.randn(count, c.pooled_width, generator=generator)
        words = torch.randint(2, length + 1, (count, 1), generator=generator)
        self.set_prompts(states, pooled, torch.arange(length) < words)

    def set_prompts(self, states: Tensor, pooled: Tensor, mask: Tensor) -> None:
        """The table of prompts, the empty one last; see ``SwittiModel.set_prompts``."""
        like = self.word_embed.weight
        self.register_buffer("prompt_states", states.to(like), persistent=False)
        self.register_buffer("prompt_pooled", pooled.to(like), persistent=False)
        self.register_buffer("prompt_mask", mask.bool().to(like.device), persistent=False)

    def rotations(self) -> Tensor:
        """Unit complex numbers [T, 1, 1, d / 2]: half of the pairs turn by the column, half by the
        row, at every scale from 0 to ``rope_size``."""
        c, device = self.config, self.word_embed.weight.device
        d = c.embed_dim // c.num_heads
        frequency = c.rope_theta ** (-torch.arange(0, d, 4, device=device).float() / d)  # [d / 4]
        parts = []
        for p in c.patch_nums:
            place = torch.arange(p, device=device).float() * (c.rope_size / max(p - 1, 1))
            row, column = torch.cartesian_prod(place, place).unbind(1)  # each [p p]
            turns = torch.cat([column[:, None] * frequency, row[:, None] * frequency], 1)
            parts.append(torch.polar(torch.ones_like(turns), turns))
        return torch.cat(parts)[:, None, None]

    def condition(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(pooled [B, C], crop [B, C], text [B, L, D], mask [B, 1, 1, L]) of prompts [B]."""
        size = float(self.config.image_size)
        sizes = self.pos_start.new_tensor([size, size, 0.0, 0.0])  # original size, top left corner
        crop = self.crop_proj(self.crop_embed(sizes)).expand(len(labels), -1)
        pooled = self.text_pooler(self.prompt_pooled[labels])
        return pooled, crop, self.prompt_states[labels], self.prompt_mask[labels][:, None, None]

    def read_prompts(self, labels: Tensor) -> tuple[Any, ...]:
        """(per block (modulation, text), the head's modulation, pooled [B, C], mask): what stays
        the same at all scales."""
        pooled, crop, context, mask = self.condition(labels)
        self.text_cursor.set(0, context.shape[1])
        parts = [(block.modulation(pooled, crop), block.read(context)) for block in self.blocks]
        return parts, self.head_nm.modulation(pooled), pooled, mask

    def forward(self, labels: Tensor, inputs: Tensor) -> Tensor:
        """Teacher forcing: prompts [B], inputs of all scales but the first [B, T - t0, z] ->
        logits [B, T, V]."""
        parts, head, pooled, text_mask = self.read_prompts(labels)
        x = torch.cat([pooled[:, None] + self.pos_start, self.word_embed(inputs)], 1)
        x = x + self.lvl_embed(self.level)
        self.cursor.set(0, self.config.tokens)
        own_scale = self.level[:, None] == self.level
        rotation = self.rotations()
        for block, (modulation, text) in zip(self.blocks, parts, strict=True):
            x = block(x, modulation, text, text_mask, rotation, own_scale)
        return self.head(self.head_nm.norm(x, *head))


class SwittiModel(ARVGModel):
    """Switti with its tokenizer. Labels are numbers of prompts."""

    family = "switti"
    kept_in_float: ClassVar = {
        r"word_embed": "it reads the 32 channels of a token, once per scale",
        r"text_pooler|crop_proj": "it runs once per image",
    }

    @property
    def num_classes(self) -> int:
        """Number of prompts; ``null_label`` stands for the empty one."""
        return len(self.transformer.prompt_states) - 1

    @property
    def null_label(self) -> int:
        return self.num_classes

    @property
    def cursors(self) -> tuple[Cursor, ...]:
        return self.cursor, self.transformer.text_cursor

    def cursor_of(self, name: str) -> Cursor:
        return self.transformer.text_cursor if name.endswith("to_kv") else self.cursor

    def set_prompts(self, states: Tensor, pooled: Tensor, mask: Tensor) -> None:
        """Take prompts as the text encoders leave them: states [P + 1, L, D], pooled outputs
        [P + 1, E], and which tokens are no padding [P + 1, L]; the empty prompt last.

        ValueError for other shapes than the model's. Calibrate with the prompts of the use.
        """
        c, count = self.config, len(states)
        wanted = {"states": (count, c.text_tokens, c.text_width), "pooled": (count, c.pooled_width),
                  "mask": (count, c.text_tokens)}  # fmt: skip
        for part, value in (("states", states), ("pooled", pooled), ("mask", mask)):
            if tuple(value.shape) != wanted[part]:
                raise ValueError(
                    f"{self.name}: set_prompts: {part} are {list(value.shape)}; wanted "
                    f"{list(wanted[part])}, the empty prompt last"
                )
        if not mask.bool().any(1).all():
            raise ValueError(
                f"{self.name}: set_prompts: a prompt has no token; wanted at least one"
            )
        self.transformer.set_prompts(states, pooled, mask)

    def block_names(self) -> list[str]:
        return [f"blocks.{i}" for i in range(self.config.depth)]

    def attention_cores(self) -> list[str]:
        """None: the simulation of quantized products knows keys of earlier positions only."""
        return []

    def linears(self) -> list[LinearSpec]:
        """Per block: the AdaLN linear, those of the text, self-attention, cross-attention and the
        feed-forward; then the head's two."""
        c = self.config
        step = tuple(i for i, p in enumerate(c.patch_nums) for _ in range(p * p))
        first_and_rest = (0,) + (1,) * (c.tokens - 1)
        of_step, of_rest = (step, step, (0,)), (first_and_rest, step, (0,))
        # The first token of a text is the encoders' own mark.
        text = (0,) + (1,) * (c.text_tokens - 1)
        no_axis = {"groups": (0,), "scale_groups": (0,), "no_fold": "its input is SiLU(text)"}
        specs = []
        for i, block in enumerate(self.block_names()):
            ada, attn, cross = f"{block}.ada_lin.1", f"{block}.attn", f"{block}.cross_attn"
            norm = {part: f"{block}.{part}_norm1" for part in ("self_attention", "ffn")}
            crossing, of_text = f"{block}.cross_attention_norm1", f"{block}.attention_y_norm"
            specs += [
                LinearSpec(ada, "ada_lin", i, **no_axis),
                LinearSpec(f"{cross}.to_kv", "cross_kv", i, text, text, (0,), of_text,
                           norm=of_text),
                LinearSpec(f"{attn}.to_qkv", "qkv", i, *of_step, ada, norm=norm["self_attention"]),
                LinearSpec(f"{attn}.proj", "proj", i, *of_rest, f"{attn}.to_qkv"),
                LinearSpec(f"{cross}.to_q", "cross_q", i, *of_step, crossing, norm=crossing),
                LinearSpec(f"{cross}.proj", "proj", i, *of_rest, f"{cross}.to_kv"),
                LinearSpec(f"{block}.ffn.w13", "fc1", i, *of_step, ada, norm=norm["ffn"]),
                LinearSpec(f"{block}.ffn.w2", "fc2", i, *of_rest, f"{block}.ffn.w13",
                           shift=False),
            ]  # fmt: skip
        specs.append(LinearSpec("head_nm.ada_lin.1", "head_ada_lin", c.depth, **no_axis))
        specs.append(LinearSpec("head", "head", c.depth, (0,) * c.tokens, step, (0,),
                                "head_nm.ada_lin.1", norm="head_nm.norm"))  # fmt: skip
        return specs

    @torch.no_grad()
    def fold_(self, name: str, scale: Tensor, shift: Tensor) -> None:
        spec = self._foldable(name)
        scale, shift = scale.double(), shift.double()
        into = self.transformer.get_submodule(spec.fold)
        if spec.role == "proj":
            # Attention is linear in v, the last rows, and each softmax row sums to one.
            end = into.out_features
            divide_rows_(into, slice(end - len(scale), end), scale, shift)
        elif spec.role == "fc2":
            # The gated product is linear in the output of w3, but a shift of it is none of w3's.
            if shift.any():
                raise ValueError(f"{self.name}: the input of {name!r} takes a scale, but no shift")
            divide_rows_(into, slice(len(scale), 2 * len(scale)), scale, None)
        elif spec.role in MODULATION_ROWS:
            norm = self.transformer.get_submodule(spec.norm)
            of_scale, of_shift = (self._rows(row) for row in MODULATION_ROWS[spec.role])
            fold_modulation_(norm, into, of_scale, of_shift, scale, shift)
        else:
            into.fold_(scale, shift)

    def absorb_constant_(self, name: str) -> None:
        spec = {spec.name: spec for spec in self.linears()}[name]
        if spec.role in MODULATION_ROWS:
            norm, linear = map(self.transformer.get_submodule, (spec.norm, spec.fold))
            absorb_constant_(norm, linear, self._rows(MODULATION_ROWS[spec.role][0]))

    def _rows(self, block: int) -> slice:
        """The rows of the block-th vector that an AdaLN linear makes."""
        return slice(block * self.config.embed_dim, (block + 1) * self.config.embed_dim)

    def replay(self, ids: Tensor, labels: Tensor) -> Tensor:
        _, inputs = self.tokenizer.quantize.latents_and_inputs(ids.long())
        return self.transformer(labels.to(inputs.device).long(), inputs)

    @torch.inference_mode()
    def sample_ids(
        self,
        labels: Tensor,
        seed: int = 0,
        cfg: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        first_index: int = 0,
        choose: Choose | None = None,
    ) -> Tensor:
        """Token ids int64 [n, T] of one image per prompt [n], scale after scale.

        choose: (logits [n, t, V], scale) -> ids [n, t]; by default a ``Sampler``.
        """
        c, defaults = self.config, self.config.sampling
        cfg = defaults.cfg if cfg is None else cfg
        choose = choose or Sampler(
            len(labels), seed, defaults.top_k if top_k is None else top_k,
            defaults.top_p if top_p is None else top_p, first_index,
        )  # fmt: skip
        net, quantizer, n = self.transformer, self.tokenizer.quantize, len(labels)
        labels = self.check_labels(labels).to(net.pos_start.device)
        both = torch.cat([labels, torch.full_like(labels, self.null_label)])
        parts, head, pooled, mask = net.read_prompts(both)
        levels, rotations = net.lvl_embed(net.level), net.rotations()
        f_hat, begin, ids = quantizer.empty(n), 0, []
        x = pooled[:, None] + net.pos_start + levels[: c.patch_nums[0] ** 2]
        for scale, side in enumerate(c.patch_nums):
            end = begin + side * side
            rows = 2 * n if scale < c.guided_scales else n  # unconditional rows come last
            net.cursor.set(begin, side * side)
            x = x[:rows]
            for block, (modulation, text) in zip(net.blocks, parts, strict=True):
                modulation, text = ([t[:rows] for t in pair] for pair in (modulation, text))
                x = block(x, modulation, text, mask[:rows], rotations[begin:end])
            logits = net.head(net.head_nm.norm(x, *(part[:rows] for part in head)))
            if rows > n:
                strength = cfg * scale / max(len(c.patch_nums) - 1, 1)
                logits = guide(logits[:n], logits[n:], strength)
            ids.append(choose(logits, scale))
            f_hat, following = quantizer.step(scale, f_hat, ids[-1])
            begin = end
            if following is not None:
                x = net.word_embed(following) + levels[begin : begin + following.shape[1]]
                x = torch.cat([x, x])  # conditional and unconditional rows read the same tokens
        return torch.cat(ids, 1)

    def decode_ids(self, ids: Tensor) -> Tensor:
        return self.tokenizer.decode(ids.long()).add(1).mul(0.5)


_SIDES = SwittiConfig.patch_nums
_SIZES = {
    "switti": (
        {"depth": 30, "num_heads": 30, "embed_dim": 1920, "patch_nums": _SIDES},
        {"patch_nums": _SIDES},
    )
}

FAMILY = Family(
    "switti", SwittiConfig, VQVAEConfig, Switti, VQVAE, SwittiModel, _SIZES,
    {
        "switti": PublishedFiles(
            "model.safetensors", "model.safetensors of VQVAE-Switti",
            "the Hugging Face repositories yresearch/Switti and yresearch/VQVAE-Switti",
            "see the repository",
        )
    },
)  # fmt: skip
