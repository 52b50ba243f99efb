"""Token statistics of a quantized model against the float one, under teacher forcing.

Both models read the same token ids and predict every next token; nothing is sampled, so that the
figures carry none of the noise of generation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..calibration import canonical
from ..distributed import current

__all__ = ["Agreement", "agreement", "evaluation_rows", "float_logits", "relative_error"]

SUMS = ("tokens", "divergence", "agreeing", "error", "signal")  # fields of ``Agreement``

Progress = Callable[[str, int, int], None]


@dataclass
class Agreement:
    """Running comparison of logits; ``update`` takes batches, the properties give the figures.

    continuous: the outputs are no logits of a vocabulary, because the tokens are vectors; then no
    token is likely, ``kl`` and ``top1`` are None, and ``relative_error`` is what is left.
    """

    continuous: bool = False
    tokens: int = 0
    divergence: float = 0.0
    agreeing: int = 0
    error: float = 0.0
    signal: float = 0.0

    def update(self, float_logits: Tensor, quant_logits: Tensor) -> Agreement:
        """Add logits [..., V] of both models for the same tokens."""
        if float_logits.shape != quant_logits.shape:
            raise ValueError(
                f"Agreement: float logits {list(float_logits.shape)}, quantized logits "
                f"{list(quant_logits.shape)}; wanted the same shape"
            )
        vocabulary = float_logits.shape[-1]
        fp = float_logits.reshape(-1, vocabulary).float()  # [B, T, V] -> [B T, V]
        q = quant_logits.reshape(-1, vocabulary).float()
        if not torch.isfinite(q).all():
            raise ValueError("Agreement: the quantized model's logits are not all finite")
        self.tokens += fp.shape[0]
        if not self.continuous:
            log_p = F.log_softmax(fp, -1)
            log_q = F.log_softmax(q, -1)
            divergence = (log_p.exp() * (log_p - log_q)).sum(-1).double()
            self.divergence += divergence.sum().item()
            self.agreeing += int((fp.argmax(-1) == q.argmax(-1)).sum())
        self.error += (q - fp).double().square().sum().item()
        self.signal += fp.double().square().sum().item()
        return self

    def _per_token(self, total: float) -> float:
        if not self.tokens:
            raise ValueError("Agreement: no tokens were compared yet; call update first")
        return total / self.tokens

    @property
    def kl(self) -> float | None:
        """Next-token KL(float || quantized) in nats, mean over tokens."""
        divergence = max(self._per_token(self.divergence), 0.0)
        return None if self.continuous else divergence

    @property
    def top1(self) -> float | None:
        """Share of tokens for which both models have the same most likely token."""
        share = self._per_token(self.agreeing)
        return None if self.continuous else share

    @property
    def relative_error(self) -> float:
        """Squared error of the logits over their squared sum."""
        return self._per_token(self.error) / max(self._per_token(self.signal), 1e-300)


def relative_error(float_logits: Tensor, quant_logits: Tensor) -> float:
    """Relative logit error ``sum (q - fp)^2 / sum fp^2``, in float64."""
    fp, q = float_logits.double(), quant_logits.double()
    return ((q - fp).square().sum() / fp.square().sum()).item()


def _rows(ids: Tensor, labels: Tensor, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(ids.split(size), labels.split(size), strict=True)


@torch.inference_mode()
def evaluation_rows(
    model: torch.nn.Module, labels: Tensor, seed: int = 0, ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rows to compare on: (ids [2 n, T] or [2 n, T, C], labels int64 [2 n]), conditional then null
    rows.

    labels [n]: the classes. ids [n, T]: samples of the float model for them, where they exist
    already; otherwise they are drawn with ``seed``, which should not be the calibration's.
    """
    if ids is None:
        ids = model.sample_rows(labels, seed=seed)
    ids, labels = canonical(ids), canonical(labels)
    if len(ids) != len(labels):
        raise ValueError(f"evaluation_rows: {len(ids)} rows of ids, {len(labels)} labels")
    return torch.cat([ids, ids]), torch.cat([labels, torch.full_like(labels, model.null_label)])


@torch.inference_mode()
def float_logits(
    model: torch.nn.Module, ids: Tensor, labels: Tensor, batch_size: int = 16
) -> list[Tensor]:
    """The model's logits [b, T, V] batch by batch, to compare several models with."""
    return [model.replay(i, y) for i, y in _rows(ids, labels, batch_size)]


@torch.inference_mode()
def agreement(
    reference: torch.nn.Module | list[Tensor],
    model: torch.nn.Module,
    ids: Tensor,
    labels: Tensor,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Agreement:
    """Compare ``model`` with ``reference`` on ids [n, T] and labels [n], batch by batch.

    Tokens [n, T, C] that are continuous are compared by the error of the outputs alone.
    reference: the float model, or its ``float_logits`` for the same rows and batch size.
    """
    result = Agreement(continuous=ids.is_floating_point())
    batches = list(_rows(ids, labels, batch_size))
    if isinstance(reference, list) and [len(r) for r in reference] != [len(i) for i, _ in batches]:
        raise ValueError(
            f"agreement: reference logits come in batches of {[len(r) for r in reference]} rows; "
            f"wanted {[len(i) for i, _ in batches]} as ids and batch_size give"
        )
    group, sums = current(), {}
    for number, (i, y) in enumerate(batches):
        if not group.owns(number):
            continue
        fp = reference[number] if isinstance(reference, list) else reference.replay(i, y)
        part = Agreement(result.continuous).update(fp, model.replay(i, y))
        sums[number] = torch.tensor([getattr(part, name) for name in SUMS], dtype=torch.float64)
        if progress:
            progress("agreement", number + 1, len(batches))
    # In the order of the batches, so that the sums are the same whoever made them.
    for part in group.gather_batches(sums):
        for name, value in zip(SUMS, part.tolist(), strict=True):
            setattr(result, name, type(getattr(result, name))(getattr(result, name) + value))
    return result
