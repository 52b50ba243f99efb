"""PAR, parallelized autoregressive visual generation (Wang et al. 2024), and the class-conditional
GPT of LlamaGen (Sun et al. 2024), which is the same transformer with one token at a time.

Names in the state dict are those of the published checkpoints, except that ``w1`` and ``w3``, which
read the same input, are one linear ``w13`` here. Token ids are in raster order wherever they leave
the transformer; ``par_order`` says how they are generated.
Shapes: B rows, t positions of one call, N positions of an image, C width, H heads, d = C / H.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..nn import AttentionCore, Cursor, Prologue
from ..sampling import Choose, guide
from .base import ARVGModel, LinearSpec, SamplingDefaults
from .decoding import anywhere, decoding
from .family import Family, PublishedFiles
from .layers import (
    GatedFeedForward,
    ModulatedNorm,
    add_gated,
    divide_rows_,
    head_size,
)
from .par_order import ParallelOrder
from .vq16 import VQ16, VQ16Config

__all__ = ["FAMILY", "PAR", "PARConfig", "PARModel"]


@dataclass(frozen=True)
class PARConfig:
    """Sizes of the transformer. hidden: width of the gated layer between w1, w3 and w2; grid: side
    of the image in tokens; parallel: tokens generated at once (1: LlamaGen)."""

    depth: int
    num_heads: int
    embed_dim: int
    hidden: int
    num_classes: int = 1000
    grid: int = 24
    parallel: int = 1
    vocab_size: int = 16384
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    sampling: SamplingDefaults = field(default_factory=lambda: SamplingDefaults(1.5, 0, 0.0))
    class_names: tuple[str, ...] = field(default=(), repr=False)

    @property
    def order(self) -> ParallelOrder:
        """In which order the tokens are generated."""
        return ParallelOrder(self.grid, self.parallel)

    @property
    def tokens(self) -> int:
        """Tokens of an image, and positions that generating them takes."""
        return self.order.tokens


class Attention(nn.Module):
    """Attention with rotary embeddings of rows and columns."""

    def __init__(self, config: PARConfig, cursor: Cursor) -> None:
        super().__init__()
        c, self.heads, self.cursor = config.embed_dim, config.num_heads, cursor
        self.size = head_size(c, self.heads)
        self.wqkv, self.wo = nn.Linear(c, 3 * c, bias=False), nn.Linear(c, c, bias=False)
        self.core = AttentionCore()
        self.cache: tuple[Tensor, Tensor] | None = None  # k and v while decoding

    def attend(self, x: Tensor, rotation: Tensor, mask: Tensor | None) -> Tensor:
        """Everything but the projection: x [B, t, C] -> [B, t, C]."""
        b, t, _ = x.shape
        qkv = self.wqkv(x).view(b, t, 3, self.heads, self.size)
        prologue = Prologue(rotation=rotation, q_factor=self.size**-0.5)
        return self.core.attend(qkv, prologue, self.cache, self.cursor, mask)

    def forward(self, x: Tensor, rotation: Tensor, mask: Tensor | None) -> Tensor:
        return self.wo(self.attend(x, rotation, mask))


class Block(nn.Module):
    """Attention and feed-forward, each behind an RMS norm."""

    def __init__(self, config: PARConfig, cursor: Cursor) -> None:
        super().__init__()
        c = config.embed_dim
        self.attention_norm, self.ffn_norm = (
            ModulatedNorm(c, config.norm_eps, affine=True, rms=True) for _ in range(2)
        )
        self.attention = Attention(config, cursor)
        self.feed_forward = GatedFeedForward(c, config.hidden)

    def forward(self, x: Tensor, rotation: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, t, C], rotation [t, 1, 1, d / 2], mask [t, t] or None -> [B, t, C]."""
        if self.attention.cache is not None:
            # Decoding, where nothing looks at a linear's own output.
            attended = self.attention.attend(self.attention_norm(x), rotation, mask)
            x = add_gated(self.attention.wo, attended, x, None)
            hidden = self.feed_forward.hidden(self.ffn_norm(x))
            return add_gated(self.feed_forward.w2, hidden, x, None)
        x = x + self.attention(self.attention_norm(x), rotation, mask)
        return x + self.feed_forward(self.ffn_norm(x))


