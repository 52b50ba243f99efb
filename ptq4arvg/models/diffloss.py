"""MAR's diffusion head: a token is drawn from p(x | z) by denoising (Li et al. 2024, sec. 3.2).

A small MLP predicts the noise of a token, and between which bounds the variance of a step lies; the
sampler takes a few evenly spaced steps of the thousand it was trained with (Nichol and Dhariwal
2021, "Improved denoising diffusion probabilistic models"). Shapes: R rows (tokens), w width, C
channels of a token, S sampling steps. Step s is the s-th least noisy; sampling runs from S - 1
down to 0, and the static tables of the quantized linears are indexed by s.

The published schedule begins where nothing is left of the signal: a start predicted there is off by
20,000 times the error of the predicted noise, and the next state by hundreds of times. The noise
to be predicted is, to one part in 20,000, the state itself. A quantized head takes that, and 0 for
the start: the next of 100 states then lacks its signal, which is 1.6 % of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..nn import Cursor, PackedLinear, QuantLinear
from ..sampling import guide
from .layers import Activation, ModulatedNorm, add_gated

__all__ = ["DiffLoss", "DiffusionSchedule", "respaced_schedule"]

TRAINED_STEPS = 1000
FREQUENCIES = 256  # of the sinusoidal time embedding
# An 8-bit head's prediction is wrong by about 0.5 %, and the noise of the next state is 1.
MOST_AMPLIFIED = 10.0


@dataclass(frozen=True)
class DiffusionSchedule:
    """A respaced Gaussian diffusion: float64 [S] each, ascending in noise.

    timesteps int64: the step of the training schedule that each stands for.
    """

    timesteps: np.ndarray
    betas: np.ndarray
    alphas_cumprod: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance: np.ndarray  # of step 1 in place of step 0, whose variance is 0
    mean_of_start: np.ndarray
    mean_of_state: np.ndarray

    def amplification(self) -> np.ndarray:
        """What an error of the noise predicted at each step is multiplied by in the next state."""
        return self.mean_of_start * np.sqrt(1 / self.alphas_cumprod - 1)


def respaced_schedule(steps: int, noisiest: int = TRAINED_STEPS - 1) -> DiffusionSchedule:
    """``steps`` evenly spaced steps of the cosine schedule of 1000, from 0 to ``noisiest``.

    The last steps of the schedule leave nothing of the signal: from the noisiest of all the start
    is predicted by multiplying the error of the noise by 20,000. ValueError outside 2..1000.
    """
    if not 2 <= steps <= TRAINED_STEPS:
        raise ValueError(f"diffusion_steps is {steps}; wanted 2 to {TRAINED_STEPS}")
    if not steps - 1 <= noisiest < TRAINED_STEPS:
        raise ValueError(f"noisiest is {noisiest}; wanted {steps - 1} to {TRAINED_STEPS - 1}")

    def signal(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    n = TRAINED_STEPS
    trained = [min(1 - signal((i + 1) / n) / signal(i / n), 0.999) for i in range(n)]
    kept = np.cumprod(1.0 - np.array(trained))
    stride, place, timesteps = noisiest / (steps - 1), 0.0, []
    for _ in range(steps):
        timesteps.append(round(place))
        place += stride
    cumulative = kept[timesteps]
    previous = np.append(1.0, cumulative[:-1])
    betas = 1 - cumulative / previous
    # Computed from the rounded betas, as a chain of its own.
    alphas = 1.0 - betas
    cumulative = np.cumprod(alphas)
    previous = np.append(1.0, cumulative[:-1])
    variance = betas * (1 - previous) / (1 - cumulative)
    return DiffusionSchedule(
        timesteps=np.array(timesteps),
        betas=betas,
        alphas_cumprod=cumulative,
        posterior_variance=variance,
        posterior_log_variance=np.log(np.append(variance[1], variance[1:])),
        mean_of_start=betas * np.sqrt(previous) / (1 - cumulative),
        mean_of_state=(1 - previous) * np.sqrt(alphas) / (1 - cumulative),
    )


class TimeEmbedding(nn.Module):
    """Sinusoids of the training step, through two linears."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    @staticmethod
    def sinusoids(t: Tensor) -> Tensor:
        """Cosines, then sines, float32 [S, 256] of training steps t [S]."""
        half = FREQUENCIES // 2
        exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angles = t[:, None].float() * torch.exp(-math.log(10000) * exponent)
        return torch.cat([angles.cos(), angles.sin()], -1)

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(self.sinusoids(t).to(self.mlp[0].weight.dtype))


