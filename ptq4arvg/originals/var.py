"""VAR modules of the original repository: our blocks under their names and signatures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..models.layers import HeadNorm
from ..models.var import VAR, Block, VARConfig, VARModel
from ..models.vqvae import VQVAE, VQVAEConfig
from .sharing import share

__all__ = ["NAME", "AdoptedBlock", "AdoptedHeadNorm", "adopt", "recognises"]

NAME = "VAR"
_MARKS = {"pos_start", "pos_1LC", "lvl_embed.weight", "blocks.0.attn.mat_qkv.weight"}


def recognises(names: set[str]) -> bool:
    """Whether a state dict with these names is that of a VAR."""
    return names >= _MARKS


class _Cache:
    """The original's switch of a block's KV cache."""

    def __init__(self) -> None:
        self.enabled, self.seen = False, 0

    def reset(self, enabled: bool) -> None:
        self.enabled, self.seen = enabled, 0


class AdoptedBlock(nn.Module):
    """Our block with the original's signature, its cache switched by ``attn.kv_caching``."""

    def __init__(self, block: Block, cursor: Any, tokens: int) -> None:
        super().__init__()
        self.block, self.cursor, self.tokens = block, cursor, tokens
        self.state = _Cache()
        # The original switches `block.attn`.
        block.attn.kv_caching = self._switch

    def _switch(self, enable: bool) -> None:
        self.state.reset(enable)
        self.block.attn.cache = None

    @property
    def attn(self) -> nn.Module:
        """The attention, for callers that switch its cache."""
        return self.block.attn

    def forward(self, x: Tensor, cond_BD: Tensor, attn_bias: Tensor | None = None) -> Tensor:
        """x [B, t, C]: the next t positions with the cache, else all from the first on."""
        state, attention = self.state, self.block.attn
        if state.enabled and attention.cache is None:
            core, heads = attention.core, attention.heads
            shapes = core.cache_shapes(len(x), heads, self.tokens, x.shape[2] // heads)
            attention.cache = tuple(x.new_empty(shape, dtype=core.cache_dtype) for shape in shapes)
        begin = state.seen if state.enabled else 0
        self.cursor.set(begin, x.shape[1])
        x = self.block(x, cond_BD, attn_bias)
        state.seen = begin + x.shape[1]
        return x


class AdoptedHeadNorm(nn.Module):
    """Our modulated norm before the head with the original's signature."""

    def __init__(self, inner: HeadNorm) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_BLC: Tensor, cond_BD: Tensor) -> Tensor:
        """x [B, t, C], class embedding [B, C] -> [B, t, C].

        Never codes: the original casts what it gets before the head.
        """
        return self.inner.norm.compute(x_BLC, *self.inner.modulation(cond_BD))


class AdoptedVAR(VARModel):
    """A VAR whose transformer runs inside a module of the original repository."""

    def __init__(self, config: VARConfig, transformer: VAR, tokenizer: VQVAE, host: nn.Module):
        super().__init__("var-original", config, transformer, tokenizer)
        self.architecture = {"family": "var", "transformer": config, "tokenizer": tokenizer.config}
        self._host = (host,)  # a tuple, so that it is not a submodule

    def replace_(self, name: str, module: nn.Module) -> None:
        """As for any model; the head is the host's too, the rest it reaches through the blocks."""
        super().replace_(name, module)
        if name == "head":
            self._host[0].head = module


def _config(module: nn.Module, state: dict[str, Tensor]) -> VARConfig:
    """The sizes, read off the weights; what no weight tells, off the module."""
    width = state["pos_1LC"].shape[2]
    scale = state.get("blocks.0.attn.scale_mul_1H11")
    heads = module.num_heads if scale is None else scale.shape[1]
    shared = "blocks.0.ada_gss" in state
    norm = getattr(getattr(module, "blocks", [None])[0], "ln_wo_grad", None)
    return VARConfig(
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_heads=heads, embed_dim=width, num_classes=state["class_emb.weight"].shape[0] - 1,
        patch_nums=tuple(module.patch_nums), vocab_size=state["head.weight"].shape[0],
        z_channels=state["word_embed.weight"].shape[1],
        mlp_ratio=state["blocks.0.ffn.fc1.weight"].shape[0] / width,
        norm_eps=getattr(norm, "eps", VARConfig.norm_eps), shared_aln=shared,
        attn_l2_norm=scale is not None,
    )  # fmt: skip


def _tokenizer_config(tokenizer: nn.Module, patch_nums: tuple[int, ...]) -> VQVAEConfig:
    """The tokenizer's sizes, likewise."""
    state, quantizer = tokenizer.state_dict(), tokenizer.quantize
    ch = state["encoder.conv_in.weight"].shape[0]
    levels = 1 + max(int(n.split(".")[2]) for n in state if n.startswith("encoder.down."))
    blocks = {n.split(".")[4] for n in state if n.startswith("encoder.down.0.block.")}
    last = f"encoder.down.{levels - 1}"
    widths = [state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
    partly = {n.split(".")[3] for n in state if n.startswith("quantize.quant_resi.qresi_ls.")}
    whole = any(n.startswith("quantize.quant_resi.qresi.") for n in state)
    return VQVAEConfig(
        vocab_size=state["quantize.embedding.weight"].shape[0],
        z_channels=state["quantize.embedding.weight"].shape[1], ch=ch,
        ch_mult=tuple(w // ch for w in widths), num_res_blocks=len(blocks), patch_nums=patch_nums,
        quant_conv_ks=state["quant_conv.weight"].shape[-1],
        quant_resi=float(getattr(quantizer, "quant_resi_ratio", VQVAEConfig.quant_resi)),
        share_quant_resi=1 if whole else len(partly),
        using_znorm=bool(getattr(quantizer, "using_znorm", False)),
        using_sa=any(n.startswith(f"{last}.attn.") for n in state),
        using_mid_sa=any(n.startswith("encoder.mid.attn_1.") for n in state),
    )  # fmt: skip


def adopt(module: nn.Module, tokenizer: nn.Module | None) -> VARModel:
    """See ``originals.adopt``. The tokenizer is found where the original keeps it."""
    if tokenizer is None:
        proxy = module.__dict__.get("vae_proxy")
        if not proxy:
            raise ValueError(
                "adopt: this VAR has no vae_proxy; give its tokenizer: adopt(var, tokenizer=vae)"
            )
        tokenizer = proxy[0]
    config = _config(module, module.state_dict())
    transformer = share(VAR, config, module, "VAR")
    ours = share(VQVAE, _tokenizer_config(tokenizer, config.patch_nums), tokenizer, "VQVAE")
    transformer.cursor.position = torch.zeros(1, dtype=torch.int32, device=module.pos_1LC.device)
    model = AdoptedVAR(config, transformer, ours, module)
    blocks = transformer.blocks
    module.blocks = nn.ModuleList(
        AdoptedBlock(block, transformer.cursor, config.tokens) for block in blocks
    )
    module.head_nm, module.head = AdoptedHeadNorm(transformer.head_nm), transformer.head
    return model.eval()
