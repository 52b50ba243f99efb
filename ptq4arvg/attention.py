"""Quantized attention products: observe q, k, v; fit grids; install. In integers, or simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .calibration import Calibration
from .nn import SOFTMAX_KINDS, AttentionCore, IntAttention, QuantAttention
from .numerics import affine_grid
from .reference_attention import KEY_GROUP, MAX_HEAD_SIZE

__all__ = ["check_attention", "integer_attention_", "quantize_attention_"]

# Exponents of the channels' ranges in the scales of the keys: 0 gives all channels of a head one
# scale, 1 each its own; between, what the rounding of q and that of k cost is balanced.
BALANCES = (0.0, 0.25, 0.5, 0.75, 1.0)

# Ranges of k and v in integers, of those that the calibration rows show: other images go beyond
# them, and a clipped key costs many times what a coarser step does.
HEADROOM = 1.25

Progress = Callable[[str, int, int], None]


class _Ranges:
    """Running minimum and maximum of operands, over the dimensions that each has no grid along.

    over: operand -> these dimensions of [B, H, T, d].
    """

    def __init__(self, over: Mapping[str, tuple[int, int]]) -> None:
        self.over = over
        self.lo: dict[str, Tensor] = {}
        self.hi: dict[str, Tensor] = {}

    def __call__(self, _module, args, _output) -> None:
        for name, x in zip("qkv", args[:3], strict=True):
            if name not in self.over:
                continue
            lo, hi = x.amin(self.over[name]), x.amax(self.over[name])
            self.lo[name] = torch.minimum(self.lo[name], lo) if name in self.lo else lo
            self.hi[name] = torch.maximum(self.hi[name], hi) if name in self.hi else hi


def _replay(model, calibration: Calibration, batch_size: int, hooks: dict[str, Callable]) -> None:
    """Replay the rows with a forward hook (module, args, output) on each named core."""
    handles = [
        model.transformer.get_submodule(name).register_forward_hook(hook)
        for name, hook in hooks.items()
    ]
    try:
        for ids, labels in calibration.batches(batch_size):
            model.replay(ids, labels)
    finally:
        for handle in handles:
            handle.remove()


def check_attention(model, attention: str) -> list[str]:
    """Its attention cores. ValueError if ``model`` cannot have this kind of attention.

    attention: as of a ``Method``.
    """
    integer, why = attention == "int8", ""
    names = model.integer_cores() if integer else model.attention_cores()
    if integer:
        why = model.no_integer_attention or _misfit(model)
    elif attention != "float" and not names:
        why = "keeps its attention products in floating point"
    if why:
        raise ValueError(f"attention={attention!r}: {model.name} {why}; wanted attention='float'")
    return names


def _misfit(model) -> str:
    """What ``ops.attention`` does not take of a model; "" if it takes all."""
    c, dtype = model.config, next(model.transformer.parameters()).dtype
    if dtype == torch.float64:
        return "is in float64, and integer attention takes float32, bfloat16 and float16"
    size = c.embed_dim // c.num_heads
    if size % KEY_GROUP or size > MAX_HEAD_SIZE:
        return (
            f"has heads of {size} channels, and integer attention takes a multiple of {KEY_GROUP} "
            f"up to {MAX_HEAD_SIZE}"
        )
    return ""


def _errors(
    model, calibration: Calibration, batch_size: int, candidates: dict[str, list[AttentionCore]]
) -> dict[str, Tensor]:
    """Squared output errors of each core's candidates on the rows: float64 [candidates, heads]."""
    errors: dict[str, Tensor] = {}

    def compare(name: str):
        def hook(_module: AttentionCore, args, output: Tensor) -> None:
            found = torch.stack(
                [(c(*args) - output).double().square().sum((0, 2, 3)) for c in candidates[name]]
            )
            errors[name] = errors[name] + found if name in errors else found

        return hook

    _replay(model, calibration, batch_size, {name: compare(name) for name in candidates})
    return errors


