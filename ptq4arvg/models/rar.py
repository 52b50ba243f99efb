"""RAR, randomized autoregressive visual generation (Yu et al. 2024): one token per step.

Sequence: [cls][class][image tokens in raster order]; position p >= 1 predicts image token p - 1, so
the last token is never read. Sizes are the configuration's; names in the state dict are those of
the published checkpoints. Shapes: B rows, L image tokens, T = L + 1 positions, C width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import AttentionCore, Cursor, Prologue
from ..sampling import Choose, guide
from .base import ARVGModel, LinearSpec, SamplingDefaults
from .decoding import anywhere, decoding
from .family import Family, PublishedFiles
from .layers import (
    FeedForward,
    ModulatedNorm,
    absorb_constant_,
    add_gated,
    divide_rows_,
    fold_modulation_,
    head_size,
)
from .maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from .modulation import ModulationTable, checksum
from .vq16 import VQ16, VQ16Config

__all__ = ["FAMILY", "RAR", "RARConfig", "RARModel"]

# Row blocks of a block's AdaLN linear: shift1, scale1, gate1, shift2, scale2, gate2; of the head's:
# scale, shift. Role of the modulated linear -> (its scale, its shift).
MODULATION_ROWS = {"qkv": (1, 0), "fc1": (4, 3), "head": (0, 1)}
# What modulations kept from batch to batch may take: nine classes of rar-b in float32.
MODULATION_BYTES = 1 << 30


@dataclass(frozen=True)
class RARConfig:
    """Sizes of the transformer, and its published sampling.

    tokens: image tokens L. sampling.cfg: guidance scale at the end of the sequence, reached along
    a cosine whose argument is the progress to the power ``guidance_power``. temperature: divides
    the guided logits. spare_positions: by how many rows the tables of positions and of AdaLN are
    longer than the sequence (as published).
    """

    depth: int
    embed_dim: int
    ffn_dim: int
    num_heads: int = 16
    num_classes: int = 1000
    tokens: int = 256
    vocab_size: int = 1024
    norm_eps: float = 1e-6
    sampling: SamplingDefaults = field(default_factory=lambda: SamplingDefaults(16.0, 0, 0.0))
    guidance_power: float = 2.75
    temperature: float = 1.0
    spare_positions: tuple[int, int] = (1024, 100)
    class_names: tuple[str, ...] = field(default=(), repr=False)

    def guidance(self, step: int, cfg: float) -> float:
        """Guidance scale of image token ``step``: from 1 towards ``cfg``."""
        progress = (step / self.tokens) ** self.guidance_power
        return (cfg - 1) * (1 - math.cos(math.pi * progress)) / 2 + 1


class Attention(nn.Module):
    """Causal attention with a norm of its own on q and k."""

    def __init__(self, config: RARConfig, cursor: Cursor) -> None:
        super().__init__()
        c, self.heads, self.cursor = config.embed_dim, config.num_heads, cursor
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.size = head_size(c, self.heads)
        self.q_norm, self.k_norm = (nn.LayerNorm(self.size, config.norm_eps) for _ in range(2))
        self.core = AttentionCore()
        self.cache: tuple[Tensor, Tensor] | None = None  # k and v while decoding

    def attend(self, x: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Everything but the projection: x [B, t, C] -> [B, t, C]."""
        (b, t, _), q, k = x.shape, self.q_norm, self.k_norm
        qkv = self.qkv(x).view(b, t, 3, self.heads, self.size)
        prologue = Prologue(
            "layer", q.eps, q.weight, q.bias, k.weight, k.bias, q_factor=self.size**-0.5
        )
        return self.core.attend(qkv, prologue, self.cache, self.cursor, attn_mask)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return self.proj(self.attend(x, attn_mask))


class Block(nn.Module):
    """Attention and feed-forward, each modulated by class and position (AdaLN)."""

    def __init__(self, config: RARConfig, cursor: Cursor) -> None:
        super().__init__()
        c = config.embed_dim
        self.norm1, self.norm2 = (ModulatedNorm(c, config.norm_eps, affine=True) for _ in range(2))
        self.attn = Attention(config, cursor)
        self.mlp = FeedForward(c, config.ffn_dim, "gelu")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(c, 6 * c))

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        c: Tensor | None = None,
        modulation: Tensor | None = None,
    ) -> Tensor:
        """x, condition c [B, t, C] -> [B, t, C]; modulation [B, t, 6 C]: computed from c already,
        which is then not needed."""
        six = self.adaLN_modulation(c) if modulation is None else modulation
        shift1, scale1, gate1, shift2, scale2, gate2 = six.chunk(6, -1)
        if self.attn.cache is not None:
            # Decoding, where nothing looks at a linear's own output.
            attended = self.attn.attend(self.norm1(x, scale1, shift1), attn_mask)
            x = add_gated(self.attn.proj, attended, x, gate1)
            hidden = self.mlp.hidden(self.norm2(x, scale2, shift2))
            return add_gated(self.mlp.fc2, hidden, x, gate2)
        x = x + self.attn(self.norm1(x, scale1, shift1), attn_mask) * gate1
        return x + self.mlp(self.norm2(x, scale2, shift2)) * gate2


