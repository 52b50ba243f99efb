"""RAR modules of the original repository: our blocks under their names and signatures."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..models.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from ..models.rar import FAMILY, RAR, Block, HeadNorm, RARConfig, RARModel
from ..nn import Cursor
from .sharing import count, published_sampling, share, tokenizer_state

__all__ = ["NAME", "AdoptedBlock", "AdoptedHeadNorm", "adopt", "recognises"]

NAME = "RAR"
_MARKS = {"cls_token", "target_aware_pos_embed", "timesteps_embeddings", "lm_head.weight"}
# The published tables of positions are longer than the sequence of image tokens by this.
_SPARE_POSITIONS = 1024


def recognises(names: set[str]) -> bool:
    """Whether a state dict with these names is that of a RAR."""
    return names >= _MARKS


class AdoptedBlock(nn.Module):
    """Our block with the original's signature, its cache switched by ``attn.kv_cache``.

    ``attn.k_cache`` and ``attn.v_cache``, None or not, are what the original's code looks at to
    know whether a call is the first: [B, H, positions read, d], or, where attention is in integers,
    codes of all positions.
    """

    def __init__(self, block: Block, cursor: Cursor, positions: int) -> None:
        super().__init__()
        self.block, self.cursor, self.positions = block, cursor, positions
        self.store: tuple[Tensor, Tensor] | None = None  # k and v, or codes, of all positions
        block.attn.kv_cache = False
        block.attn.reset_kv_cache = self._reset
        self._reset()

    def _reset(self) -> None:
        self.store = self.attn.k_cache = self.attn.v_cache = None
        self.read = 0  # positions in it

    @property
    def attn(self) -> nn.Module:
        """The attention, for callers that switch its cache."""
        return self.block.attn

    def _open(self, x: Tensor) -> None:
        heads, core = self.attn.heads, self.attn.core
        shapes = core.cache_shapes(len(x), heads, self.positions, x.shape[2] // heads)
        self.store = tuple(x.new_empty(shape, dtype=core.cache_dtype) for shape in shapes)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, c: Tensor | None = None
    ) -> Tensor:
        """x, condition c [B, t, C]: the next t positions with the cache, else all from the first
        on -> [B, t, C]."""
        attention, begin = self.attn, 0
        if attention.kv_cache:
            if attention.k_cache is None:
                self._open(x)
            else:
                begin = self.read
        end = begin + x.shape[1]
        # A sequence in float may go on past the image, as the original's loss makes it.
        known = attention.kv_cache or not isinstance(attention.qkv, nn.Linear)
        if known and end > self.positions:
            raise ValueError(
                f"adopt: {end} positions, but making an image reads {self.positions}: leave out "
                "its last token, and call enable_kv_cache() before each image"
            )
        self.cursor.set(begin, x.shape[1])
        if not attention.kv_cache:
            return self.block(x, attn_mask, c)
        attention.cache = self.store
        try:
            x = self.block(x, attn_mask, c)
        finally:
            attention.cache = None  # the model's own methods open theirs
        self.read, whole = end, attention.core.integer
        attention.k_cache, attention.v_cache = (
            kept if whole else kept[:, :, :end] for kept in self.store
        )
        return x


class AdoptedHeadNorm(nn.Module):
    """Our modulated norm before the head with the original's signature."""

    def __init__(self, inner: HeadNorm, cursor: Cursor) -> None:
        super().__init__()
        self.inner, self.cursor = inner, cursor

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x, condition c [B, t, C] of the last t positions that the blocks read -> [B, t, C].

        Never codes: the original's code may do anything with it before the head.
        """
        end, count = self.cursor.begin + self.cursor.tokens, x.shape[1]
        self.cursor.set(end - count, count)  # without the cache, the first position is left out
        modulation = self.inner.adaLN_modulation(c)
        return self.inner.norm_final.compute(x, *modulation.chunk(2, -1))


class AdoptedRAR(RARModel):
    """A RAR whose transformer runs inside a module of the original repository."""

    def __init__(
        self, config: RARConfig, transformer: RAR, tokenizer: MaskGITVQGAN, host: nn.Module
    ) -> None:
        super().__init__("rar-original", config, transformer, tokenizer)
        self.architecture = {"family": "rar", "transformer": config, "tokenizer": tokenizer.config}
        self._host = (host,)  # a tuple, so that it is not a submodule

    def replace_(self, name: str, module: nn.Module) -> None:
        """As for any model; the head is the host's too, the rest it reaches through the blocks."""
        super().replace_(name, module)
        if name == "lm_head":
            self._host[0].lm_head = module


def _config(module: nn.Module, state: dict[str, Tensor]) -> RARConfig:
    """The sizes, read off the weights; what no weight tells, off the module."""
    vocab, width = state["lm_head.weight"].shape
    sizes: dict[str, Any] = {
        "depth": count(state, "blocks."), "embed_dim": width,
        "ffn_dim": state["blocks.0.mlp.fc1.weight"].shape[0],
        "num_heads": width // state["blocks.0.attn.q_norm.weight"].shape[0],
        "num_classes": state["embeddings.weight"].shape[0] - vocab - 2,
        "tokens": state["pos_embed"].shape[1] - _SPARE_POSITIONS, "vocab_size": vocab,
        "norm_eps": module.blocks[0].norm1.eps,
    }  # fmt: skip
    return RARConfig(**sizes, **published_sampling(FAMILY, sizes))


def _tokenizer_config(state: dict[str, Tensor], tokens: int) -> MaskGITVQGANConfig:
    """The tokenizer's sizes, likewise."""
    vocab, z_channels = state["quantize.embedding.weight"].shape
    ch, levels = state["encoder.conv_in.weight"].shape[0], count(state, "encoder.down.")
    widths = [state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
    return MaskGITVQGANConfig(
        vocab_size=vocab, z_channels=z_channels, ch=ch, ch_mult=tuple(w // ch for w in widths),
        num_res_blocks=count(state, "encoder.down.0.block."), grid=math.isqrt(tokens),
    )  # fmt: skip


def adopt(module: nn.Module, tokenizer: nn.Module | None) -> RARModel:
    """See ``originals.adopt``. The original keeps the tokenizer apart."""
    vq = tokenizer_state(tokenizer, NAME, "MaskGIT-VQGAN", "encoder.down.0.block.0.conv2.weight")
    config = _config(module, module.state_dict())
    transformer = share(RAR, config, module, NAME)
    ours = share(MaskGITVQGAN, _tokenizer_config(vq, config.tokens), tokenizer, "MaskGIT-VQGAN")
    cursor, device = transformer.cursor, module.cls_token.device
    cursor.position = torch.zeros(1, dtype=torch.int32, device=device)
    model = AdoptedRAR(config, transformer, ours, module)
    module.blocks = nn.ModuleList(
        AdoptedBlock(block, cursor, model.positions) for block in transformer.blocks
    )
    module.adaln_before_head = AdoptedHeadNorm(transformer.adaln_before_head, cursor)
    module.lm_head = transformer.lm_head
    return model.eval()
