"""PAR and LlamaGen modules of the original repositories: our blocks under their signatures."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..models.layers import ModulatedNorm
from ..models.par import FAMILY, PAR, Block, PARConfig, PARModel
from ..models.vq16 import VQ16, VQ16Config
from ..nn import Cursor
from .sharing import count, published_sampling, share, tokenizer_state

__all__ = ["NAME", "AdoptedBlock", "AdoptedNorm", "adopt", "recognises"]

NAME = "PAR"
_MARKS = {
    "cls_embedding.embedding_table.weight", "tok_embeddings.weight", "output.weight",
    "layers.0.attention.wqkv.weight", "layers.0.feed_forward.w1.weight",
}  # fmt: skip


def recognises(names: set[str]) -> bool:
    """Whether a state dict with these names is that of a PAR or a class-conditional LlamaGen."""
    return names >= _MARKS


class _Attention(nn.Module):
    """What the original's code looks for in ``layer.attention``: where it puts the cache.

    Apart from our attention, because a cache is no part of the model's state.
    """

    def __init__(self, attention: nn.Module, kv_cache: nn.Module | None) -> None:
        super().__init__()
        self._inner = (attention,)  # a tuple, so that it is a submodule of the block only
        self.kv_cache = kv_cache

    @property
    def wqkv(self) -> nn.Module:
        """The linear of queries, keys and values."""
        return self._inner[0].wqkv

    @property
    def wo(self) -> nn.Module:
        """The linear of the output."""
        return self._inner[0].wo


class AdoptedBlock(nn.Module):
    """Our block with the original's signature, its cache being ``attention.kv_cache``.

    leads: whether this is the first block. It alone reads the positions, which are the same for
    all blocks of a call: reading them from a GPU waits for it.
    """

    def __init__(
        self, block: Block, cursor: Cursor, positions: int, leads: bool, kv_cache: nn.Module | None
    ) -> None:
        super().__init__()
        self.block, self.cursor, self.positions, self.leads = block, cursor, positions, leads
        self.attention = _Attention(block.attention, kv_cache)
        self.codes: tuple[Tensor, Tensor] | None = None  # instead of kv_cache's floats

    def _cache(self, images: int) -> tuple[Tensor, Tensor]:
        """Of so many images: the original's, or codes of its size where attention is in
        integers."""
        kept, core = self.attention.kv_cache, self.block.attention.core
        if not core.integer:
            return kept.k_cache[:images], kept.v_cache[:images]
        shapes = core.cache_shapes(*kept.k_cache.shape)
        held = None if self.codes is None else (self.codes[0].shape, self.codes[0].device)
        if held != (shapes[0], kept.k_cache.device):
            self.codes = tuple(
                kept.k_cache.new_empty(shape, dtype=core.cache_dtype) for shape in shapes
            )
        k, v = self.codes
        return k[:images], v[:images]

    @property
    def feed_forward(self) -> nn.Module:
        """The gated layer."""
        return self.block.feed_forward

    def forward(
        self, x: Tensor, freqs_cis: Tensor, start_pos: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """x [B, t, C] at the consecutive positions start_pos [t] (None: from the first on),
        freqs_cis [t, d / 2, 2] or [1, t, d / 2, 2], mask broadcastable to [B, H, t, all positions]
        (None: causal) -> [B, t, C]."""
        inner, cache, rows = self.block.attention, self.attention.kv_cache, x.shape[1]
        if self.leads:
            self.cursor.set(0 if start_pos is None else int(start_pos[0]), rows)
        end = self.cursor.begin + rows
        # A sequence in float may go on past the image, as the original's loss makes it.
        if end > self.positions and not isinstance(inner.wqkv, nn.Linear):
            raise ValueError(
                f"adopt: {end} positions, but making an image reads {self.positions}: leave out "
                "its last tokens, which predict nothing"
            )
        if mask is not None:
            mask = mask[..., :end]  # a cache is longer than what it holds
        elif rows > 1:
            ones = torch.ones(rows, end, dtype=torch.bool, device=x.device)
            mask = ones.tril(self.cursor.begin)
        rotation = torch.view_as_complex(freqs_cis.float().reshape(rows, 1, 1, -1, 2))
        if cache is not None:
            inner.cache = self._cache(len(x))
        try:
            return self.block(x, rotation, mask)
        finally:
            inner.cache = None  # the model's own methods open theirs


class AdoptedNorm(nn.Module):
    """Our norm before the output; never codes, as the original's code may use it for anything."""

    def __init__(self, inner: ModulatedNorm) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """x [B, t, C] -> [B, t, C]."""
        return self.inner.compute(x)


