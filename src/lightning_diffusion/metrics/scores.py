"""The family of scores of samples against a reference."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.metrics.distances.extrapolation import extrapolated
from lightning_diffusion.metrics.distances.frechet import frechet_distance, moments
from lightning_diffusion.metrics.distances.inception_score import inception_score
from lightning_diffusion.metrics.distances.kernel import kernel_distance
from lightning_diffusion.metrics.distances.manifold import overlap
from lightning_diffusion.metrics.extractors.base import Extractor, Features
from lightning_diffusion.metrics.reference import Reference

MOST_PAIRED = 10_000  # images of each set, where every one meets every other
MIN_SAMPLES = 10  # samples: the parts of the Inception Score
AT_INFINITY = "fd_inf"
NAMES = ("fd", "kd", "is", "precision", "recall", "density", "coverage")


class Score(NamedTuple):
    """A number, its spread where one is defined, and over how many samples and real images it was taken.

    spread: the deviation of the Inception Score's parts; the standard error of an extrapolated distance.
    """

    value: float
    spread: float | None
    num_samples: int
    num_real: int


def scores(samples: Features, real: Reference, extrapolate: bool = False) -> dict[str, Score]:
    """By name: fd (Fréchet distance), on request fd_inf (of infinitely many samples), kd (kernel distance), is
    (Inception Score, where the extractor classifies), precision, recall, density, coverage.

    Raises:
        ValueError: fewer than ten samples or reference images, or too few to extrapolate.
    """
    N, M = len(samples.vectors), real.moments.number
    if min(N, M) < MIN_SAMPLES:
        raise ValueError(f"{N} samples against {M} real images: at least {MIN_SAMPLES} of each are needed")
    x, y = _some(samples.vectors), _some(real.vectors)
    paired = (None, len(x), len(y))
    found = {"fd": Score(frechet_distance(moments(samples.vectors), real.moments), None, N, M)}
    if extrapolate:
        found[AT_INFINITY] = Score(*extrapolated(samples.vectors, real.moments), N, M)
    found["kd"] = Score(kernel_distance(x, y), *paired)
    if samples.logits is not None:
        found["is"] = Score(*inception_score(samples.logits), N, 0)
    found |= {name: Score(value, *paired) for name, value in overlap(x, y)._asdict().items()}
    return found


def names(extractor: Extractor) -> list[str]:
    """What the scores in an extractor's features are reported by, the Fréchet distance first."""
    return [extractor.label(name) for name in NAMES if name != "is" or extractor.classifies]


def bias(samples: Features, real: Reference) -> str | None:
    """What to say where there are too few images for the Fréchet distance to mean what it says."""
    fewest, d = min(len(samples.vectors), real.moments.number), samples.vectors.shape[1]
    if fewest > d:
        return None
    return f"{fewest} images in {d} dimensions: the Fréchet distance is biased upwards, compare at equal N alone"


def _some(vectors: Tensor) -> Tensor:
    """At most MOST_PAIRED rows, evenly spread."""
    return vectors[torch.linspace(0, len(vectors) - 1, min(len(vectors), MOST_PAIRED), dtype=torch.float64).long()]
