"""A stand-in for the original VAR: its module names, call order and switches, nothing else."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    def __init__(self, width, heads, l2_norm):
        super().__init__()
        self.num_heads, self.attn_l2_norm = heads, l2_norm
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.caching, self.cached_k, self.cached_v = False, None, None

    def kv_caching(self, enable):
        self.caching, self.cached_k, self.cached_v = enable, None, None

    def forward(self, x, attn_bias):
        b, t, c = x.shape
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = F.linear(x, self.mat_qkv.weight, bias).view(b, t, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scale = 0.25 / math.sqrt(c // self.num_heads)
        if self.attn_l2_norm:
            q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(math.log(100)).exp()
            k, scale = F.normalize(k, dim=-1), 1.0
        if self.caching:
            if self.cached_k is not None:
                k, v = torch.cat((self.cached_k, k), 2), torch.cat((self.cached_v, v), 2)
            self.cached_k, self.cached_v = k, v
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias, scale=scale)
        return self.proj(y.transpose(1, 2).reshape(b, t, c))


class FFN(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class AdaLNSelfAttn(nn.Module):
    def __init__(self, c):
        super().__init__()
        width = c["width"]
        self.C, self.shared_aln = width, c["shared_aln"]
        self.attn = SelfAttention(width, c["heads"], c.get("attn_l2_norm", True))
        self.ffn = FFN(width, round(width * c.get("mlp_ratio", 4.0)))
        self.ln_wo_grad = nn.LayerNorm(width, c.get("norm_eps", 1e-6), elementwise_affine=False)
        if self.shared_aln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, cond_BD, attn_bias):
        if self.shared_aln:
            six = (self.ada_gss + cond_BD).unbind(2)
        else:
            six = self.ada_lin(cond_BD).view(-1, 1, 6, self.C).unbind(2)
        gate1, gate2, scale1, scale2, shift1, shift2 = six
        h = self.attn(self.ln_wo_grad(x) * (1 + scale1) + shift1, attn_bias)
        x = x + h * gate1
        return x + self.ffn(self.ln_wo_grad(x) * (1 + scale2) + shift2) * gate2


class AdaLNBeforeHead(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.C = width
        self.ln_wo_grad = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BLC, cond_BD):
        scale, shift = self.ada_lin(cond_BD).view(-1, 1, 2, self.C).unbind(2)
        return self.ln_wo_grad(x_BLC) * (1 + scale) + shift


class SharedAdaLin(nn.Sequential):
    def forward(self, cond_BD):
        return super().forward(cond_BD).view(len(cond_BD), 1, 6, -1)


class VAR(nn.Module):
    """vae: a module with ``quantize`` that steps from scale to scale, as our tokenizers do."""

    def __init__(self, c, vae):
        super().__init__()
        width, tokens = c["width"], sum(p * p for p in c["patch_nums"])
        self.patch_nums, self.num_stages_minus_1 = c["patch_nums"], len(c["patch_nums"]) - 1
        self.num_heads, self.num_classes = c["heads"], c["num_classes"]
        self.vae_proxy, self.vae_quant_proxy = (vae,), (vae.quantize,)
        self.word_embed = nn.Linear(c["Cvae"], width)
        self.class_emb = nn.Embedding(c["num_classes"] + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, c["patch_nums"][0] ** 2, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, tokens, width))
        self.lvl_embed = nn.Embedding(len(c["patch_nums"]), width)
        level = torch.cat([torch.full((p * p,), i) for i, p in enumerate(c["patch_nums"])])
        self.register_buffer("lvl_1L", level[None])
        bias = torch.where(level[:, None] >= level, 0.0, -torch.inf)
        self.register_buffer("attn_bias_for_masking", bias[None, None])
        shared = SharedAdaLin(nn.SiLU(), nn.Linear(width, 6 * width))
        self.shared_ada_lin = shared if c["shared_aln"] else nn.Identity()
        self.blocks = nn.ModuleList(AdaLNSelfAttn(c) for _ in range(c["depth"]))
        self.head_nm = AdaLNBeforeHead(width, c.get("norm_eps", 1e-6))
        self.head = nn.Linear(width, c["V"])

    def get_logits(self, h, cond_BD):
        return self.head(self.head_nm(h.float(), cond_BD).float()).float()

    def forward(self, label_B, x_BLCv_wo_first_l):
        sos = cond_BD = self.class_emb(label_B)
        x = torch.cat((sos[:, None] + self.pos_start, self.word_embed(x_BLCv_wo_first_l)), 1)
        x = x + self.lvl_embed(self.lvl_1L) + self.pos_1LC
        condition = self.shared_ada_lin(cond_BD)
        for block in self.blocks:
            x = block(x=x, cond_BD=condition, attn_bias=self.attn_bias_for_masking)
        return self.get_logits(x.float(), cond_BD)

    @torch.no_grad()
    def autoregressive_infer_cfg(self, labels, cfg):
        """Ids of the most likely tokens, scale after scale, with the original's order of calls."""
        n, begin, ids = len(labels), 0, []
        sos = cond_BD = self.class_emb(
            torch.cat((labels, torch.full_like(labels, self.num_classes)))
        )
        positions = self.lvl_embed(self.lvl_1L) + self.pos_1LC
        x = sos[:, None] + self.pos_start + positions[:, : self.patch_nums[0] ** 2]
        f_hat = self.vae_quant_proxy[0].empty(n)
        for block in self.blocks:
            block.attn.kv_caching(True)
        for si, side in enumerate(self.patch_nums):
            begin += side * side
            condition = self.shared_ada_lin(cond_BD)
            for block in self.blocks:
                x = block(x=x, cond_BD=condition, attn_bias=None)
            logits = self.get_logits(x, cond_BD)
            t = cfg * si / max(self.num_stages_minus_1, 1)
            ids.append(((1 + t) * logits[:n] - t * logits[n:]).argmax(-1))
            f_hat, following = self.vae_quant_proxy[0].step(si, f_hat, ids[-1])
            if following is not None:
                x = self.word_embed(following) + positions[:, begin : begin + following.shape[1]]
                x = x.repeat(2, 1, 1)
        for block in self.blocks:
            block.attn.kv_caching(False)
        return torch.cat(ids, 1)
