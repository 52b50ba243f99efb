"""Inception weights from a file: the usual port's state dict, or the TensorFlow graph itself."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import closest
from ..models.loading import load_strict_, read_state
from .graphdef import read_constants
from .inception import InceptionNetwork, graph_names

__all__ = ["inception_state", "load_inception"]


def _from_graph(path: Path) -> dict[str, Tensor]:
    constants = read_constants(path)
    state, missing = {}, []
    for ours, theirs in graph_names().items():
        value = constants.get(theirs)
        if value is None:
            missing.append(theirs)
        elif value.ndim == 4:
            state[ours] = value.permute(3, 2, 0, 1).contiguous()  # [kh, kw, in, out]
        else:
            state[ours] = value.T.contiguous() if value.ndim == 2 else value
    if missing:
        raise ValueError(
            f"{str(path)!r} is a graph, but not that of Inception-v3 of 2015-12-05: it lacks "
            f"{len(missing)} constants, such as {missing[0]!r}. {closest(missing[0], constants)}"
        )
    return state


def inception_state(path: str | Path) -> dict[str, Tensor]:
    """State dict in the names of the usual port, from its file (``pt_inception-2015-12-05`` as
    .pth, or .safetensors) or from ``classify_image_graph_def.pb``. ValueError for other files."""
    path = Path(path)
    return _from_graph(path) if path.suffix == ".pb" else read_state(path)


def load_inception(path: str | Path, device: str | torch.device = "cpu") -> InceptionNetwork:
    """The network with the weights of ``path`` (see ``inception_state``), in float32.

    ValueError lists what is missing, unexpected or of another shape.
    """
    # The weights are read from the file: initial ones would be drawn from the global generator.
    with torch.device("meta"):
        network = InceptionNetwork()
    load_strict_(network, inception_state(path), f"Inception weights {str(path)!r}", assign=True)
    return network.eval().requires_grad_(False).to(device)
