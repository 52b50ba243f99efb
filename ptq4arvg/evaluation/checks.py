"""What is asked of an evaluation before anything is drawn, which may take days."""

from __future__ import annotations

from pathlib import Path

from ..models import ARVGModel
from ..serialize import check_writable
from .features import FeatureNetwork
from .figures import ImageReference
from .manifold import NEIGHBOURS
from .protocol import MODEL_METRICS, Protocol
from .spaces import FeatureSpace

__all__ = ["check_files", "check_float", "check_images", "check_resamples", "check_space"]


def check_space(protocol: Protocol, space: FeatureSpace) -> None:
    """ValueError unless all that ``protocol`` measures can be measured in ``space``."""
    if space.name != protocol.space:
        raise ValueError(
            f"{protocol.name} measures in the {protocol.space} feature space; this is the "
            f"{space.name} one"
        )
    there = list(space.figures)
    if isinstance(space.network, FeatureNetwork):
        there.append("bundled_accuracy")
    wrong = [name for name in protocol.metrics if name not in (*there, *MODEL_METRICS)]
    if wrong:
        raise ValueError(
            f"{protocol.name} measures {', '.join(wrong)}, which the {space.name} feature space "
            f"does not have; it has {', '.join(there)}, and of a model {', '.join(MODEL_METRICS)}. "
            'Type protocol.with_(metrics=("NAME", ...))'
        )


def check_float(model: ARVGModel | None) -> None:
    """ValueError for a float model that is quantized."""
    if model is not None and model.report is not None:
        raise ValueError(
            f"evaluate: float_model is {model.name} quantized to {model.report.scheme}; wanted the "
            f"float model. Type float_model=ptq4arvg.load_model({model.name!r})"
        )


def check_resamples(resamples: int) -> None:
    """ValueError for a number of resamples of which there is no interval."""
    if resamples < 0 or resamples == 1:
        raise ValueError(f"{resamples} resamples; wanted at least 2 for intervals, or 0 for none")


def check_images(protocol: Protocol, reference: ImageReference, drawn: bool = False) -> None:
    """ValueError for too few images for precision and recall, if there are any to take them
    against: those of the reference, or else as many as the protocol's, which are ``drawn``."""
    names = [name for name in protocol.metrics if name.endswith(("precision", "recall"))]
    others = protocol.images if drawn else None
    if reference.features is not None:
        others = len(reference.features)
    if names and others is not None and min(protocol.images, others) <= NEIGHBOURS:
        raise ValueError(
            f"{protocol.name}: {protocol.images} images against {others}; {' and '.join(names)} "
            f"want at least {NEIGHBOURS + 1} of both, so that each has {NEIGHBOURS} neighbours. "
            f"Type --images {NEIGHBOURS + 1} or more, or a protocol without these metrics"
        )


def check_files(samples: str | Path | None, parts: str | Path | None) -> None:
    """ValueError if the images cannot be written to ``samples``, or batches to ``parts``."""
    if samples is not None:
        check_writable(samples, folder=False)
    if parts is not None:
        check_writable(parts)
