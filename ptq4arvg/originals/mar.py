"""MAR modules of the original repository: our blocks and diffusion head under their signatures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.diffloss import DiffLoss, respaced_schedule
from ..models.klvae import KLVAE, KLVAEConfig
from ..models.mar import FAMILY, MARModel
from ..models.mar_net import MAR, Block, MARConfig
from ..nn import Cursor
from ..sampling import guide
from .sharing import count, published_sampling, share, tokenizer_state

__all__ = ["NAME", "AdoptedBlock", "AdoptedHead", "adopt", "recognises"]

NAME = "MAR"
_MARKS = {
    "fake_latent", "encoder_pos_embed_learned", "diffusion_pos_embed_learned",
    "encoder_blocks.0.attn.qkv.weight", "diffloss.net.cond_embed.weight",
}  # fmt: skip


def recognises(names: set[str]) -> bool:
    """Whether a state dict with these names is that of a MAR."""
    return names >= _MARKS


class AdoptedBlock(nn.Module):
    """Our block with the original's signature, of the encoder or the decoder."""

    def __init__(self, block: Block, cursor: Cursor) -> None:
        super().__init__()
        self.block, self.cursor = block, cursor

    def forward(self, x: Tensor) -> Tensor:
        """x [B, b + v, D]: the buffer, then the visible tokens or all of them -> the same."""
        self.cursor.set(0, x.shape[1])
        return self.block(x, sampling=True)


