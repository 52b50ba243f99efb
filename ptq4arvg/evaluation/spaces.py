"""Feature spaces: which network looks at images, what its figures are called, its references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.hashing import content_hash
from .bootstrap import Progress
from .features import FeatureNetwork, load_features, load_reference
from .figures import Features, Figure, ImageReference, Moments, image_figures, moments
from .inception import SPATIAL_WIDTH, InceptionNetwork
from .inception_file import load_inception
from .samples import SampleFile

__all__ = ["FeatureSpace", "bundled_reference", "bundled_space", "inception_space",
           "read_reference"]  # fmt: skip

# Name of a figure in results -> its name among ``image_figures``.
INCEPTION_FIGURES = MappingProxyType({
    "fid": "frechet", "sfid": "spatial_frechet", "inception_score": "score",
    "precision": "precision", "recall": "recall",
})  # fmt: skip
BUNDLED_FIGURES = MappingProxyType({
    "bundled_frechet": "frechet", "bundled_score": "score",
    "bundled_precision": "precision", "bundled_recall": "recall",
})  # fmt: skip
ROUNDING = 1e-4  # of a stored covariance, against its largest eigenvalue


@dataclass(frozen=True)
class FeatureSpace:
    """A network and what is measured with it. hash: of its weights; figures: see above."""

    name: str
    network: InceptionNetwork | FeatureNetwork
    hash: str
    figures: Mapping[str, str]

    @torch.inference_mode()
    def look(self, images: Tensor, into: Features) -> Tensor:
        """Add what the network sees in images uint8 [n, H, W, 3]; returns its classes [n]."""
        if isinstance(self.network, InceptionNetwork):
            pool, spatial = self.network(images)
            probabilities = self.network.probabilities(pool)
            into.add(pool, probabilities, spatial)
        else:
            pixels = images.to(self.device).permute(0, 3, 1, 2).float() / 255  # [n, 3, H, W]
            pool = self.network.features(pixels)
            probabilities = self.network.fc(pool).softmax(1)
            into.add(pool, probabilities)
        return probabilities.argmax(1).cpu()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.fc.weight.device

    def gather(
        self, batches: Iterable[Tensor], count: int, progress: Progress | None = None
    ) -> Features:
        """Features of all images of ``batches`` uint8 [n, H, W, 3], ``count`` in number."""
        features = Features()
        for images in batches:
            self.look(images, features)
            if progress:
                progress("features", len(features), count)
        return features

    def measure(
        self,
        features: Features,
        reference: ImageReference,
        names: Iterable[str],
        seed: int = 0,
        resamples: int = 200,
        progress: Progress | None = None,
    ) -> dict[str, Figure]:
        """The figures ``names`` of this space; names of others are left out."""
        wanted = {name: self.figures[name] for name in names if name in self.figures}
        found = image_figures(features, reference, tuple(wanted.values()), seed, resamples,
                              self.device, progress)  # fmt: skip
        return {name: found[theirs] for name, theirs in wanted.items()}


def bundled_space() -> FeatureSpace:
    """The small bundled network's. Its figures compare runs of this package and nothing else."""
    network = load_features()
    return FeatureSpace("bundled", network, content_hash({}, network.state_dict()), BUNDLED_FIGURES)


def inception_space(path: str | Path, device: str | torch.device = "cpu") -> FeatureSpace:
    """That of published figures, with the weights of ``path`` (see ``inception_state``)."""
    network = load_inception(path, device)
    return FeatureSpace(
        "inception", network, content_hash({}, network.state_dict()), INCEPTION_FIGURES
    )


def bundled_reference(features: Tensor | None = None) -> ImageReference:
    """The training images of the bundled model. features [m, 128]: of the images that precision
    and recall are taken against, since those of the training images are not bundled."""
    mean, cov = load_reference()
    return ImageReference(
        "training images of the bundled model",
        content_hash({}, {"mean": mean, "cov": cov}),
        (mean, cov),
        features=features,
        no_features="the training images themselves are not bundled",
    )


def read_reference(
    path: str | Path, space: FeatureSpace, progress: Progress | None = None, images: bool = True
) -> ImageReference:
    """A reference in ADM's ``.npz``: mu, sigma (mu_s, sigma_s), or images as arr_0, or both.

    Statistics that are there are used as they are; others are made of the images. images=False
    leaves the images alone where there are statistics, without precision and recall. ValueError if
    there is neither, or if the statistics are of another space, not finite or no covariance.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = set(file.files)
            stored = {key: torch.from_numpy(file[key]).double()
                      for key in ("mu", "sigma", "mu_s", "sigma_s") if key in keys}  # fmt: skip
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {str(path)!r}; wanted a reference as .npz") from None
    except Exception as error:  # NumPy's refusals have no common type
        raise ValueError(f"{str(path)!r} cannot be read as a reference: {error}") from None
    pool, spatial = (
        (stored[f"mu{end}"], stored[f"sigma{end}"])
        if {f"mu{end}", f"sigma{end}"} <= stored.keys()
        else None
        for end in ("", "_s")
    )
    if pool is None and "arr_0" not in keys:
        raise ValueError(
            f"{str(path)!r} holds {', '.join(sorted(keys)) or 'nothing'}; wanted mu and sigma, or "
            "images as arr_0"
        )
    if pool is not None:
        _check_moments(path, space, ("mu", "sigma"), pool, space.network.fc.in_features)
    if spatial is not None:
        width = SPATIAL_WIDTH if space.name == "inception" else spatial[0].numel()
        _check_moments(path, space, ("mu_s", "sigma_s"), spatial, width)
    features = None
    if "arr_0" in keys and (images or pool is None):
        file = SampleFile(path)
        seen = space.gather(file.batches(), len(file), progress)
        features = torch.cat(seen.pool)
        if pool is None:
            pool = moments(seen.pool)
            spatial = moments(seen.spatial) if seen.spatial else None
    return ImageReference(path.name, _statistics_hash(pool, spatial), pool, spatial, features)


def _check_moments(
    path: Path, space: FeatureSpace, names: tuple[str, str], given: Moments, width: int
) -> None:
    """ValueError unless they are a mean and a covariance of ``width`` features."""
    (mu, sigma), (mean, cov) = names, given
    if (mean.shape, cov.shape) != ((width,), (width, width)):
        raise ValueError(
            f"{str(path)!r}: {mu} {list(mean.shape)} and {sigma} {list(cov.shape)} are not of "
            f"the {space.name} features; wanted [{width}] and [{width}, {width}]"
        )
    for name, tensor in zip(names, given, strict=True):
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{str(path)!r}: {name} holds a value that is not finite; wanted statistics of "
                "finite features"
            )
    values = torch.linalg.eigvalsh((cov + cov.mT) / 2)
    skew, least, scale = (cov - cov.mT).abs().max(), values[0], values.abs().max()
    if skew > ROUNDING * scale or least < -ROUNDING * scale:
        raise ValueError(
            f"{str(path)!r}: {sigma} is no covariance: its least eigenvalue is {least:.3g}, and it "
            f"differs from its transpose by up to {skew:.3g}; wanted none below 0, and symmetry. "
            f"Type {sigma}=np.cov(features, rowvar=False)"
        )


def _statistics_hash(pool: tuple[Tensor, Tensor], spatial: tuple[Tensor, Tensor] | None) -> str:
    tensors = dict(zip(("mu", "sigma"), pool, strict=True))
    if spatial is not None:
        tensors |= dict(zip(("mu_s", "sigma_s"), spatial, strict=True))
    return content_hash({}, tensors)
