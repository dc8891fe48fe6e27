"""The scores of samples against a reference."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.metrics.distances.extrapolation import extrapolated
from lightning_diffusion.metrics.distances.frechet import frechet_distance, moments
from lightning_diffusion.metrics.distances.inception_score import inception_score
from lightning_diffusion.metrics.distances.kernel import kernel_distance
from lightning_diffusion.metrics.distances.manifold import Overlap, overlap
from lightning_diffusion.metrics.distances.vendi import vendi_score
from lightning_diffusion.metrics.extractors.base import Extractor, Features
from lightning_diffusion.metrics.reference import Reference

MOST_PAIRED = 10_000  # images of each set in scores that compare all pairs
MIN_SAMPLES = 10  # one for each part of the Inception Score
AT_INFINITY = "fd_inf"
Best = Literal["min", "max"]


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


@dataclass(frozen=True)
class Inputs:
    """The inputs of a score: features of samples and of real images.

    Args:
        samples: of all samples.
        real: of all real images.
    """

    samples: Features
    real: Reference

    @cached_property
    def N(self) -> int:
        """Number of samples."""
        return len(self.samples.vectors)

    @cached_property
    def M(self) -> int:
        """Number of real images."""
        return self.real.moments.number

    @cached_property
    def some(self) -> tuple[Tensor, Tensor]:
        """At most MOST_PAIRED samples and real images, for scores that compare all pairs."""
        return _some(self.samples.vectors), _some(self.real.vectors)

    def paired(self, value: float) -> Score:
        """A score of `some`."""
        x, y = self.some
        return Score(value, None, len(x), len(y))


@dataclass(frozen=True)
class Declared:
    """Scores that one function computes together.

    Args:
        best: whether the lowest or the highest value is the best, by the name of each score.
        compute: returns these scores in this order.
        classifies: whether they need the logits of an extractor that classifies.
        on_request: whether they are computed only if requested.
    """

    best: dict[str, Best]
    compute: Callable[[Inputs], Iterable[Score]]
    classifies: bool = False
    on_request: bool = False


def _frechet(of: Inputs) -> list[Score]:
    return [Score(frechet_distance(moments(of.samples.vectors), of.real.moments), None, of.N, of.M)]


def _frechet_at_infinity(of: Inputs) -> list[Score]:
    return [Score(*extrapolated(of.samples.vectors, of.real.moments), of.N, of.M)]


def _inception(of: Inputs) -> list[Score]:
    assert of.samples.logits is not None
    return [Score(*inception_score(of.samples.logits), of.N, 0)]


SCORES = (  # in the order in which they are reported
    Declared({"fd": "min"}, _frechet),
    Declared({AT_INFINITY: "min"}, _frechet_at_infinity, on_request=True),
    Declared({"kd": "min"}, lambda of: [of.paired(kernel_distance(*of.some))]),
    Declared({"is": "max"}, _inception, classifies=True),
    Declared(dict.fromkeys(Overlap._fields, "max"), lambda of: map(of.paired, overlap(*of.some))),
    Declared({"vendi": "max"}, lambda of: [Score(vendi_score(of.samples.vectors), None, of.N, 0)]),
)


def scores(samples: Features, real: Reference, extrapolate: bool = False) -> dict[str, Score]:
    """The scores by name: fd (Fréchet distance), fd_inf (extrapolated to infinitely many samples, on request), kd
    (kernel distance), is (Inception Score, if the extractor classifies) and the others of SCORES.

    Raises:
        ValueError: fewer than ten samples or reference images, or too few to extrapolate.
    """
    inputs = Inputs(samples, real)
    if min(inputs.N, inputs.M) < MIN_SAMPLES:
        raise ValueError(
            f"{inputs.N} samples against {inputs.M} real images: at least {MIN_SAMPLES} of each are needed"
        )
    found: dict[str, Score] = {}
    for declared in _available(samples.logits is not None, extrapolate):
        found |= zip(declared.best, declared.compute(inputs), strict=True)
    return found


def label(extractor: Extractor, name: str) -> str:
    """The name under which a score of an extractor's features is reported."""
    return f"{extractor.label('fd')}_inf" if name == AT_INFINITY else extractor.label(name)


def names(extractor: Extractor) -> list[str]:
    """The names under which an extractor's scores are reported, the Fréchet distance first."""
    return [label(extractor, name) for declared in _available(extractor.classifies) for name in declared.best]


def directions(extractor: Extractor) -> dict[str, Best]:
    """Whether the lowest or the highest value is the best, by the name under which each score is reported."""
    available = _available(extractor.classifies, extrapolate=True)
    return {label(extractor, name): best for declared in available for name, best in declared.best.items()}


def _available(classifies: bool, extrapolate: bool = False) -> list[Declared]:
    return [score for score in SCORES if (classifies or not score.classifies) and (extrapolate or not score.on_request)]


def bias(samples: Features, real: Reference) -> str | None:
    """A warning if there are too few images for an unbiased Fréchet distance, or None."""
    fewest, d = min(len(samples.vectors), real.moments.number), samples.vectors.shape[1]
    if fewest > d:
        return None
    return f"{fewest} images in {d} dimensions: the Fréchet distance is biased upwards; compare it at equal N only"


def _some(vectors: Tensor) -> Tensor:
    """At most MOST_PAIRED rows, evenly spread."""
    return vectors[torch.linspace(0, len(vectors) - 1, min(len(vectors), MOST_PAIRED), dtype=torch.float64).long()]
