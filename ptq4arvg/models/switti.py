"""Switti, text-to-image generation scale after scale without causality (Voronov et al. 2024).

VAR's scheme and tokenizer, but positions attend to their own scale only, a cross attention reads
the prompt, and norms stand on both sides of every part. There is no text encoder here: a label is
a row of a table of prompts, which ``SwittiModel.set_prompts`` fills with the outputs of two CLIP
text encoders (last hidden states side by side, pooled output of the second).

Sources: architecture and names in the state dict are those of models/{switti,basic_switti,rope}.py
in github.com/yandex-research/switti, sampling settings those of its README; that the published
sizes have 30 blocks and the crop condition follows from the parameters that Hugging Face counts.
Nothing was compared with the original code's tensors, and no published file was opened. Left out:
the causal variants (Switti-AR), smoothing by Gumbel softmax, temperatures, crops.
Shapes: B rows, T positions (all scales), L text positions, C width, H heads, d = C / H.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import AttentionCore, Cursor, rotate
from ..sampling import Choose, guide, whole
from .base import ARVGModel, LinearSpec, SamplingDefaults
from .decoding import stepping
from .family import Family, PublishedFiles
from .layers import (
    ADALN_ROWS,
    GatedFeedForward,
    HeadNorm,
    ModulatedNorm,
    absorb_constant_,
    divide_rows_,
    fold_modulation_,
)
from .prompts import PromptTable
from .vqvae import VQVAE, VQVAEConfig

__all__ = ["FAMILY", "Switti", "SwittiConfig", "SwittiModel"]

# Height and width that an image was resized to, and where it was cropped: always the whole image.
WHOLE_IMAGE = (512.0, 512.0, 0.0, 0.0)


@dataclass(frozen=True)
class SwittiConfig:
    """Sizes of the transformer. num_classes: prompts in the table, besides the empty one (0: there
    is no table yet); rope_size: length of a scale's side for its rotary positions.

    guided_scales: how many scales, from the first on, are guided; the others compute no
    unconditional rows.
    """

    depth: int
    num_heads: int
    embed_dim: int
    num_classes: int = 0
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
    vocab_size: int = 4096
    z_channels: int = 32
    text_tokens: int = 77
    text_dim: int = 768 + 1280
    pooled_dim: int = 1280
    norm_eps: float = 1e-6
    rope_size: float = 128.0
    guided_scales: int = 8
    sampling: SamplingDefaults = field(default_factory=lambda: SamplingDefaults(6.0, 400, 0.95))

    @property
    def tokens(self) -> int:
        """Positions of all scales together."""
        return sum(p * p for p in self.patch_nums)

    def steps(self) -> tuple[int, ...]:
        """The scale of every position."""
        return tuple(i for i, p in enumerate(self.patch_nums) for _ in range(p * p))

    def rotation(self, device: torch.device | str) -> Tensor:
        """Rotary factors of every position, complex64 [T, d / 2].

        The first half turns with the column, the second with the row, in units that make all
        scales equally large.
        """
        dim = self.embed_dim // self.num_heads
        exponent = torch.arange(0, dim, 4, device=device).float() / dim
        parts = []
        for side in self.patch_nums:
            frequency = 10000.0**-exponent * (self.rope_size / max(side - 1, 1))
            at = torch.arange(side * side, device=device)
            place = torch.stack([at % side, at // side], 1)  # [p * p, 2]
            parts.append((place[..., None] * frequency).flatten(1))
        angle = torch.cat(parts)
        return torch.complex(angle.cos(), angle.sin())


class Attention(nn.Module):
    """What both attentions share: q and k are normalized, all heads together."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        self.heads, self.core = config.num_heads, AttentionCore()
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def split(self, x: Tensor, norm: bool = False) -> Tensor:
        """x [..., C] as heads [..., H, d], normalized over C if ``norm``."""
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6) if norm else x
        return x.unflatten(-1, (self.heads, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention and projection: q [B, H, t, d]; k, v [B, H, s, d] -> [B, t, C]."""
        y = self.core(q * q.shape[-1] ** -0.5, k, v, mask)
        return self.proj(y.transpose(1, 2).flatten(2))


class SelfAttention(Attention):
    """Attention among the positions of one scale, with rotary embeddings."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__(config)
        self.to_qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)

    def forward(self, x: Tensor, rotation: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, t, C], rotation [t, d / 2], mask [t, t] or None (one scale) -> [B, t, C]."""
        qkv = self.to_qkv(x).unflatten(-1, (3, -1))  # [B, t, 3, C]
        qk = rotate(self.split(qkv[:, :, :2], norm=True), rotation[:, None, None])
        q, k = qk.transpose(1, 3).unbind(2)  # each [B, H, t, d]
        return self.attend(q, k, self.split(qkv[:, :, 2]).transpose(1, 2), mask)


class CrossAttention(Attention):
    """Attention of the image's positions to the prompt's."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__(config)
        c = config.embed_dim
        self.to_q, self.to_kv = nn.Linear(c, c), nn.Linear(config.text_dim, 2 * c)

    def keys(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [B, H, L, d] of the normalized prompts [B, L, text_dim]."""
        k, v = self.to_kv(text).chunk(2, -1)
        return self.split(k, norm=True).transpose(1, 2), self.split(v).transpose(1, 2)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """x [B, t, C], mask [B, 1, 1, L] (True: a word) -> [B, t, C]."""
        q = self.split(self.to_q(x), norm=True).transpose(1, 2)
        return self.attend(q, k, v, mask)


class Block(nn.Module):
    """Self attention and feed-forward, modulated by the prompt as a whole, around a cross attention
    to its words; every part between two RMS norms."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        c, eps = config.embed_dim, config.norm_eps
        for part in ("self_attention", "cross_attention", "ffn"):
            for name in (f"{part}_norm1", f"{part}_norm2"):
                self.add_module(name, ModulatedNorm(c, eps, affine=True, rms=True))
        self.attention_y_norm = ModulatedNorm(config.text_dim, eps, affine=True, rms=True)
        self.attn, self.cross_attn = SelfAttention(config), CrossAttention(config)
        self.ffn = GatedFeedForward(c, int(c * (8 / 3)), ("gate_proj", "up_proj", "down_proj"))
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c, 6 * c))
        self.crop_cond_scales = nn.Parameter(torch.zeros(1, c))

    def modulation(self, condition: Tensor, crop: Tensor) -> tuple[Tensor, ...]:
        """(gate1, gate2, scale1, scale2, shift1, shift2), each [B, 1, C]."""
        six = self.ada_lin(condition + self.crop_cond_scales * crop)
        return six.view(len(condition), 1, 6, -1).unbind(2)

    def forward(
        self, x: Tensor, modulation: tuple[Tensor, ...], text: tuple[Tensor, ...],
        rotation: Tensor, mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """x [B, t, C]; text: k, v and mask of the prompts; the rest as self attention takes it."""
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation
        attended = self.attn(self.self_attention_norm1(x, scale1, shift1), rotation, mask)
        x = x + self.self_attention_norm2(attended) * gate1
        read = self.cross_attn(self.cross_attention_norm1(x), *text)
        x = x + self.cross_attention_norm2(read)
        return x + self.ffn_norm2(self.ffn(self.ffn_norm1(x, scale2, shift2))) * gate2


class Conditioning(NamedTuple):
    """What the prompts of B rows come to, the same for all scales: embedding [B, C], modulation of
    every block and of the head, (k, v, mask [B, 1, 1, L]) of every block."""

    embedding: Tensor
    modulations: list[tuple[Tensor, ...]]
    text: list[tuple[Tensor, ...]]

    def first(self, rows: int) -> Conditioning:
        """That of the first ``rows`` rows."""
        cut = [[tuple(t[:rows] for t in part) for part in parts]
               for parts in (self.modulations, self.text)]  # fmt: skip
        return Conditioning(self.embedding[:rows], *cut)


class Switti(nn.Module):
    """The transformer: prompts and the inputs of all scales to logits.

    ``cursor`` walks along the image's positions, ``text_cursor`` along the prompt's.
    """

    # Buffers of the published files that follow from the configuration.
    recomputed = r"(^|\.)(lvl_1L|attn_bias_for_masking)$"
    # Our names of what the published files store as several tensors, or call otherwise.
    joined: ClassVar = {
        "w13.weight": ("gate_proj.weight", "up_proj.weight"),
        "w2.weight": ("down_proj.weight",),
    }

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        c = config.embed_dim
        if c % (4 * config.num_heads) or c % 8:
            raise ValueError(
                f"embed_dim is {c} with {config.num_heads} heads; wanted a multiple of 8, and of 4 "
                "channels in every head"
            )
        self.config, self.cursor, self.text_cursor = config, Cursor(), Cursor()
        self.word_embed = nn.Linear(config.z_channels, c)
        self.text_pooler = nn.Linear(config.pooled_dim, c)
        self.pos_start = nn.Parameter(torch.zeros(1, config.patch_nums[0] ** 2, c))
        self.lvl_embed = nn.Embedding(len(config.patch_nums), c)
        self.crop_embed = nn.ParameterDict({"weight": torch.zeros(c // 8)})
        self.crop_proj = nn.Linear(c, c)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(c, config.norm_eps)
        self.head = nn.Linear(c, config.vocab_size)
        self.prompts = PromptTable(
            config.num_classes, config.text_tokens, config.text_dim, config.pooled_dim
        )

    def embed(self, latents: Tensor) -> Tensor:
        """Latents [B, t, z] of a tokenizer in any dtype -> [B, t, C]."""
        return self.word_embed(latents.to(self.word_embed.weight.dtype))

    def condition(self, labels: Tensor) -> Conditioning:
        """Everything that the labels int64 [B] decide, computed once for all scales."""
        words, pooled, mask = self.prompts(labels)
        embedding = self.text_pooler(pooled)
        weight = self.crop_embed["weight"]
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        angle = torch.stack([2 * math.pi * length * wide for length in WHOLE_IMAGE])
        crop = self.crop_proj(torch.cat([angle.sin(), angle.cos()], 1).flatten().to(weight.dtype))
        self.text_cursor.set(0, words.shape[1])
        head = self.head_nm.modulation(embedding)
        modulations = [block.modulation(embedding, crop) for block in self.blocks]
        text = [b.cross_attn.keys(b.attention_y_norm(words)) for b in self.blocks]
        mask = mask[:, None, None]
        return Conditioning(embedding, [*modulations, head], [(*kv, mask) for kv in text])

    def levels(self) -> Tensor:
        """The scale of every position, int64 [T]."""
        return torch.tensor(self.config.steps(), device=self.pos_start.device)

    def prompted(self, labels: Tensor) -> tuple[Conditioning, Tensor]:
        """What all scales read: the labels' conditioning, rotary factors of every position."""
        return self.condition(labels), self.config.rotation(labels.device)

    def logits(
        self, x: Tensor, given: Conditioning, rotation: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Logits [B, t, V] of the inputs x [B, t, C] at the cursor's positions; rotation
        [t, d / 2] is theirs, and without a mask they are of one scale."""
        *modulations, head = given.modulations
        for block, modulation, text in zip(self.blocks, modulations, given.text, strict=True):
            x = block(x, modulation, text, rotation, mask)
        return self.head(self.head_nm(x, head))

    def forward(self, labels: Tensor, inputs: Tensor) -> Tensor:
        """Teacher forcing: labels [B], inputs of all scales but the first [B, T - t0, z] ->
        logits [B, T, V]."""
        (given, rotation), level = self.prompted(labels), self.levels()
        first = given.embedding[:, None] + self.pos_start  # [B, t0, C]
        x = torch.cat([first, self.embed(inputs)], 1) + self.lvl_embed(level)
        self.cursor.set(0, self.config.tokens)
        return self.logits(x, given, rotation, level[:, None] == level)


class SwittiModel(ARVGModel):
    """Switti with its tokenizer and a table of prompts. Label i is prompt i, ``null_label`` the
    last row of the table: the empty prompt."""

    family = "switti"
    sampling_options = ("top_k", "top_p", "guided_scales")
    no_integer_attention = "has positions that attend to those of their own scale only"
    kept_in_float: ClassVar = {
        r"word_embed": "it reads the 32 channels of a token, once per scale",
        r"text_pooler": "it runs once per image, on one vector",
        r"crop_proj": "its input is the same for all images",
    }

    @property
    def num_classes(self) -> int:
        """Number of prompts. ValueError if there are none yet."""
        return self.transformer.prompts.count

    def set_prompts(self, embeddings: Tensor, pooled: Tensor, mask: Tensor | None = None) -> None:
        """Take text-encoder outputs as the prompts that labels stand for, the empty one last.

        embeddings [P, L, text_dim], pooled [P, pooled_dim]; mask [P, L]: which text positions
        there are (None: all). Checkpoints keep them; calibration rows are those of one table.
        """
        net = self.transformer
        net.prompts.set_(embeddings, pooled, mask, net.pos_start)
        sizes = {"num_classes": net.prompts.count}
        self.config = net.config = replace(self.config, **sizes)
        sizes = {**self.architecture["transformer"], **sizes}
        self.architecture = {**self.architecture, "transformer": sizes}

    @property
    def cursors(self) -> tuple[Cursor, ...]:
        return self.cursor, self.transformer.text_cursor

    def cursor_of(self, name: str) -> Cursor:
        return self.transformer.text_cursor if name.endswith(".to_kv") else self.cursor

    def block_names(self) -> list[str]:
        return [f"blocks.{i}" for i in range(self.config.depth)]

    def attention_cores(self) -> list[str]:
        """Those of the self attention; the products with the text stay in float."""
        return [f"{block}.attn.core" for block in self.block_names()]

    def linears(self) -> list[LinearSpec]:
        """Per block: its AdaLN linear, those of self attention, cross attention and feed-forward;
        then the head's two."""
        c = self.config
        step = c.steps()
        # The start token is the same in every prompt, the words after it are not.
        word = (0,) + (1,) * (c.text_tokens - 1)
        text = {"groups": word, "scale_groups": word, "finest": word}
        no_axis = {"groups": (0,), "scale_groups": (0,), "no_fold": "its input is SiLU(prompt)"}
        specs = []
        for i, block in enumerate(self.block_names()):
            ada, attn, cross = f"{block}.ada_lin.1", f"{block}.attn", f"{block}.cross_attn"
            norm, norm_text = f"{block}.cross_attention_norm1", f"{block}.attention_y_norm"
            specs += [
                LinearSpec(ada, "ada_lin", i, **no_axis),
                LinearSpec(f"{cross}.to_kv", "qkv", i, **text, fold=norm_text, norm=norm_text),
                LinearSpec(f"{attn}.to_qkv", "qkv", i, step, step, fold=ada,
                           norm=f"{block}.self_attention_norm1"),
                LinearSpec(f"{attn}.proj", "proj", i, step, step, fold=f"{attn}.to_qkv"),
                LinearSpec(f"{cross}.to_q", "qkv", i, step, step, fold=norm, norm=norm),
                LinearSpec(f"{cross}.proj", "proj", i, step, step, fold=f"{cross}.to_kv"),
                LinearSpec(f"{block}.ffn.w13", "fc1", i, step, step, fold=ada,
                           norm=f"{block}.ffn_norm1"),
                LinearSpec(f"{block}.ffn.w2", "fc2", i, step, step, fold=f"{block}.ffn.w13",
                           shift=False, gated=f"{block}.ffn"),
            ]  # fmt: skip
        head = "head_nm.ada_lin.1"
        return [
            *specs, LinearSpec(head, "head_ada_lin", c.depth, **no_axis),
            LinearSpec("head", "head", c.depth, step, step, fold=head, norm="head_nm.norm"),
        ]  # fmt: skip

    def _modulated(self, spec: LinearSpec) -> tuple[slice, slice]:
        """The rows that make the scale and the shift in front of a linear behind AdaLN."""
        c = self.config.embed_dim
        return tuple(slice(i * c, (i + 1) * c) for i in ADALN_ROWS[spec.role])

    @torch.no_grad()
    def fold_(self, name: str, scale: Tensor, shift: Tensor) -> None:
        spec = self._foldable(name, shift)
        scale, shift = scale.double(), shift.double()
        into = self.transformer.get_submodule(spec.fold)
        if spec.role in ("proj", "fc2"):
            # Attention is linear in v, and each softmax row sums to one; the gated product is
            # linear in its second factor. Both are the last rows.
            rows = slice(len(into.weight) - len(scale), None)
            divide_rows_(into, rows, scale, shift)
        elif spec.fold == spec.norm:
            into.fold_(scale, shift)
        else:
            norm = self.transformer.get_submodule(spec.norm)
            fold_modulation_(norm, into, *self._modulated(spec), scale, shift)

    def absorb_constant_(self, name: str) -> None:
        spec = {spec.name: spec for spec in self.linears()}[name]
        if spec.norm and spec.fold != spec.norm:
            norm, linear = map(self.transformer.get_submodule, (spec.norm, spec.fold))
            absorb_constant_(norm, linear, self._modulated(spec)[0])

    def replay(self, ids: Tensor, labels: Tensor) -> Tensor:
        _, inputs = self.tokenizer.quantize.latents_and_inputs(ids.long())
        return self.transformer(labels.long().to(inputs.device), inputs)

    @torch.inference_mode()
    def sample_ids(
        self,
        labels: Tensor,
        seed: int = 0,
        cfg: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guided_scales: int | None = None,
        index: int | Tensor = 0,
        choose: Choose | None = None,
        graphs: bool = False,
    ) -> Tensor:
        """Token ids int64 [n, T] of one image per label [n], scale after scale.

        guided_scales: as in the configuration. choose: (guided logits [n, t, V], scale) -> ids
        [n, t]; by default a ``Sampler``. graphs: replay every scale as a CUDA graph. ValueError for
        guided scales that are no number of those there are.
        """
        c = self.config
        cfg = c.sampling.cfg if cfg is None else cfg
        guided = whole("guided_scales", c.guided_scales if guided_scales is None else guided_scales)
        if not 0 <= guided <= len(c.patch_nums):
            raise ValueError(
                f"{self.name}: guided_scales is {guided}; wanted 0 to {len(c.patch_nums)}, the "
                "number of scales"
            )
        choose = choose or self._sampler(len(labels), seed, top_k, top_p, index)
        net, quantizer, n = self.transformer, self.tokenizer.quantize, len(labels)
        both = bool(guided and cfg)
        rows = self._label_rows(labels, both)
        with stepping(self, len(rows), net.pos_start, graphs) as steps:
            # The same for all scales, which read it where it is.
            given, rotation = steps.run("prompts", net.prompted, rows)
            level = net.lvl_embed(net.levels())  # [T, C]
            x = given.embedding[:, None] + net.pos_start
            f_hat, begin, ids = quantizer.empty(n), 0, []
            for scale, side in enumerate(c.patch_nums):
                if both and scale == guided:
                    both, x, given = False, x[:n], given.first(n)
                end = begin + side * side
                step = functools.partial(net.logits, given=given, rotation=rotation[begin:end])
                # Another call of as many rows may guide fewer scales of more images.
                name = f"scale {scale}" if len(x) == len(rows) else f"scale {scale}, {len(x)} rows"
                net.cursor.set(begin, side * side)
                logits = steps.run(name, step, x + level[begin:end])
                if both:
                    strength = cfg * scale / max(len(c.patch_nums) - 1, 1)
                    logits = guide(logits[:n], logits[n:], strength)
                ids.append(choose(logits, scale))
                f_hat, following = quantizer.step(scale, f_hat, ids[-1])
                begin = end
                if following is not None:
                    # Conditional and unconditional rows read the same tokens.
                    x = net.embed(following).repeat(1 + both, 1, 1)
        return torch.cat(ids, 1)

    def decode_ids(self, ids: Tensor) -> Tensor:
        return self.tokenizer.decode(ids.long()).add(1).mul(0.5)


_SIDES_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
# Name -> (sides of the scales, guided scales, folder); where guidance ends at 1024 is not known.
_PUBLISHED = {
    "switti-512": (SwittiConfig.patch_nums, SwittiConfig.guided_scales, "Switti"),
    "switti-1024": (_SIDES_1024, len(_SIDES_1024), "Switti-1024"),
}
_WIDTH = {"depth": 30, "num_heads": 30, "embed_dim": 1920}

FAMILY = Family(
    "switti", SwittiConfig, VQVAEConfig, Switti, VQVAE, SwittiModel,
    {
        name: ({**_WIDTH, "patch_nums": sides, "guided_scales": guided}, {"patch_nums": sides})
        for name, (sides, guided, _) in _PUBLISHED.items()
    },
    {
        name: PublishedFiles(
            f"{folder}/model.safetensors", "VQVAE-Switti/model.safetensors",
            "the Hugging Face repositories of yresearch", "none stated",
        )
        for name, (_, _, folder) in _PUBLISHED.items()
    },
)  # fmt: skip
