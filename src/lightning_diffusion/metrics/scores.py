"""The scores of samples against a reference."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.metrics.distances.extrapolation import extrapolated
from lightning_diffusion.metrics.distances.frechet import frechet_distance, moments
from lightning_diffusion.metrics.distances.inception_score import inception_score
from lightning_diffusion.metrics.distances.kernel import kernel_distance
from lightning_diffusion.metrics.distances.manifold import overlap
from lightning_diffusion.metrics.distances.vendi import vendi_score
from lightning_diffusion.metrics.extractors.base import Extractor, Features
from lightning_diffusion.metrics.reference import Reference

MOST_PAIRED = 10_000  # images of each set in scores that compare all pairs
MIN_SAMPLES = 10  # one for each part of the Inception Score
AT_INFINITY = "fd_inf"
NAMES = ("fd", "kd", "is", "precision", "recall", "density", "coverage", "vendi")


class Score(NamedTuple):
    """A score, and the numbers of samples and real images that it was computed from.

    Args:
        value: of the score.
        spread: standard deviation of the Inception Score's parts, or standard error of an extrapolated distance.
        num_samples, num_real: numbers of images.
    """

    value: float
    spread: float | None
    num_samples: int
    num_real: int


def scores(samples: Features, real: Reference, extrapolate: bool = False) -> dict[str, Score]:
    """The scores by name: fd (Fréchet distance), fd_inf (extrapolated to infinitely many samples, on request), kd
    (kernel distance), is (Inception Score, if the extractor classifies), precision, recall, density, coverage, vendi.

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
    found["vendi"] = Score(vendi_score(samples.vectors), None, N, 0)
    return found


def names(extractor: Extractor) -> list[str]:
    """The names under which an extractor's scores are reported, the Fréchet distance first."""
    return [extractor.label(name) for name in NAMES if name != "is" or extractor.classifies]


def bias(samples: Features, real: Reference) -> str | None:
    """A warning if there are too few images for an unbiased Fréchet distance, or None."""
    fewest, d = min(len(samples.vectors), real.moments.number), samples.vectors.shape[1]
    if fewest > d:
        return None
    return f"{fewest} images in {d} dimensions: the Fréchet distance is biased upwards; compare it at equal N only"


def _some(vectors: Tensor) -> Tensor:
    """At most MOST_PAIRED rows, evenly spread."""
    return vectors[torch.linspace(0, len(vectors) - 1, min(len(vectors), MOST_PAIRED), dtype=torch.float64).long()]
