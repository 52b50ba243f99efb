"""A stand-in for the original RAR: its module names, call order and switches, nothing else."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width, heads, eps):
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = (nn.LayerNorm(width // heads, eps) for _ in range(2))
        self.kv_cache, self.k_cache, self.v_cache = False, None, None

    def reset_kv_cache(self):
        self.k_cache = self.v_cache = None

    def forward(self, x, attn_mask=None):
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.kv_cache:
            if self.k_cache is not None:
                k, v = torch.cat((self.k_cache, k), 2), torch.cat((self.v_cache, v), 2)
            self.k_cache, self.v_cache = k, v
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
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
        width, eps = c["hidden_size"], c["norm_eps"]
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps) for _ in range(2))
        self.attn = Attention(width, c["num_attention_heads"], eps)
        self.mlp = Mlp(width, c["intermediate_size"])
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, attn_mask=None, c=None):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, -1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, attn_mask=attn_mask)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class FinalLayer(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, c):
        scale, shift = self.adaLN_modulation(c).chunk(2, -1)
        return self.norm_final(x) * (1 + scale) + shift


class RAR(nn.Module):
    """condition: class + codebook_size + 1, the class's row of the embedding table."""

    def __init__(self, c):
        super().__init__()
        width, self.image_seq_len = c["hidden_size"], c["image_seq_len"]
        self.none_condition_id, codes = c["none_condition_id"], c["codebook_size"]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.embeddings = nn.Embedding(codes + c["condition_num_classes"] + 2, width)
        long = self.image_seq_len + 1024
        self.pos_embed = nn.Parameter(torch.zeros(1, long, width))
        self.target_aware_pos_embed = nn.Parameter(torch.zeros(1, long, width))
        self.timesteps_embeddings = nn.Parameter(torch.zeros(1, self.image_seq_len + 100, width))
        self.adaln_before_head = FinalLayer(width, c["norm_eps"])
        self.lm_head = nn.Linear(width, codes)
        mask = torch.full((long, long), -torch.inf).triu(1)
        self.register_buffer("attn_mask", mask, persistent=False)

    def _switch_kv_cache(self, enable):
        for block in self.blocks:
            block.attn.kv_cache = enable
            block.attn.reset_kv_cache()

    def enable_kv_cache(self):
        self._switch_kv_cache(True)

    def disable_kv_cache(self):
        self._switch_kv_cache(False)

    def forward_fn(self, ids, condition):
        """Logits of the positions from the class on; with the cache, of those not read before."""
        t = ids.shape[1] + 2
        of_class = self.embeddings(condition)[:, None]
        x = torch.cat((self.cls_token.expand(len(ids), -1, -1), of_class, self.embeddings(ids)), 1)
        x = x + self.pos_embed[:, :t]
        target = self.target_aware_pos_embed[:, 2 : 2 + self.image_seq_len]
        x = x + F.pad(target, (0, 0, 1, 1))[:, :t]
        c, mask = of_class + self.timesteps_embeddings[:, :t], self.attn_mask[:t, :t]
        first = self.blocks[0].attn
        if first.kv_cache and first.k_cache is not None and first.v_cache is not None:
            x, c, mask = x[:, -1:], c[:, -1:], None
        for block in self.blocks:
            x = block(x, attn_mask=mask, c=c)
        if not self.blocks[0].attn.kv_cache:
            x, c = x[:, 1:], c[:, 1:]
        return self.lm_head(self.adaln_before_head(x, c))

    @torch.no_grad()
    def generate(self, condition, guidance_scale, temperature, power, kv_cache=True, ids=None):
        """(most likely ids, logits that they are of), token by token in the original's order of
        calls; or with ``ids`` given, these ids and their logits."""
        n, none = len(condition), torch.full_like(condition, self.none_condition_id)
        chosen, seen = condition.new_empty(n, 0), []
        if kv_cache:
            self.enable_kv_cache()
        for step in range(self.image_seq_len):
            progress = (step / self.image_seq_len) ** power
            factor = (guidance_scale - 1) * (1 - math.cos(progress * math.pi)) / 2 + 1
            if guidance_scale:
                logits = self.forward_fn(chosen.repeat(2, 1), torch.cat((condition, none)))
                logits = logits[n:] + factor * (logits[:n] - logits[n:])
            else:
                logits = self.forward_fn(chosen, condition)
            seen.append(logits[:, -1:] / temperature)
            following = seen[-1].argmax(-1) if ids is None else ids[:, step : step + 1]
            chosen = torch.cat((chosen, following), 1)
        self.disable_kv_cache()
        return chosen, torch.cat(seen, 1)
