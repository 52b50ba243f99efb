"""How good a quantized model is: its tokens against the float model's, its images against others.

A ``Protocol`` says how many images are drawn, how, and what is measured; a ``Result`` carries it.
Published figures are taken in the feature space of an Inception network whose weights are not
bundled; figures in the small bundled feature space compare runs of this package with one another
at the same number of images, and nothing else.
"""

from .agreement import Agreement, agreement, evaluation_rows, float_logits, relative_error
from .divergence import FirstDivergence, first_divergence
from .features import FeatureNetwork, class_accuracy, load_features, load_reference
from .figures import Figure, ImageReference
from .frechet import FeatureStatistics, distance_interval, frechet_distance
from .inception_score import inception_score
from .manifold import precision_recall
from .protocol import PROTOCOLS, Protocol, Result, find_protocol, markdown, read_result, table
from .run import evaluate, evaluate_samples
from .spaces import bundled_reference, bundled_space, inception_space, read_reference
from .yardstick import Yardstick, draw_images, linear_bytes

__all__ = [
    "Agreement",
    "FeatureNetwork",
    "FeatureStatistics",
    "Figure",
    "FirstDivergence",
    "ImageReference",
    "PROTOCOLS",
    "Protocol",
    "Result",
    "Yardstick",
    "agreement",
    "bundled_reference",
    "bundled_space",
    "class_accuracy",
    "distance_interval",
    "evaluate",
    "evaluate_samples",
    "draw_images",
    "evaluation_rows",
    "find_protocol",
    "first_divergence",
    "float_logits",
    "frechet_distance",
    "inception_score",
    "inception_space",
    "linear_bytes",
    "load_features",
    "load_reference",
    "markdown",
    "precision_recall",
    "read_reference",
    "read_result",
    "relative_error",
    "table",
]
