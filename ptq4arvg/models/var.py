"""VAR, visual autoregressive modelling by next-scale prediction (Tian et al. 2024).

Sizes are the configuration's; names in the state dict are those of the published checkpoints.
Shapes: B rows, T positions (all scales), C width, H heads, d = C / H.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..nn import AttentionCore, Cursor, Prologue
from ..sampling import Choose, guide
from .base import ARVGModel, LinearSpec, SamplingDefaults
from .decoding import decoding
from .family import Family, PublishedFiles
from .layers import (
    ADALN_ROWS,
    FeedForward,
    HeadNorm,
    ModulatedNorm,
    absorb_constant_,
    add_gated,
    divide_rows_,
    fold_modulation_,
    head_size,
    scaled_buffer,
)
from .vqvae import VQVAE, VQVAEConfig

__all__ = ["FAMILY", "VAR", "VARConfig", "VARModel"]


@dataclass(frozen=True)
class VARConfig:
    """Sizes of the transformer. ``embed_dim`` defaults to 64 per head, as published."""

    depth: int
    num_heads: int
    embed_dim: int
    num_classes: int = 1000
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    vocab_size: int = 4096
    z_channels: int = 32
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    shared_aln: bool = False
    attn_l2_norm: bool = True
    sampling: SamplingDefaults = field(default_factory=lambda: SamplingDefaults(1.5, 900, 0.96))
    class_names: tuple[str, ...] = field(default=(), repr=False)

    @property
    def tokens(self) -> int:
        """Positions of all scales together."""
        return sum(p * p for p in self.patch_nums)


class Attention(nn.Module):
    """Attention over all earlier scales; q and k of unit length, q times a learned scale."""

    def __init__(self, config: VARConfig, cursor: Cursor) -> None:
        super().__init__()
        c, self.heads = config.embed_dim, config.num_heads
        self.size = head_size(c, self.heads)
        self.l2_norm, self.cursor = config.attn_l2_norm, cursor
        self.mat_qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        if self.l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4.0)))
        # Of q, once the weights are fixed: two kernels less at every scale.
        self.register_buffer("q_factors", None, persistent=False)
        self.core = AttentionCore()
        self.cache: tuple[Tensor, Tensor] | None = None  # k and v while decoding
        self._register_load_state_dict_pre_hook(self._join_bias)
        self.register_load_state_dict_post_hook(Attention._fix_again)

    def _join_bias(self, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """Published checkpoints hold q_bias and v_bias; k has none."""
        q, v = state.pop(f"{prefix}q_bias", None), state.pop(f"{prefix}v_bias", None)
        state.pop(f"{prefix}zero_k_bias", None)
        if q is not None and v is not None:
            state[f"{prefix}mat_qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Everything but the projection: x [B, t, C] -> [B, t, C]."""
        b, t, _ = x.shape
        qkv = self.mat_qkv(x).view(b, t, 3, self.heads, self.size)
        return self.core.attend(qkv, self._prologue(), self.cache, self.cursor, mask)

    def _prologue(self) -> Prologue:
        if not self.l2_norm:
            return Prologue(q_factor=0.25 / math.sqrt(self.size))
        factors = self._factors() if self.q_factors is None else self.q_factors
        return Prologue("l2", 1e-12, q_factors=factors)

    def _factors(self) -> Tensor:
        """The learned scale of each head's q, [H]."""
        return self.scale_mul_1H11.clamp_max(math.log(100)).exp().flatten()

    def fix_constants_(self, fixed: bool) -> None:
        """Compute what depends on weights alone now, or again at every call."""
        self.q_factors = self._factors().detach() if fixed and self.l2_norm else None

    def _fix_again(self, _keys: object) -> None:
        self.fix_constants_(self.q_factors is not None)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.proj(self.attend(x, mask))