class HeadNorm(nn.Module):
    """The modulated norm before the head."""

    def __init__(self, config: RARConfig) -> None:
        super().__init__()
        c = config.embed_dim
        self.norm_final = ModulatedNorm(c, config.norm_eps)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(c, 2 * c))

    def forward(self, x: Tensor, c: Tensor | None, modulation: Tensor | None = None) -> Tensor:
        """x, condition c [B, t, C] -> [B, t, C]; modulation [B, t, 2 C] in place of c."""
        two = self.adaLN_modulation(c) if modulation is None else modulation
        return self.norm_final(x, *two.chunk(2, -1))


class RAR(nn.Module):
    """The transformer: labels and image tokens to logits."""

    recomputed = r"(^|\.)attn_mask$"  # a buffer that follows from the configuration

    def __init__(self, config: RARConfig) -> None:
        super().__init__()
        self.config, self.cursor = config, Cursor()
        c, tokens = config.embed_dim, config.tokens
        # Rows: image tokens, a mask token (training only), classes, no class.
        rows = config.vocab_size + 1 + config.num_classes + 1
        self.embeddings = nn.Embedding(rows, c)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c))
        spare, spare_steps = config.spare_positions
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + spare, c))
        self.target_aware_pos_embed = nn.Parameter(torch.zeros(1, tokens + spare, c))
        self.timesteps_embeddings = nn.Parameter(torch.zeros(1, tokens + spare_steps, c))
        self.blocks = nn.ModuleList(Block(config, self.cursor) for _ in range(config.depth))
        self.adaln_before_head = HeadNorm(config)
        self.lm_head = nn.Linear(c, config.vocab_size)

    def positions(self, orders: Tensor | None = None) -> Tensor:
        """What is added to the inputs [1 or B, L + 2, C]: where a position is, and which token it
        is to predict. orders [B, L]: a permutation of the image tokens per row."""
        prefix, tokens = 2, self.config.tokens
        image = slice(prefix, prefix + tokens) if orders is None else prefix + orders
        own, target = self.pos_embed[0, image], self.target_aware_pos_embed[0, image]
        own, target = own.view(-1, *own.shape[-2:]), target.view(-1, *own.shape[-2:])
        own = torch.cat([self.pos_embed[:, :prefix].expand(len(own), -1, -1), own], 1)
        none = torch.zeros_like(own[:, :1])
        return own + torch.cat([none, target, none], 1)

    def class_embedding(self, labels: Tensor) -> Tensor:
        """[B, 1, C] of labels [B]."""
        return self.embeddings(self.config.vocab_size + 1 + labels)[:, None]

    def forward(self, ids: Tensor, labels: Tensor, orders: Tensor | None = None) -> Tensor:
        """Teacher forcing: image tokens [B, t] in their order, labels [B] -> logits [B, t + 1, V].

        orders [B, L]: the place of every token in the image, raster order by default.
        """
        embedding, t = self.class_embedding(labels), ids.shape[1] + 2
        first = self.cls_token.expand(len(ids), -1, -1)
        x = torch.cat([first, embedding, self.embeddings(ids)], 1) + self.positions(orders)[:, :t]
        condition = embedding + self.timesteps_embeddings[:, :t]
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        self.cursor.set(0, t)
        for block in self.blocks:
            x = block(x, mask, condition)
        # Nothing reads the head at position 0. There it computes position 1 a second time, so that
        # statistics and scales of its linears know only what is used.
        x, condition = (torch.cat([y[:, 1:2], y[:, 1:]], 1) for y in (x, condition))
        return self.lm_head(self.adaln_before_head(x, condition))[:, 1:]

    def modulations(self, labels: Tensor, begin: int, count: int) -> Tensor:
        """Modulations [D, count, (6 depth + 2) C] of labels [D] at positions from ``begin`` on:
        those of the blocks in order, then the head's."""
        self.cursor.set(begin, count)
        steps = self.timesteps_embeddings[:, begin : begin + count]
        condition = self.class_embedding(labels) + steps  # [D, count, C]
        c, (rows, count, _) = self.config.embed_dim, condition.shape
        out = condition.new_empty(rows, count, (6 * len(self.blocks) + 2) * c)
        for i, part in enumerate((*self.blocks, self.adaln_before_head)):
            made = part.adaLN_modulation(condition)
            out[..., 6 * i * c : 6 * i * c + made.shape[-1]] = made
        return out

    def modulation_sources(self) -> Iterator[Tensor]:
        """Everything that ``modulations`` depends on."""
        yield from (self.embeddings.weight, self.timesteps_embeddings)
        for part in (*self.blocks, self.adaln_before_head):
            yield from part.adaLN_modulation.parameters()
            yield from part.adaLN_modulation.buffers()

    def step(self, x: Tensor, modulations: Tensor) -> Tensor:
        """The cursor's one position with a cache: input x [B, 1, C], modulations [B, M] -> hidden
        [B, 1, C]."""
        # [B, M] -> depth x [B, 1, 6 C]; the head's part is what remains
        own = modulations[:, None].split(6 * self.config.embed_dim, -1)
        for block, modulation in zip(self.blocks, own, strict=False):
            x = block(x, None, modulation=modulation)
        return x

    def next_logits(self, x: Tensor, modulations: Tensor) -> Tensor:
        """The same, and the head: logits [B, 1, V]."""
        last = modulations[:, None, -2 * self.config.embed_dim :]
        return self.lm_head(self.adaln_before_head(self.step(x, modulations), None, last))