class PAR(nn.Module):
    """The transformer: labels and tokens in sequence order to logits.

    ``rotation`` is no buffer, because it stays complex64 whatever the type of the weights.
    """

    # Of the published files: follows from the configuration, or left over from decoding.
    recomputed = r"(^|\.)(freqs_cis|causal_mask|group_mask|k_cache|v_cache)$"
    # Our names of what the published files store as several tensors.
    joined: ClassVar = {"w13.weight": ("w1.weight", "w3.weight")}

    def __init__(self, config: PARConfig) -> None:
        super().__init__()
        self.config, self.cursor = config, Cursor()
        c, parallel = config.embed_dim, config.parallel
        self.rotation = config.order.rotation(head_size(c, config.num_heads), config.rope_base)
        self.cls_embedding = nn.ModuleDict(
            {"embedding_table": nn.Embedding(config.num_classes + 1, c)}
        )
        self.tok_embeddings = nn.Embedding(config.vocab_size, c)
        if parallel > 1:
            self.spe_tok_embeddings = nn.ModuleDict(
                {"special_embeddings": nn.Embedding(parallel - 1, c)}
            )
        self.layers = nn.ModuleList(Block(config, self.cursor) for _ in range(config.depth))
        self.norm = ModulatedNorm(c, config.norm_eps, affine=True, rms=True)
        self.output = nn.Linear(c, config.vocab_size, bias=False)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        moved = fn(torch.empty(0, device=self.rotation.device))
        self.rotation = self.rotation.to(moved.device)
        return self

    def mask(self, count: int) -> Tensor:
        """Group-causal mask [count, count]: a position attends to its own step and earlier ones."""
        step = self.config.order.step(count, self.rotation.device)
        return step[:, None] >= step

    def embed_class(self, labels: Tensor) -> Tensor:
        """Input of the first position, [B, 1, C], of labels [B]."""
        return self.cls_embedding["embedding_table"](labels)[:, None]

    def embed_special(self, rows: int) -> Tensor:
        """Inputs of the special tokens, [B, parallel - 1, C]."""
        if self.config.parallel == 1:
            return self.tok_embeddings.weight.new_empty(rows, 0, self.config.embed_dim)
        return self.spe_tok_embeddings["special_embeddings"].weight.expand(rows, -1, -1)

    def logits(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits [B, t, V] of the inputs x [B, t, C] at the cursor's positions."""
        rotation = self.rotation[self.cursor.rows][:, None, None]
        for block in self.layers:
            x = block(x, rotation, mask)
        return self.output(self.norm(x))

    def forward(self, labels: Tensor, ids: Tensor) -> Tensor:
        """Teacher forcing: labels [B] and the first n >= parallel tokens in sequence order, ids
        [B, n] -> logits [B, n + parallel, V], row j those of token j."""
        tokens, first = self.tok_embeddings(ids), self.config.parallel
        special = self.embed_special(len(ids))
        x = [self.embed_class(labels), tokens[:, :first], special, tokens[:, first:]]
        x = torch.cat(x, 1)
        self.cursor.set(0, x.shape[1])
        return self.logits(x, self.mask(x.shape[1]))


class PARModel(ARVGModel):
    """PAR or LlamaGen with its tokenizer.

    Images have the size the model was trained for, 384 pixels for the published ones. Published
    figures (and the paper's) are of images brought to 256 pixels by
    ``F.interpolate(images, size=256, mode="bicubic")`` and clamped to [0, 1] again.
    """

    family = "par"

    def block_names(self) -> list[str]:
        return [f"layers.{i}" for i in range(self.config.depth)]

    def attention_cores(self) -> list[str]:
        return [f"{block}.attention.core" for block in self.block_names()]

    def linears(self) -> list[LinearSpec]:
        """Per block: wqkv, wo, w13, w2; then the output."""
        order = self.config.order
        shared = order.paper_groups(), order.runs(), tuple(range(2 * order.parallel))
        whole = (0,) * order.tokens
        specs = []
        for i, block in enumerate(self.block_names()):
            attention, feed_forward = f"{block}.attention", f"{block}.feed_forward"
            specs += [
                LinearSpec(f"{attention}.wqkv", "qkv", i, *shared, f"{block}.attention_norm",
                           norm=f"{block}.attention_norm"),
                LinearSpec(f"{attention}.wo", "proj", i, *shared, f"{attention}.wqkv",
                           core=f"{attention}.core"),
                LinearSpec(f"{feed_forward}.w13", "fc1", i, *shared, f"{block}.ffn_norm",
                           norm=f"{block}.ffn_norm"),
                LinearSpec(f"{feed_forward}.w2", "fc2", i, *shared, f"{feed_forward}.w13",
                           shift=False, gated=feed_forward),
            ]  # fmt: skip
        specs.append(LinearSpec("output", "head", self.config.depth, whole, *shared[1:], "norm",
                                norm="norm"))  # fmt: skip
        return specs

    @torch.no_grad()
    def fold_(self, name: str, scale: Tensor, shift: Tensor) -> None:
        spec = self._foldable(name, shift)
        scale, shift = scale.double(), shift.double()
        into = self.transformer.get_submodule(spec.fold)
        if spec.role == "proj":
            # Attention is linear in v, which is not rotated, and each softmax row sums to one.
            c = self.config.embed_dim
            divide_rows_(into, slice(2 * c, 3 * c), scale, shift)
        elif spec.role == "fc2":
            # The gated product is linear in the output of w3, but a shift of it is none of w3's.
            hidden = self.config.hidden
            divide_rows_(into, slice(hidden, 2 * hidden), scale, None)
        else:
            into.fold_(scale, shift)

    def absorb_constant_(self, name: str) -> None:
        """Nothing to do: the norms have weights of their own, and ``fold_`` leaves no constant."""

    def replay(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, N, V] under teacher forcing of ids [B, N]; both in raster order."""
        raster = self.config.order.raster(ids.device)
        fed = ids.long()[:, raster[: len(raster) - self.config.parallel]]
        logits = self.transformer(labels.long(), fed)
        return logits[:, raster.argsort().to(logits.device)]

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
        """Token ids int64 [n, N] of one image per label [n], in raster order.

        cfg: guided logits are ``u + cfg (c - u)``; 1 and less is no guidance, which then costs
        nothing. choose: (guided logits [n, t, V], step) -> ids [n, t]; by default a ``Sampler``.
        graphs: replay the steps of as many positions each as one CUDA graph.
        """
        strength = (self.config.sampling.cfg if cfg is None else cfg) - 1
        choose = choose or self._sampler(len(labels), seed, top_k, top_p, index)
        net, order, n = self.transformer, self.config.order, len(labels)
        copies = 2 if strength > 0 else 1
        rows = self._label_rows(labels, copies == 2)
        x, begin, ids = net.embed_class(rows), 0, []
        with decoding(self, len(rows), net.tok_embeddings.weight, graphs) as steps:
            run = anywhere(self, steps)
            for step, count in enumerate(order.steps):
                net.cursor.set(begin, count)
                logits = run(f"{count} at once", net.logits, x)  # [copies n, count, V]
                if copies == 2:
                    logits = guide(logits[:n], logits[n:], strength)
                ids.append(choose(logits, step))
                begin += count
                # Conditional and unconditional rows read the same tokens.
                x = net.tok_embeddings(ids[-1].repeat(copies, 1))
                if step == order.parallel - 1:
                    x = torch.cat([x, net.embed_special(len(rows))], 1)
        ids = torch.cat(ids, 1)
        return ids[:, order.raster(ids.device).argsort()]

    def decode_ids(self, ids: Tensor) -> Tensor:
        return self.tokenizer.images(ids.long())


def _size(
    depth: int, heads: int, width: int, hidden: int, cfg: float, parallel: int = 1
) -> tuple[dict[str, Any], dict[str, Any]]:
    sizes = {"depth": depth, "num_heads": heads, "embed_dim": width, "hidden": hidden}
    return {**sizes, "parallel": parallel, "sampling": {"cfg": cfg, "top_k": 0, "top_p": 0.0}}, {}


_XL, _XXL, _3B = (36, 20, 1280, 3584), (48, 24, 1536, 4096), (24, 32, 3200, 8704)
_LLAMAGEN = "the Hugging Face repository FoundationVision/LlamaGen"
_PAR = "the Hugging Face repository Epiphqny/PAR (the tokenizer: FoundationVision/LlamaGen)"
# Name -> (sizes, the file of the transformer, where it is); guidance as for the published FID.
_PUBLISHED = {
    "par-xl-4x": (_size(*_XL, 1.5, 4), "PAR-XL-4x.pt", _PAR),
    "par-xxl-4x": (_size(*_XXL, 1.435, 4), "PAR-XXL-4x.pt", _PAR),
    "par-3b-4x": (_size(*_3B, 1.345, 4), "PAR-3B-4x.pt", _PAR),
    "par-3b-16x": (_size(*_3B, 1.5, 16), "PAR-3B-16x.pt", _PAR),
    "llamagen-b": (_size(12, 12, 768, 2048, 2.0), "c2i_B_384.pt", _LLAMAGEN),
    "llamagen-l": (_size(24, 16, 1024, 2816, 2.0), "c2i_L_384.pt", _LLAMAGEN),
    "llamagen-xl": (_size(*_XL, 1.75), "c2i_XL_384.pt", _LLAMAGEN),
    "llamagen-xxl": (_size(*_XXL, 1.75), "c2i_XXL_384.pt", _LLAMAGEN),
    "llamagen-3b": (_size(*_3B, 1.65), "c2i_3B_384.pt", _LLAMAGEN),
}

FAMILY = Family(
    "par", PARConfig, VQ16Config, PAR, VQ16, PARModel,
    {name: sizes for name, (sizes, _, _) in _PUBLISHED.items()},
    {
        name: PublishedFiles(weights, "vq_ds16_c2i.pt", where, "MIT")
        for name, (_, weights, where) in _PUBLISHED.items()
    },
)  # fmt: skip