class Block(nn.Module):
    """Attention and feed-forward, each modulated by the class (AdaLN)."""

    def __init__(self, config: VARConfig, cursor: Cursor) -> None:
        super().__init__()
        c = config.embed_dim
        self.norm1, self.norm2 = (ModulatedNorm(c, config.norm_eps) for _ in range(2))
        self.attn = Attention(config, cursor)
        self.ffn = FeedForward(c, round(c * config.mlp_ratio), "gelu_tanh")
        if config.shared_aln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, c))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c, 6 * c))

    def modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """(gate1, gate2, scale1, scale2, shift1, shift2), each [B, 1, C].

        condition: the class embedding [B, C], or the shared modulation [B, 1, 6, C].
        """
        if condition.ndim == 4:
            return (condition + self.ada_gss).unbind(2)
        six = self.ada_lin(condition)
        return six.view(len(condition), 1, 6, -1).unbind(2)  # [B, 6 C] -> 6 x [B, 1, C]

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None,
        mask: Tensor | None = None,
        modulation: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """x [B, t, C]; modulation: precomputed from the condition, which is then not needed."""
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation or self.modulation(condition)
        if self.attn.cache is not None:
            # Decoding, where nothing looks at a linear's own output.
            attended = self.attn.attend(self.norm1(x, scale1, shift1), mask)
            x = add_gated(self.attn.proj, attended, x, gate1)
            hidden = self.ffn.hidden(self.norm2(x, scale2, shift2))
            return add_gated(self.ffn.fc2, hidden, x, gate2)
        x = x + self.attn(self.norm1(x, scale1, shift1), mask) * gate1
        return x + self.ffn(self.norm2(x, scale2, shift2)) * gate2


