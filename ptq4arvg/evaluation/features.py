"""The bundled feature network: a small classifier whose pooled features span the feature space."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FeatureNetwork", "class_accuracy", "load_features", "load_reference"]

# (input channels, output channels, stride) of every 3x3 convolution.
CONVOLUTIONS = ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 2))
_BUNDLED = Path(__file__).parent.parent / "data" / "var-tiny"


class FeatureNetwork(nn.Module):
    """Six 3x3 convolutions with ReLU, the mean over space, and a linear classifier on top.

    Batch norm is folded into the convolutions' biases. Images come as everywhere in this package,
    [n, 3, H, W] float in [0, 1]; the network itself was trained on 32x32 pixels in [-1, 1].
    """

    def __init__(self, classes: int = 32) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(cin, cout, 3, stride=stride, padding=1) for cin, cout, stride in CONVOLUTIONS
        )
        self.fc = nn.Linear(CONVOLUTIONS[-1][1], classes)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features float32 [n, 128]."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"FeatureNetwork: images have shape {list(images.shape)}; wanted [n, 3, H, W] "
                "with values in [0, 1]"
            )
        x = images.to(self.fc.weight) * 2 - 1
        for conv in self.convs:
            x = F.relu(conv(x))
        return x.mean((2, 3))  # [n, 128, h, w] -> [n, 128]

    def forward(self, images: Tensor) -> Tensor:
        """Class logits [n, classes]."""
        return self.fc(self.features(images))


def _file(name: str, folder: str | Path | None) -> Path:
    path = Path(folder or _BUNDLED) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; wanted the folder of a feature network "
            "(features.safetensors, fd_stats.safetensors). Leave it out for the bundled one."
        )
    return path


def load_features(folder: str | Path | None = None) -> FeatureNetwork:
    """The feature network in ``folder`` (default: the bundled one), in float32."""
    state = load_file(_file("features.safetensors", folder))
    # The weights are read from the file: initial ones would be drawn from the global generator.
    with torch.device("meta"):
        network = FeatureNetwork(classes=state["fc.bias"].numel())
    network.load_state_dict({k: v.float() for k, v in state.items()}, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def load_reference(folder: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """(mean [128], covariance [128, 128]) float64 of the reference images' features."""
    state = load_file(_file("fd_stats.safetensors", folder))
    mean = state["mean64"] if "mean64" in state else state["mean"]
    cov = state["cov64"] if "cov64" in state else state["cov"]
    return mean.double(), cov.double()


@torch.inference_mode()
def class_accuracy(network: FeatureNetwork, images: Tensor, labels: Tensor) -> float:
    """Share of ``images`` [n, 3, H, W] that the network puts in their class ``labels`` [n]."""
    if len(images) != len(labels) or not len(labels):
        raise ValueError(
            f"class_accuracy: {len(images)} images, {len(labels)} labels; wanted one label each"
        )
    predicted = network(images).argmax(1)
    return (predicted == labels.to(predicted)).double().mean().item()
