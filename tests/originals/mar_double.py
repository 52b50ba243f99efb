"""A stand-in for the original MAR: its module names, call order and sampler, nothing else."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, t, c))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        width = c["D"]
        self.norm1, self.norm2 = (nn.LayerNorm(width, c["norm_eps"]) for _ in range(2))
        self.attn = Attention(width, c["heads"])
        self.mlp = Mlp(width, round(width * c["mlp_ratio"]))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TimestepEmbedder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        angles = t[:, None].float() * 10000 ** (torch.arange(128) / -128)
        return self.mlp(torch.cat((angles.cos(), angles.sin()), -1))


class ResBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x, y):
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, -1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class SimpleMLPAdaLN(nn.Module):
    def __init__(self, channels, width, depth, condition):
        super().__init__()
        self.in_channels = channels
        self.time_embed, self.cond_embed = TimestepEmbedder(width), nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)

    def forward(self, x, t, c):
        x, y = self.input_proj(x), self.time_embed(t) + self.cond_embed(c)
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y)

    def forward_with_cfg(self, x, t, c, cfg_scale):
        half = x[: len(x) // 2]
        out = self.forward(torch.cat((half, half)), t, c)
        given, none = out[:, : self.in_channels].chunk(2)
        mixed = none + cfg_scale * (given - none)
        return torch.cat((torch.cat((mixed, mixed)), out[:, self.in_channels :]), 1)


class SpacedDiffusion:
    """A sampler over a few of the training timesteps. normal: makes noise of a shape.

    timestep_map, betas: lists, ascending in noise.
    """

    def __init__(self, timestep_map, betas):
        self.timestep_map, self.betas = timestep_map, betas
        betas = torch.tensor(betas, dtype=torch.float64)
        kept = torch.cumprod(1 - betas, 0)
        before = torch.cat((kept.new_ones(1), kept[:-1]))
        variance = betas * (1 - before) / (1 - kept)
        self.of_x, self.of_eps = (1 / kept).sqrt().float(), (1 / kept - 1).sqrt().float()
        self.of_start = (betas * before.sqrt() / (1 - kept)).float()
        self.of_state = ((1 - before) * (1 - betas).sqrt() / (1 - kept)).float()
        self.least = torch.cat((variance[1:2], variance[1:])).log().float()
        self.most = betas.log().float()
        self.normal = torch.randn

    def p_sample(self, model, x, t, model_kwargs, temperature):
        timesteps = torch.tensor(self.timestep_map, dtype=t.dtype)[t]
        eps, share = model(x, timesteps, **model_kwargs).chunk(2, 1)
        at = t[:, None]
        start = self.of_x[at] * x - self.of_eps[at] * eps
        mean = self.of_start[at] * start + self.of_state[at] * x
        share = (share + 1) / 2
        log_variance = share * self.most[at] + (1 - share) * self.least[at]
        noise = self.normal(*x.shape)
        return mean + (at != 0) * torch.exp(0.5 * log_variance) * noise * temperature

    def p_sample_loop(self, model, shape, noise, model_kwargs, temperature):
        x = noise
        for i in reversed(range(len(self.timestep_map))):
            t = torch.tensor([i] * shape[0])
            with torch.no_grad():
                x = self.p_sample(model, x, t, model_kwargs, temperature)
        return x


class DiffLoss(nn.Module):
    def __init__(self, c, diffusion):
        super().__init__()
        self.in_channels = c["vae"] * c["patch_size"] ** 2
        self.net = SimpleMLPAdaLN(self.in_channels, c["w"], c["d"], c["D"])
        self.gen_diffusion = diffusion

    def sample(self, z, temperature, cfg):
        if cfg != 1.0:
            noise = self.gen_diffusion.normal(len(z) // 2, self.in_channels)
            noise, kwargs = torch.cat((noise, noise)), {"c": z, "cfg_scale": cfg}
            function = self.net.forward_with_cfg
        else:
            noise = self.gen_diffusion.normal(len(z), self.in_channels)
            kwargs, function = {"c": z}, self.net.forward
        return self.gen_diffusion.p_sample_loop(function, noise.shape, noise, kwargs, temperature)


class MAR(nn.Module):
    """c: the fields of a golden MAR configuration; diffusion: a ``SpacedDiffusion``."""

    def __init__(self, c, diffusion):
        super().__init__()
        width, self.patch_size, self.vae_embed_dim = c["D"], c["patch_size"], c["vae"]
        self.seq_h = self.seq_w = c["img"] // c["vae_stride"] // self.patch_size
        self.seq_len, self.buffer_size = self.seq_h * self.seq_w, c["buf"]
        self.token_embed_dim = self.vae_embed_dim * self.patch_size**2
        slots = self.seq_len + self.buffer_size
        self.class_emb = nn.Embedding(c["classes"], width)
        self.fake_latent = nn.Parameter(torch.zeros(1, width))
        self.z_proj = nn.Linear(self.token_embed_dim, width)
        self.z_proj_ln = nn.LayerNorm(width, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, slots, width))
        self.encoder_blocks = nn.ModuleList(Block(c) for _ in range(c["ed"]))
        self.encoder_norm = nn.LayerNorm(width, c["norm_eps"])
        self.decoder_embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, slots, width))
        self.decoder_blocks = nn.ModuleList(Block(c) for _ in range(c["dd"]))
        self.decoder_norm = nn.LayerNorm(width, c["norm_eps"])
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, self.seq_len, width))
        self.diffloss = DiffLoss(c, diffusion)

    def unpatchify(self, x):
        p = self.patch_size
        x = x.reshape(len(x), self.seq_h, self.seq_w, self.vae_embed_dim, p, p)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(len(x), -1, self.seq_h * p, self.seq_w * p)

    def sample_orders(self, bsz):
        return torch.stack([torch.randperm(self.seq_len) for _ in range(bsz)])

    def _seen(self, mask):
        """Where the rows are that the encoder sees, the buffer always among them."""
        return (1 - F.pad(mask, (self.buffer_size, 0))).nonzero(as_tuple=True)

    def forward_mae_encoder(self, x, mask, class_embedding):
        x = self.z_proj(x)
        x = torch.cat((torch.zeros(len(x), self.buffer_size, x.shape[2]), x), 1)
        x[:, : self.buffer_size] = class_embedding[:, None]
        x = self.z_proj_ln(x + self.encoder_pos_embed_learned)
        x = x[self._seen(mask)].reshape(len(x), -1, x.shape[2])
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def forward_mae_decoder(self, x, mask):
        x = self.decoder_embed(x)
        padded = self.mask_token.repeat(len(x), self.buffer_size + self.seq_len, 1).to(x.dtype)
        padded[self._seen(mask)] = x.flatten(0, 1)
        x = padded + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, self.buffer_size :] + self.diffusion_pos_embed_learned

    def sample_tokens(self, bsz, num_iter=64, cfg=1.0, cfg_schedule="linear", labels=None,
                      temperature=1.0, progress=False):  # fmt: skip
        mask, guided = torch.ones(bsz, self.seq_len), cfg != 1.0
        tokens = torch.zeros(bsz, self.seq_len, self.token_embed_dim)
        orders = self.sample_orders(bsz)
        for step in range(num_iter):
            known, none = tokens.clone(), self.fake_latent.repeat(bsz, 1)
            of_class = none if labels is None else self.class_emb(labels)
            if guided:
                tokens, mask = torch.cat((tokens, tokens)), torch.cat((mask, mask))
                of_class = torch.cat((of_class, none))
            z = self.forward_mae_decoder(self.forward_mae_encoder(tokens, mask, of_class), mask)
            wanted = torch.tensor([self.seq_len * math.cos(math.pi / 2 * (step + 1) / num_iter)])
            left = (mask.sum(-1, keepdim=True) - 1).minimum(wanted.floor()).clamp_min(1)[0]
            following = torch.zeros(bsz, self.seq_len).scatter(1, orders[:, : int(left)], 1.0)
            now = mask[:bsz].bool()
            if step < num_iter - 1:
                now = now ^ following.bool()
            mask = following
            z = z[now.repeat(1 + guided, 1)]
            strength = cfg
            if cfg_schedule == "linear":
                strength = 1 + (cfg - 1) * (self.seq_len - left) / self.seq_len
            known[now] = self.diffloss.sample(z, temperature, strength)[: int(now.sum())]
            tokens = known
        return self.unpatchify(tokens)
