"""How close a quantized model is to the float one: features of images, and agreement of tokens.

Distances between image sets are Frechet distances in a small bundled feature space. They compare
runs of this package with one another at the same number of images, and nothing else.
"""

from .agreement import Agreement, agreement, evaluation_rows, float_logits, relative_error
from .features import FeatureNetwork, class_accuracy, load_features, load_reference
from .frechet import FeatureStatistics, distance_interval, frechet_distance
from .yardstick import Yardstick, draw_images, linear_bytes

__all__ = [
    "Agreement",
    "FeatureNetwork",
    "FeatureStatistics",
    "Yardstick",
    "agreement",
    "class_accuracy",
    "distance_interval",
    "draw_images",
    "evaluation_rows",
    "float_logits",
    "frechet_distance",
    "linear_bytes",
    "load_features",
    "load_reference",
    "relative_error",
]