class RARModel(ARVGModel):
    """RAR with its tokenizer. modulation_table: AdaLN outputs that stay between batches; its
    ``budget`` in bytes can be changed at any time."""

    family = "rar"

    def __init__(
        self, name: str, config: RARConfig, transformer: RAR, tokenizer: MaskGITVQGAN
    ) -> None:
        super().__init__(name, config, transformer, tokenizer)
        self.modulation_table = ModulationTable(
            transformer.modulations, self.positions, MODULATION_BYTES
        )

    @property
    def positions(self) -> int:
        return self.config.tokens + 1

    def block_names(self) -> list[str]:
        return [f"blocks.{i}" for i in range(self.config.depth)]

    def attention_cores(self) -> list[str]:
        return [f"{block}.attn.core" for block in self.block_names()]

    def linears(self) -> list[LinearSpec]:
        """Per block: its AdaLN linear, qkv, proj, fc1, fc2; then the head's two."""
        c, t = self.config, self.positions
        # A step is one token, too few to gather statistics or to estimate a scale from. So cls,
        # class, and each quarter of the image tokens count as a step; for the head the quarters do.
        quarter = [4 * p // c.tokens for p in range(t - 2)]
        step, head_step = (0, 1, *(2 + q for q in quarter)), (0, 0, *quarter)
        each, ends, sink = tuple(range(t)), (0, 1, *(2,) * (t - 2)), (0, 1)
        why = "its input is SiLU(class + position)"
        specs = []
        for i, block in enumerate(self.block_names()):
            ada = f"{block}.adaLN_modulation.1"
            specs += [
                LinearSpec(ada, "ada_lin", i, each, step, no_fold=why),
                LinearSpec(f"{block}.attn.qkv", "qkv", i, ends, step, sink, ada,
                           norm=f"{block}.norm1"),
                LinearSpec(f"{block}.attn.proj", "proj", i, ends, step, sink, f"{block}.attn.qkv",
                           core=f"{block}.attn.core"),
                LinearSpec(f"{block}.mlp.fc1", "fc1", i, ends, step, sink, ada,
                           norm=f"{block}.norm2", act=f"{block}.mlp.act",
                           consumer=f"{block}.mlp.fc2"),
                LinearSpec(f"{block}.mlp.fc2", "fc2", i, ends, step, sink,
                           no_fold="its input is the output of GELU"),
            ]  # fmt: skip
        ada = "adaln_before_head.adaLN_modulation.1"
        return [
            *specs,
            LinearSpec(ada, "head_ada_lin", c.depth, each, head_step, no_fold=why),
            LinearSpec("lm_head", "head", c.depth, (0,) * t, head_step, sink, ada,
                       norm="adaln_before_head.norm_final"),
        ]  # fmt: skip

    @torch.no_grad()
    def fold_(self, name: str, scale: Tensor, shift: Tensor) -> None:
        spec = self._foldable(name)
        scale, shift = scale.double(), shift.double()
        upstream = self.transformer.get_submodule(spec.fold)
        if spec.role == "proj":
            # Attention is linear in v, and each softmax row sums to one.
            divide_rows_(upstream, self._rows(2), scale, shift)
            return
        of_scale, of_shift = map(self._rows, MODULATION_ROWS[spec.role])
        norm = self.transformer.get_submodule(spec.norm)
        fold_modulation_(norm, upstream, of_scale, of_shift, scale, shift)

    def absorb_constant_(self, name: str) -> None:
        spec = {spec.name: spec for spec in self.linears()}[name]
        if spec.norm:
            norm, linear = map(self.transformer.get_submodule, (spec.norm, spec.fold))
            absorb_constant_(norm, linear, self._rows(MODULATION_ROWS[spec.role][0]))

    def _rows(self, block: int) -> slice:
        """The rows of the block-th vector that a linear with several outputs of width C makes."""
        return slice(block * self.config.embed_dim, (block + 1) * self.config.embed_dim)

    def replay(self, ids: Tensor, labels: Tensor) -> Tensor:
        return self.transformer(ids[:, :-1].long(), labels.long())

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
        """Token ids int64 [n, L] of one image per label [n], token after token.

        cfg: guidance scale at the end of the sequence; 0: none, conditional rows only. choose:
        (guided logits over the temperature [n, 1, V], step) -> ids [n, 1]; a ``Sampler`` by
        default. graphs: replay the step of a token as one CUDA graph.
        """
        c = self.config
        cfg = c.sampling.cfg if cfg is None else cfg
        choose = choose or self._sampler(len(labels), seed, top_k, top_p, index)
        net, n = self.transformer, len(labels)
        rows = self._label_rows(labels, bool(cfg))
        position, ids = net.positions(), []
        inputs = torch.cat([net.cls_token.expand(len(rows), -1, -1), net.class_embedding(rows)], 1)
        width = (6 * c.depth + 2) * c.embed_dim * inputs.element_size()
        with decoding(self, len(rows), net.cls_token, graphs) as steps, self.modulation_table:
            self.modulation_table.open(rows, width, checksum(net.modulation_sources()))
            run = anywhere(self, steps)
            for p in range(self.positions):
                if p < 2:
                    x = inputs[:, p : p + 1]
                else:  # conditional and unconditional rows read the same tokens
                    x = net.embeddings(ids[-1]).repeat(len(rows) // n, 1, 1)
                x, modulations = x + position[:, p : p + 1], self.modulation_table.at(p)  # [B, M]
                net.cursor.set(p, 1)
                if p == 0:
                    run("first", net.step, x, modulations)
                    continue
                logits = run("token", net.next_logits, x, modulations)  # [B, 1, V]
                if cfg:
                    logits = guide(logits[:n], logits[n:], c.guidance(p - 1, cfg) - 1)
                ids.append(choose(logits / c.temperature, p - 1))
        return torch.cat(ids, 1)

    def decode_ids(self, ids: Tensor) -> Tensor:
        return self.tokenizer.images(ids.long())


def _size(
    depth: int, embed_dim: int, ffn_dim: int, cfg: float, power: float, temperature: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    transformer = {
        "depth": depth, "embed_dim": embed_dim, "ffn_dim": ffn_dim,
        "sampling": {"cfg": cfg, "top_k": 0, "top_p": 0.0},
        "guidance_power": power, "temperature": temperature,
    }  # fmt: skip
    return transformer, {}


_SIZES = {
    "rar-b": _size(24, 768, 3072, 16.0, 2.75, 1.0),
    "rar-l": _size(24, 1024, 4096, 15.5, 2.5, 1.02),
    "rar-xl": _size(32, 1280, 5120, 6.9, 1.5, 1.02),
    "rar-xxl": _size(40, 1408, 6144, 8.0, 1.2, 1.02),
}

FAMILY = Family(
    "rar", RARConfig, MaskGITVQGANConfig, RAR, MaskGITVQGAN, RARModel, _SIZES,
    {
        name: PublishedFiles(
            f"{name.replace('-', '_')}.bin", "maskgit-vqgan-imagenet-f16-256.bin",
            "the Hugging Face repositories yucornetto/RAR and fun-research/TiTok", "Apache-2.0",
        )
        for name in _SIZES
    },
    {"vq16": (VQ16Config, VQ16)},
)  # fmt: skip
