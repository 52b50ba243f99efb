"""Models built by the original repositories: recognised, and run by this package's blocks.

``adopt`` replaces the blocks of such a module in place by ours, which keep the original call
signatures and share its weights, so the user's own sampling and evaluation scripts run on. What is
then quantized is quantized for those scripts too.
"""

from __future__ import annotations

import torch
from torch import nn

from ..models import ARVGModel
from . import mar, par, rar, var

__all__ = ["adopt"]

ADOPTERS = (var, rar, par, mar)


class _Follower(nn.Module):
    """Moves the model with the module that it runs inside, which holds some of its parts only."""

    def __init__(self, model: ARVGModel) -> None:
        super().__init__()
        self._model = (model,)  # a tuple, so that it is not a submodule

    def _apply(self, fn, recurse: bool = True):
        self._model[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)


@torch.inference_mode(False)
def adopt(module: nn.Module, tokenizer: nn.Module | None = None) -> ARVGModel:
    """The ``ARVGModel`` that runs inside ``module`` from now on.

    module: a transformer of an original repository (VAR, RAR, PAR, class-conditional LlamaGen,
    MAR), recognised by the names in its state dict. tokenizer: its image tokenizer, where the
    module does not know it, as only a VAR does. The weights are shared, not copied, but for PAR's
    w1 and w3 and the attentions of MAR's tokenizer; the model is also kept as ``module.ptq4arvg``.
    ValueError names what does not fit, before anything is changed. What moves the module to another
    device or dtype moves the model, too. Forward hooks of the blocks go with them.
    """
    if isinstance(module, ARVGModel):
        return module
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"adopt: {module!r:.80} is a {type(module).__name__}; wanted a model, such as "
            "load_model gives, or a module of an original repository"
        )
    known = module.__dict__.get("ptq4arvg")
    if known is not None:
        if tokenizer is not None:
            raise ValueError(
                "adopt: this module has been adopted before, with its tokenizer; wanted none now"
            )
        return known
    names = set(module.state_dict())
    for adopter in ADOPTERS:
        if adopter.recognises(names):
            # Not an attribute that torch would register: the model holds parts of the module.
            module.__dict__["ptq4arvg"] = model = adopter.adopt(module, tokenizer)
            module.add_module("ptq4arvg_follower", _Follower(model))
            return model
    few = ", ".join(sorted(names)[:3]) or "empty"
    raise ValueError(
        f"adopt: {type(module).__name__} is of no known family: its state dict ({few}, ...) has "
        f"the names of none of {', '.join(a.NAME for a in ADOPTERS)}. For a published size, type "
        "load_model(name, weights=...)"
    )