class VAR(nn.Module):
    """The transformer: labels and the inputs of all scales to logits."""

    # Buffers of the published files that follow from the configuration.
    recomputed = r"(^|\.)(lvl_1L|attn_bias_for_masking|zero_k_bias)$"
    # Our names of what the published files store in parts; k has no bias there.
    joined: ClassVar = {"mat_qkv.bias": ("q_bias", None, "v_bias")}

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config, self.cursor = config, Cursor()
        c, tokens, scales = config.embed_dim, config.tokens, len(config.patch_nums)
        self.word_embed = nn.Linear(config.z_channels, c)
        self.class_emb = nn.Embedding(config.num_classes + 1, c)
        self.pos_start = nn.Parameter(torch.zeros(1, config.patch_nums[0] ** 2, c))
        self.pos_1LC = nn.Parameter(torch.zeros(1, tokens, c))
        self.lvl_embed = nn.Embedding(scales, c)
        if config.shared_aln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c, 6 * c))
        self.blocks = nn.ModuleList(Block(config, self.cursor) for _ in range(config.depth))
        self.head_nm = HeadNorm(c, config.norm_eps)
        self.head = nn.Linear(c, config.vocab_size)
        self.reset_buffers()
        self._register_load_state_dict_pre_hook(self._drop_recomputed)

    def reset_buffers(self) -> None:
        """Make the scale of every position [T] from the configuration."""
        sides = enumerate(self.config.patch_nums)
        level = torch.cat([torch.full((p * p,), i) for i, p in sides])
        self.register_buffer("level", level, persistent=False)

    @staticmethod
    def _drop_recomputed(state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for name in ("lvl_1L", "attn_bias_for_masking"):
            state.pop(f"{prefix}{name}", None)

    @property
    def mask(self) -> Tensor:
        """Block-causal mask [1, 1, T, T]: a position attends to its own scale and earlier ones."""
        return (self.level[:, None] >= self.level[None])[None, None]

    def positions(self) -> Tensor:
        """Position plus scale embeddings [1, T, C]."""
        return self.lvl_embed(self.level)[None] + self.pos_1LC

    def embed(self, latents: Tensor) -> Tensor:
        """Latents [B, t, z] of a tokenizer in any dtype -> [B, t, C]."""
        return self.word_embed(latents.to(self.word_embed.weight.dtype))

    def condition(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(class embedding [B, C], what the blocks are modulated by)."""
        embedding = self.class_emb(labels)
        if not self.config.shared_aln:
            return embedding, embedding
        six = self.shared_ada_lin(embedding)
        return embedding, six.view(len(labels), 1, 6, -1)  # [B, 6 C] -> [B, 1, 6, C]

    def modulations(self, labels: Tensor) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """(class embedding [B, C], the modulation of every block and of the head)."""
        embedding, condition = self.condition(labels)
        blocks = [block.modulation(condition) for block in self.blocks]
        return embedding, [*blocks, self.head_nm.modulation(embedding)]

    def step(self, x: Tensor, modulations: list[tuple[Tensor, ...]]) -> Tensor:
        """One scale with a cache, at the cursor: inputs [B, t, C] -> logits [B, t, V]."""
        *own, last = modulations
        for block, modulation in zip(self.blocks, own, strict=True):
            x = block(x, None, modulation=modulation)
        return self.head(self.head_nm(x, last))

    def forward(self, labels: Tensor, x_BLCv_wo_first_l: Tensor) -> Tensor:
        """Teacher forcing: labels [B], inputs of all scales but the first [B, T - t0, z] ->
        logits [B, T, V]."""
        embedding, condition = self.condition(labels)
        first = embedding[:, None] + self.pos_start  # [B, t0, C]
        x = torch.cat([first, self.embed(x_BLCv_wo_first_l)], 1) + self.positions()
        self.cursor.set(0, self.config.tokens)
        mask = self.mask
        for block in self.blocks:
            x = block(x, condition, mask)
        return self.head(self.head_nm(x, self.head_nm.modulation(embedding)))


class VARModel(ARVGModel):
    """VAR with its tokenizer."""

    family = "var"
    compat_research = True
    kept_in_float: ClassVar = {r"word_embed": "it reads the 32 channels of a token, once per scale"}

    def block_names(self) -> list[str]:
        return [f"blocks.{i}" for i in range(self.config.depth)]

    def attention_cores(self) -> list[str]:
        return [f"{block}.attn.core" for block in self.block_names()]

    def linears(self) -> list[LinearSpec]:
        """Per block: (its AdaLN linear), qkv, proj, fc1, fc2; then the head's two."""
        c = self.config
        step = tuple(i for i, p in enumerate(c.patch_nums) for _ in range(p * p))
        sink = (0,)
        first_and_rest = (0,) + (1,) * (c.tokens - 1)
        whole = (0,) * c.tokens
        no_axis = {"groups": (0,), "scale_groups": (0,), "no_fold": "its input is SiLU(class)"}
        specs = []
        if c.shared_aln:
            specs.append(LinearSpec("shared_ada_lin.1", "ada_lin", 0, **no_axis))
        for i, block in enumerate(self.block_names()):
            if not c.shared_aln:
                specs.append(LinearSpec(f"{block}.ada_lin.1", "ada_lin", i, **no_axis))
            into = f"{block}.norm" if c.shared_aln else f"{block}.ada_lin.1"
            specs += [
                LinearSpec(f"{block}.attn.mat_qkv", "qkv", i, step, step, sink, into,
                           norm=f"{block}.norm1"),
                LinearSpec(f"{block}.attn.proj", "proj", i, first_and_rest, step, sink,
                           f"{block}.attn.mat_qkv", core=f"{block}.attn.core"),
                LinearSpec(f"{block}.ffn.fc1", "fc1", i, step, step, sink, into,
                           norm=f"{block}.norm2", act=f"{block}.ffn.act",
                           consumer=f"{block}.ffn.fc2"),
                LinearSpec(f"{block}.ffn.fc2", "fc2", i, first_and_rest, step, sink,
                           no_fold="its input is the output of GELU"),
            ]  # fmt: skip
        specs.append(LinearSpec("head_nm.ada_lin.1", "head_ada_lin", c.depth, **no_axis))
        specs.append(LinearSpec("head", "head", c.depth, whole, step, sink, "head_nm.ada_lin.1",
                                norm="head_nm.norm"))  # fmt: skip
        return specs

    @torch.no_grad()
    def fold_(self, name: str, scale: Tensor, shift: Tensor) -> None:
        spec = self._foldable(name)
        scale, shift = scale.double(), shift.double()
        if spec.role == "proj":
            # Attention is linear in v, and each softmax row sums to one.
            rows = self._rows(2)
            divide_rows_(self.transformer.get_submodule(spec.fold), rows, scale, shift)
            return
        norm = self.transformer.get_submodule(spec.norm)
        if spec.fold.endswith(".norm"):  # the AdaLN linear is shared by all blocks
            like = self.transformer.pos_start
            norm.post_scale = scaled_buffer(norm.post_scale, scale, like)
            old = 0.0 if norm.post_shift is None else norm.post_shift.double()
            norm.post_shift = (old / scale - shift).to(like.dtype)
            return
        of_scale, of_shift = map(self._rows, ADALN_ROWS[spec.role])
        linear = self.transformer.get_submodule(spec.fold)
        fold_modulation_(norm, linear, of_scale, of_shift, scale, shift)

    def absorb_constant_(self, name: str) -> None:
        spec = {spec.name: spec for spec in self.linears()}[name]
        if spec.norm and not spec.fold.endswith(".norm"):
            norm, linear = map(self.transformer.get_submodule, (spec.norm, spec.fold))
            absorb_constant_(norm, linear, self._rows(ADALN_ROWS[spec.role][0]))

    def _rows(self, block: int) -> slice:
        """The rows of the block-th vector that a linear with several outputs of width C makes."""
        return slice(block * self.config.embed_dim, (block + 1) * self.config.embed_dim)

    def replay(self, ids: Tensor, labels: Tensor) -> Tensor:
        _, inputs = self.tokenizer.quantize.latents_and_inputs(ids.long())
        return self.transformer(labels.long(), inputs)

    @torch.inference_mode()
    def sample_ids(
        self,
        labels: Tensor,
        seed: int = 0,
        cfg: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        index: int | Tensor = 0,
        choose: Choose | None = None,
        graphs: bool = False,
    ) -> Tensor:
        """Token ids int64 [n, T] of one image per label [n], scale after scale.

        choose: (guided logits [n, t, V], scale) -> ids [n, t]; by default a ``Sampler``. graphs:
        replay every scale as a CUDA graph.
        """
        cfg = self.config.sampling.cfg if cfg is None else cfg
        choose = choose or self._sampler(len(labels), seed, top_k, top_p, index)
        net, quantizer = self.transformer, self.tokenizer.quantize
        n = len(labels)
        positions, scales = net.positions(), self.config.patch_nums
        f_hat, begin, ids = quantizer.empty(n), 0, []
        rows = self._label_rows(labels, guided=True)
        with decoding(self, len(rows), net.pos_start, graphs) as steps:
            # The same for all scales, which read it where it is.
            embedding, modulations = steps.run("class", net.modulations, rows)
            step = functools.partial(net.step, modulations=modulations)
            x = embedding[:, None] + net.pos_start + positions[:, : scales[0] ** 2]
            for scale, side in enumerate(scales):
                net.cursor.set(begin, side * side)
                logits = steps.run(f"scale {scale}", step, x)  # [2 n, t, V]
                strength = cfg * scale / max(len(scales) - 1, 1)
                ids.append(choose(guide(logits[:n], logits[n:], strength), scale))
                f_hat, following = quantizer.step(scale, f_hat, ids[-1])
                begin += side * side
                if following is not None:
                    x = net.embed(following) + positions[:, begin : begin + following.shape[1]]
                    x = torch.cat([x, x])  # conditional and unconditional rows read the same tokens
        return torch.cat(ids, 1)

    def decode_ids(self, ids: Tensor) -> Tensor:
        return self.tokenizer.decode(ids.long()).add(1).mul(0.5)


def _size(depth: int, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    sides = more.pop("patch_nums", VARConfig.patch_nums)
    width = {"depth": depth, "num_heads": depth, "embed_dim": 64 * depth}
    return {**width, "patch_nums": sides, **more}, {"patch_nums": sides}


_SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
_SIZES = {f"var-d{depth}": _size(depth) for depth in (16, 20, 24, 30)}
_SIZES["var-d36"] = _size(36, patch_nums=_SIDES_512, shared_aln=True)

FAMILY = Family(
    "var", VARConfig, VQVAEConfig, VAR, VQVAE, VARModel, _SIZES,
    {
        name: PublishedFiles(
            f"{name.replace('-', '_')}.pth", "vae_ch160v4096z32.pth",
            "the Hugging Face repository FoundationVision/var", "MIT",
        )
        for name in _SIZES
    },
)  # fmt: skip