class ResBlock(nn.Module):
    """A two-layer MLP with AdaLN before it and a gated shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = ModulatedNorm(width, 1e-6, affine=True)
        linears = (nn.Linear(width, width) for _ in range(2))
        self.mlp = nn.Sequential(next(linears), Activation("silu"), next(linears))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor, sampling: bool = False) -> Tensor:
        """x, y [R, t, w] -> [R, t, w]; sampling: t is 1, and linears may fuse their epilogues."""
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, -1)
        first, act, second = self.mlp
        hidden = act(first(self.in_ln(x, scale, shift)))
        return add_gated(second, hidden, x, gate) if sampling else x + gate * second(hidden)


class FinalLayer(nn.Module):
    """A modulated norm and the projection to noise and variance."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = ModulatedNorm(width, 1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, -1)
        return self.linear(self.norm_final(x, scale, shift))


class DenoisingMLP(nn.Module):
    """Noise and variance logits of noised tokens under a time embedding and a condition."""

    def __init__(self, channels: int, width: int, depth: int, condition: int) -> None:
        super().__init__()
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)

    def forward(self, x: Tensor, y: Tensor, sampling: bool = False) -> Tensor:
        """x [R, t, C] noised tokens, y [R, t, w] time plus condition -> [R, t, 2 C]."""
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, y, sampling)
        return self.final_layer(x, y)


class DiffLoss(nn.Module):
    """The MLP with its schedule. cursor: its position is the sampling step."""

    def __init__(
        self, channels: int, width: int, depth: int, condition: int, schedule: DiffusionSchedule
    ) -> None:
        super().__init__()
        self.net = DenoisingMLP(channels, width, depth, condition)
        self.schedule, self.cursor = schedule, Cursor()

    @property
    def steps(self) -> int:
        """Sampling steps S."""
        return len(self.schedule.timesteps)

    @property
    def quantized(self) -> bool:
        """Whether any of its linears is."""
        return any(isinstance(part, (PackedLinear, QuantLinear)) for part in self.net.modules())

    @property
    def begins_in_noise(self) -> bool:
        """Whether the state of the noisiest step is taken for the noise in it, in place of a
        prediction: in a quantized head, where that step multiplies errors more than tenfold."""
        return self.schedule.amplification()[-1] > MOST_AMPLIFIED and self.quantized

    def times(self) -> Tensor:
        """Time embeddings [S, w] of all sampling steps."""
        device = self.net.input_proj.weight.device
        return self.net.time_embed(torch.as_tensor(self.schedule.timesteps, device=device))

    def noised(self, tokens: Tensor, noise: Tensor) -> Tensor:
        """Tokens [R, C] with noise [R, S, C] at the level of every step: [R, S, C]."""
        kept = torch.as_tensor(self.schedule.alphas_cumprod, device=tokens.device)[:, None]
        of_token, of_noise = kept.sqrt().to(tokens.dtype), (1 - kept).sqrt().to(tokens.dtype)
        return of_token * tokens[:, None] + of_noise * noise

    def all_steps(self, tokens: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Predicted noise [R, S, C] of tokens [R, C], noised by noise [R, S, C] at every step,
        under conditions z [R, D]."""
        self.cursor.set(0, self.steps)
        y = self.times() + self.net.cond_embed(z)[:, None]  # [R, S, w]
        return self.net(self.noised(tokens, noise), y).chunk(2, -1)[0]

    def sample(
        self,
        z: Tensor,
        noise: Tensor,
        times: Tensor,
        temperature: float | Tensor = 1.0,
        cfg: float | Tensor | None = None,
    ) -> Tensor:
        """Tokens [R, C] under conditions z [R, D] from noise [S, R, C]: the initial state, then
        that of each step but the last. The state keeps the dtype of the noise: the first steps
        multiply its rounding by thousands. times [S, w]: what ``times`` gives.

        cfg: strength of guidance; z is then [2 R, D], conditional rows before unconditional ones.
        """
        s, x, condition = self.schedule, noise[0], self.net.cond_embed(z)
        left = self.steps
        if self.begins_in_noise:  # the first start is 0, its variance the greater one
            left -= 1
            x = math.sqrt(s.betas[left]) * (temperature * noise[1])
        for step in reversed(range(left)):
            self.cursor.set(step, 1)
            state = x if cfg is None else torch.cat([x, x])
            y = (times[step] + condition)[:, None]  # [R or 2 R, 1, w]
            out = self.net(state[:, None].to(z.dtype), y, sampling=True)[:, 0].to(x.dtype)
            eps, logits = out[: len(x)].chunk(2, -1)
            if cfg is not None:
                eps = guide(eps, out[len(x) :].chunk(2, -1)[0], cfg - 1)
            kept = s.alphas_cumprod[step]
            start = x * float(np.sqrt(1 / kept)) - eps * float(np.sqrt(1 / kept - 1))
            x = float(s.mean_of_start[step]) * start + float(s.mean_of_state[step]) * x
            if step:
                share = (logits + 1) / 2
                least, most = s.posterior_log_variance[step], np.log(s.betas[step])
                log_variance = share * float(most) + (1 - share) * float(least)
                x = x + torch.exp(0.5 * log_variance) * (temperature * noise[self.steps - step])
        return x