class AdoptedHead(nn.Module):
    """Our diffusion head with the signatures of the original's ``diffloss.net``.

    In float any timesteps do, as in training. A quantized head has tables of the sampling steps
    alone, so all rows have to be at the same one of them; to know which, they are read from the
    device.
    """

    def __init__(self, inner: DiffLoss) -> None:
        super().__init__()
        self.inner = inner
        self._steps = {int(t): step for step, t in enumerate(inner.schedule.timesteps)}

    def _step(self, t: Tensor) -> int:
        """The sampling step of timesteps t [R]. ValueError if they are not all of one."""
        low, high = torch.stack(t.aminmax()).tolist()
        if low != high or low not in self._steps:
            came = str(low) if low == high else f"{low} to {high}"
            raise ValueError(
                f"adopt: a quantized diffusion head got timesteps {came}; wanted all rows at one "
                f"of the {len(self._steps)} that sampling visits. Compute the loss of training "
                "before quantizing, or leave the head in float: ignore=['re:diffloss.*']"
            )
        return self._steps[low]

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """x [R, C] noised tokens, t int64 [R] timesteps of training, c [R, D] conditions ->
        [R, 2 C] noise and variance logits."""
        net = self.inner.net
        if not self.inner.quantized:
            y = net.time_embed(t) + net.cond_embed(c)
            return net(x[:, None], y[:, None])[:, 0]
        step = self._step(t)
        if step == self.inner.steps - 1 and self.inner.begins_in_noise:
            return torch.cat([x, torch.ones_like(x)], -1)  # of the greater variance
        self.inner.cursor.set(step, 1)
        y = net.time_embed(t[:1]) + net.cond_embed(c)
        return net(x[:, None], y[:, None], sampling=True)[:, 0]

    def forward_with_cfg(
        self, x: Tensor, t: Tensor, c: Tensor, cfg_scale: float | Tensor
    ) -> Tensor:
        """The same with guidance: conditional rows of c before unconditional ones, and the first
        half of x for both -> guided noise twice, variance logits of all rows."""
        half = x[: len(x) // 2]
        eps, logits = self(torch.cat([half, half]), t, c).chunk(2, -1)
        guided = guide(*eps.chunk(2), cfg_scale - 1)
        return torch.cat([guided.repeat(2, 1), logits], -1)


class AdoptedMAR(MARModel):
    """A MAR whose parts run inside a module of the original repository."""

    def __init__(self, config: MARConfig, transformer: MAR, tokenizer: KLVAE, host: nn.Module):
        super().__init__("mar-original", config, transformer, tokenizer)
        self.architecture = {"family": "mar", "transformer": config, "tokenizer": tokenizer.config}
        self._host = (host,)  # a tuple, so that it is not a submodule

    def fold_(self, name: str, scale: Tensor, shift: Tensor) -> None:
        """As for any model; what is folded into the last norm scales a parameter of the host."""
        super().fold_(name, scale, shift)
        host = self._host[0]
        host.diffusion_pos_embed_learned = self.transformer.diffusion_pos_embed_learned


def _config(module: nn.Module, state: dict[str, Tensor]) -> MARConfig:
    """The sizes, read off the weights; what no weight tells, off the module.

    ValueError for attention heads or a diffusion sampler that this package does not have.
    """
    heads = module.encoder_blocks[0].attn.num_heads
    others = {block.attn.num_heads for block in (*module.encoder_blocks, *module.decoder_blocks)}
    if others != {heads}:
        raise ValueError(
            f"adopt: the blocks of this MAR have {sorted(others)} attention heads; wanted the same "
            "number in encoder and decoder"
        )
    sampler = module.diffloss.gen_diffusion
    steps = len(sampler.timestep_map)
    known = respaced_schedule(steps)
    alike = np.array_equal(sampler.timestep_map, known.timesteps)
    if not (alike and np.allclose(sampler.betas, known.betas)):
        few = ", ".join(str(t) for t in sampler.timestep_map[:3])
        raise ValueError(
            f"adopt: this MAR samples at the {steps} timesteps {few}, ... of its noise schedule; "
            f"wanted evenly spaced ones of the cosine schedule: num_sampling_steps='{steps}'"
        )
    _, slots, width = state["encoder_pos_embed_learned"].shape
    tokens, patch = state["diffusion_pos_embed_learned"].shape[1], module.patch_size
    sizes: dict[str, Any] = {
        "embed_dim": width, "encoder_depth": count(state, "encoder_blocks."),
        "decoder_depth": count(state, "decoder_blocks."), "num_heads": heads,
        "diff_width": state["diffloss.net.cond_embed.weight"].shape[0],
        "diff_depth": count(state, "diffloss.net.res_blocks."),
        "num_classes": state["class_emb.weight"].shape[0], "grid": math.isqrt(tokens),
        "patch": patch, "z_channels": state["z_proj.weight"].shape[1] // patch**2,
        "buffer": slots - tokens,
        "mlp_ratio": state["encoder_blocks.0.mlp.fc1.weight"].shape[0] / width,
        "norm_eps": module.encoder_blocks[0].norm1.eps, "diffusion_steps": steps,
        "num_iter": min(MARConfig.num_iter, tokens),  # the original is given it with each call
    }  # fmt: skip
    return MARConfig(**sizes, **published_sampling(FAMILY, sizes))


def _tokenizer_config(state: dict[str, Tensor], side: int) -> KLVAEConfig:
    """The tokenizer's sizes, likewise."""
    ch, levels = state["encoder.conv_in.weight"].shape[0], count(state, "encoder.down.")
    widths = [state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
    return KLVAEConfig(
        z_channels=state["post_quant_conv.weight"].shape[0], ch=ch,
        ch_mult=tuple(w // ch for w in widths),
        num_res_blocks=count(state, "encoder.down.0.block."), latent_side=side,
    )  # fmt: skip


def adopt(module: nn.Module, tokenizer: nn.Module | None) -> MARModel:
    """See ``originals.adopt``. The original keeps the tokenizer apart; the maps of its attentions,
    which become one, are copied."""
    vae = tokenizer_state(tokenizer, NAME, "KL-VAE", "encoder.mid.attn_1.norm.weight")
    config = _config(module, module.state_dict())
    transformer = share(MAR, config, module, NAME)
    side = config.grid * config.patch
    ours = share(KLVAE, _tokenizer_config(vae, side), tokenizer, "KL-VAE")
    model = AdoptedMAR(config, transformer, ours, module)
    for cursor in model.cursors:
        cursor.position = torch.zeros(1, dtype=torch.int32, device=module.fake_latent.device)
    for name in ("encoder_blocks", "decoder_blocks"):
        blocks = getattr(transformer, name)
        setattr(module, name, nn.ModuleList(AdoptedBlock(b, transformer.cursor) for b in blocks))
    # Its output is read by no linear alone, so it is never fused: floats, whatever is quantized.
    module.decoder_norm = transformer.decoder_norm
    # One parameter, wherever the module is moved.
    module.diffusion_pos_embed_learned = transformer.diffusion_pos_embed_learned
    module.diffloss.net = AdoptedHead(transformer.diffloss)
    return model.eval()