class AdoptedPAR(PARModel):
    """A PAR whose transformer runs inside a module of the original repository."""

    def __init__(self, config: PARConfig, transformer: PAR, tokenizer: VQ16, host: nn.Module):
        super().__init__("par-original", config, transformer, tokenizer)
        self.architecture = {"family": "par", "transformer": config, "tokenizer": tokenizer.config}
        self._host = (host,)  # a tuple, so that it is not a submodule

    def replace_(self, name: str, module: nn.Module) -> None:
        """As for any model; the output is the host's too, the rest it reaches through the
        blocks."""
        super().replace_(name, module)
        if name == "output":
            self._host[0].output = module


def _config(module: nn.Module, state: dict[str, Tensor]) -> PARConfig:
    """The sizes, read off the weights; what no weight tells, off the module.

    ValueError if the tokens made one by one and the special tokens do not go together.
    """
    special = state.get("spe_tok_embeddings.special_embeddings.weight", ())
    alone = getattr(module, "ar_token_num", 1)
    if alone != len(special) + 1:
        raise ValueError(
            f"adopt: this PAR has ar_token_num {alone} and {len(special)} special tokens; wanted "
            "one special token less than ar_token_num"
        )
    vocab, width = state["output.weight"].shape
    sizes: dict[str, Any] = {
        "depth": count(state, "layers."), "num_heads": module.layers[0].attention.n_head,
        "embed_dim": width, "hidden": state["layers.0.feed_forward.w1.weight"].shape[0],
        "num_classes": state["cls_embedding.embedding_table.weight"].shape[0] - 1,
        "grid": math.isqrt(module.block_size), "parallel": alone, "vocab_size": vocab,
        "norm_eps": module.norm.eps, "rope_base": module.config.rope_base,
    }  # fmt: skip
    return PARConfig(**sizes, **published_sampling(FAMILY, sizes))


def _tokenizer_config(tokenizer: nn.Module, state: dict[str, Tensor], grid: int) -> VQ16Config:
    """The tokenizer's sizes, likewise."""
    vocab, code_dim = state["quantize.embedding.weight"].shape
    ch, levels = state["encoder.conv_in.weight"].shape[0], count(state, "encoder.conv_blocks.")
    blocks = [f"encoder.conv_blocks.{i}.res." for i in range(levels)]
    widths = [state[f"{block}0.conv2.weight"].shape[0] for block in blocks]
    return VQ16Config(
        vocab_size=vocab, code_dim=code_dim, z_channels=state["quant_conv.weight"].shape[1], ch=ch,
        ch_mult=tuple(w // ch for w in widths), num_res_blocks=count(state, blocks[0]), grid=grid,
        l2_norm=bool(getattr(tokenizer.quantize, "l2_norm", True)),
    )  # fmt: skip


def adopt(module: nn.Module, tokenizer: nn.Module | None) -> PARModel:
    """See ``originals.adopt``. The original keeps the tokenizer apart; w1 and w3, which become one
    linear, are copied."""
    vq = tokenizer_state(tokenizer, NAME, "VQ-16", "encoder.conv_blocks.0.res.0.conv2.weight")
    config = _config(module, module.state_dict())
    transformer = share(PAR, config, module, NAME)
    ours = share(VQ16, _tokenizer_config(tokenizer, vq, config.grid), tokenizer, "VQ-16")
    cursor, device = transformer.cursor, module.tok_embeddings.weight.device
    cursor.position = torch.zeros(1, dtype=torch.int32, device=device)
    model = AdoptedPAR(config, transformer, ours, module)
    caches = [layer.attention.kv_cache for layer in module.layers]
    module.layers = nn.ModuleList(
        AdoptedBlock(block, cursor, model.positions, i == 0, cache)
        for i, (block, cache) in enumerate(zip(transformer.layers, caches, strict=True))
    )
    module.norm, module.output = AdoptedNorm(transformer.norm), transformer.output
    return model.eval()