def _install(model, chosen: dict[str, AttentionCore], progress: Progress | None) -> None:
    for number, (name, core) in enumerate(chosen.items()):
        model.replace_(name, core)
        if progress:
            progress("attention", number + 1, len(chosen))


def quantize_attention_(
    model: torch.nn.Module,
    calibration: Calibration,
    bits: int,
    batch_size: int = 16,
    progress: Progress | None = None,
    softmax: str = "best",
) -> dict[str, str]:
    """Replace the attention cores of ``model`` by simulations at ``bits`` bits.

    Ranges come from the calibration rows. softmax: the grid of the probabilities, "uniform" or
    "log_sqrt2" (powers of the square root of two), or "best", the one of lower output error of each
    core. Returns core -> kind. ValueError for a model without such cores.
    """
    names = check_attention(model, "simulated")
    wanted = SOFTMAX_KINDS if softmax == "best" else (softmax,)
    ranges = {name: _Ranges({"q": (0, 3), "k": (0, 3), "v": (0, 2)}) for name in names}
    _replay(model, calibration, batch_size, ranges)

    def simulations(seen: _Ranges) -> list[AttentionCore]:
        grids = {name: affine_grid(seen.lo[name], seen.hi[name], bits) for name in "qkv"}
        return [QuantAttention(grids, bits, kind, model.cursor) for kind in wanted]

    candidates = {name: simulations(seen) for name, seen in ranges.items()}
    errors = _errors(model, calibration, batch_size, candidates)
    best = {name: int(found.sum(1).argmin()) for name, found in errors.items()}
    _install(model, {name: candidates[name][i] for name, i in best.items()}, progress)
    return {name: wanted[i] for name, i in best.items()}


def integer_attention_(
    model: torch.nn.Module,
    calibration: Calibration,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Replace the attention cores of ``model`` by ones in 8-bit integers, with int8 KV caches.

    The range of every channel of k and v is that on the calibration rows times ``HEADROOM``. Of the
    ``BALANCES`` of the scales of the keys every head gets the one of lowest output error on the
    rows. Returns core -> the balance of each of its heads. ValueError for a model that
    ``check_attention`` refuses.
    """
    names = check_attention(model, "int8")
    ranges = {name: _Ranges({"k": (0, 2), "v": (0, 2)}) for name in names}
    _replay(model, calibration, batch_size, ranges)
    candidates = {
        name: [_integer_core(seen, balance) for balance in BALANCES]
        for name, seen in ranges.items()
    }
    errors = _errors(model, calibration, batch_size, candidates)
    best = {name: found.argmin(0) for name, found in errors.items()}  # [H] each
    balances = torch.tensor(BALANCES, dtype=torch.float64)
    chosen = {
        name: _integer_core(ranges[name], balances.to(i.device)[i][:, None])
        for name, i in best.items()
    }
    _install(model, chosen, progress)
    return {name: balances[i.cpu()].tolist() for name, i in best.items()}


def _integer_core(seen: _Ranges, balance: float | Tensor) -> IntAttention:
    """balance: of all heads, or float64 [H, 1]."""

    def middle_and_reach(name: str) -> tuple[Tensor, Tensor]:
        lo, hi = seen.lo[name].double(), seen.hi[name].double()  # [H, d]
        reach = HEADROOM * (hi - lo) / 2
        # A channel, or a head, that never moves still needs a scale.
        floor = 1e-6 * reach.amax(1, keepdim=True).clamp_min(1e-6)
        return (lo + hi) / 2, torch.maximum(reach, floor)

    k_middle, k_reach = middle_and_reach("k")
    v_middle, v_reach = middle_and_reach("v")
    widest = k_reach.amax(1, keepdim=True)
    k_scale = widest * (k_reach / widest) ** balance / 127
    return IntAttention(k_scale, k_middle, v_reach / 127, v_middle)
