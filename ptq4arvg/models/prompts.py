"""Prompts of text-to-image families: a table of text-encoder outputs, which labels are rows of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["PromptTable"]


class PromptTable(nn.Module):
    """Outputs of text encoders, a row per prompt, the empty prompt last.

    Buffers, None while there is no table: ``embeddings`` [P, L, D], ``pooled`` [P, E], ``mask``
    bool [P, L] (True: a word). prompts: how many there are besides the empty one, 0 for no table.
    """

    def __init__(self, prompts: int, words: int, text_dim: int, pooled_dim: int) -> None:
        super().__init__()
        self.shapes = {"embeddings": (words, text_dim), "pooled": (pooled_dim,), "mask": (words,)}
        for name, shape in self.shapes.items():
            dtype = torch.bool if name == "mask" else None
            table = torch.ones(prompts + 1, *shape, dtype=dtype) if prompts else None
            self.register_buffer(name, table)

    def reset_buffers(self) -> None:
        """Show every position, until a table says where there are words."""
        if self.mask is not None:
            self.mask.fill_(True)

    @property
    def count(self) -> int:
        """Prompts besides the empty one. ValueError if there is no table."""
        return len(self._table()[-1]) - 1

    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.mask is None:
            raise ValueError(
                "there are no prompts; call model.set_prompts(embeddings, pooled, mask) with the "
                "text encoders' outputs, the empty prompt last"
            )
        return self.embeddings, self.pooled, self.mask

    @torch.no_grad()
    def set_(self, embeddings: Tensor, pooled: Tensor, mask: Tensor | None, like: Tensor) -> None:
        """Take another table, in the type and on the device of ``like``; no mask: all are words.

        ValueError for other shapes, fewer than two rows, or one without a word.
        """
        mask = torch.ones(embeddings.shape[:2]) if mask is None else mask
        given = {"embeddings": embeddings, "pooled": pooled, "mask": mask}
        count = len(embeddings)
        for name, value in given.items():
            if list(value.shape) != [count, *self.shapes[name]] or count < 2:
                raise ValueError(
                    f"set_prompts: {name} {list(value.shape)}; wanted [prompts, "
                    f"{', '.join(map(str, self.shapes[name]))}], as many prompts in each and at "
                    "least two, the last of them the empty one"
                )
        mask = mask.to(like.device).bool()
        empty = mask.any(1).logical_not().nonzero()
        if len(empty):
            raise ValueError(
                f"set_prompts: the mask of prompt {empty[0].item()} hides every position; wanted "
                "at least one to attend to"
            )
        # What the mask hides would only widen the static ranges of the linears that read it.
        self.embeddings = embeddings.to(like).masked_fill(~mask[..., None], 0.0)
        self.pooled, self.mask = pooled.to(like), mask

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(embeddings [B, L, D], pooled [B, E], mask [B, L]) of labels int64 [B]."""
        return tuple(part[labels] for part in self._table())
