"""A stand-in for the original PAR and LlamaGen: their module names, call order and switches."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], None, self.eps).type_as(x) * self.weight


class KVCache(nn.Module):
    def __init__(self, rows, positions, heads, size, dtype):
        super().__init__()
        for name in ("k_cache", "v_cache"):
            self.register_buffer(name, torch.zeros(rows, heads, positions, size, dtype=dtype))

    def update(self, input_pos, k, v):
        self.k_cache[:, :, input_pos], self.v_cache[:, :, input_pos] = k, v
        return self.k_cache, self.v_cache


def rotated(x, freqs_cis):
    """x [B, t, H, d] turned by freqs_cis [t, d / 2, 2] or [1, t, d / 2, 2]."""
    cos, sin = freqs_cis.view(1, x.shape[1], 1, -1, 2).unbind(-1)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).type_as(x)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.n_head, self.kv_cache = heads, None
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, x, freqs_cis=None, input_pos=None, mask=None):
        b, t, c = x.shape
        q, k, v = self.wqkv(x).view(b, t, 3, self.n_head, -1).unbind(2)
        q, k = rotated(q, freqs_cis), rotated(k, freqs_cis)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if self.kv_cache is not None:
            k, v = self.kv_cache.update(input_pos, k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.wo(y.transpose(1, 2).reshape(b, t, c))


class FeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.attention = Attention(c["dim"], c["n_head"])
        self.feed_forward = FeedForward(c["dim"], c["ffn_hidden"])
        self.attention_norm, self.ffn_norm = (RMSNorm(c["dim"], c["norm_eps"]) for _ in range(2))

    def forward(self, x, freqs_cis, start_pos, mask=None):
        x = x + self.attention(self.attention_norm(x), freqs_cis, start_pos, mask)
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    """c: the fields of a golden PAR configuration; freqs_cis [rows, d / 2, 2]: rotary factors."""

    def __init__(self, c, freqs_cis):
        super().__init__()
        width = c["dim"]
        self.config = SimpleNamespace(rope_base=c["rope_base"], n_head=c["n_head"])
        self.block_size, self.num_classes = c["block"], c["classes"]
        self.ar, self.spe_token_num = c["ar"], c["ar"] - 1
        if self.ar > 1:  # LlamaGen knows of none
            self.ar_token_num = self.ar
        self.cls_embedding = nn.ModuleDict(
            {"embedding_table": nn.Embedding(c["classes"] + 1, width)}
        )
        self.tok_embeddings = nn.Embedding(c["vocab"], width)
        if self.spe_token_num:
            special = nn.Embedding(self.spe_token_num, width)
            self.spe_tok_embeddings = nn.ModuleDict({"special_embeddings": special})
        self.layers = nn.ModuleList(TransformerBlock(c) for _ in range(c["n_layer"]))
        self.norm = RMSNorm(width, c["norm_eps"])
        self.output = nn.Linear(width, c["vocab"], bias=False)
        self.freqs_cis = freqs_cis

    def _mask(self, count):
        """A position sees those before it, and after the first ones all of its group."""
        position, ar = torch.arange(count), self.ar
        last = torch.where(position < ar, position, position // ar * ar + ar - 1)
        return last[:, None] >= position

    def setup_caches(self, max_batch_size, max_seq_length, dtype):
        long = -(-max_seq_length // 8) * 8
        for layer in self.layers:
            heads, size = self.config.n_head, self.output.in_features // self.config.n_head
            layer.attention.kv_cache = KVCache(max_batch_size, long, heads, size, dtype)
        self.causal_mask = self._mask(long).expand(max_batch_size, -1, -1)

    def _special(self, rows):
        return self.spe_tok_embeddings["special_embeddings"].weight.expand(rows, -1, -1)

    def forward(self, idx, cond_idx, input_pos=None, mask=None):
        """idx in sequence order; cond_idx too: all positions at once."""
        ar, of_class = self.ar, None
        if cond_idx is not None:
            of_class = self.cls_embedding["embedding_table"](cond_idx)[:, None]
        h = of_class if idx is None else self.tok_embeddings(idx)
        if idx is not None and of_class is not None:
            if self.spe_token_num:  # LlamaGen has no mask here: its attention is causal
                h = torch.cat((h[:, :ar], self._special(len(h)), h[:, ar:]), 1)
                mask = self._mask(h.shape[1] + 1).expand(len(h), 1, -1, -1)
            h = torch.cat((of_class, h), 1)
        else:
            if of_class is not None:
                self.start = False
            elif idx.shape[1] > 1 and not self.start:
                self.start, h = True, torch.cat((h[:, -1:], self._special(len(h))), 1)
            mask = self.causal_mask[: len(h), None, input_pos]
        freqs_cis = self.freqs_cis[input_pos]
        for layer in self.layers:
            h = layer(h, freqs_cis, input_pos, mask)
        return self.output(self.norm(h)).float()

    @torch.no_grad()
    def generate(self, labels, cfg, ids=None):
        """(most likely ids in sequence order, logits that they are of), in the original's order of
        calls; or with ``ids`` given, these ids and their logits. cfg 1: no guidance."""
        n, ar, seen = len(labels), self.ar, []
        copies = 2 if cfg > 1 else 1
        condition = torch.cat((labels, torch.full_like(labels, self.num_classes)))[: copies * n]
        self.setup_caches(len(condition), self.block_size + 1, self.tok_embeddings.weight.dtype)
        chosen, input_pos = labels.new_empty(n, 0), torch.arange(1)
        while chosen.shape[1] < self.block_size:
            done = chosen.shape[1]
            if done == 0:
                logits = self.forward(None, condition, input_pos)
            else:
                # At the first parallel step all tokens so far, of which the last is read.
                last = chosen[:, -ar if done >= ar else -1 :]
                logits = self.forward(last.repeat(copies, 1), None, input_pos)
            if copies == 2:
                logits = logits[n:] + cfg * (logits[:n] - logits[n:])
            seen.append(logits)
            count = logits.shape[1]
            following = logits.argmax(-1) if ids is None else ids[:, done : done + count]
            chosen = torch.cat((chosen, following), 1)
            begin, count = done + count, 1 if done + count < ar else ar
            if count == len(input_pos):
                input_pos += count  # in place, as the original does
            else:
                input_pos = torch.arange(begin, begin + count)
        return chosen, torch.cat(seen, 1)
