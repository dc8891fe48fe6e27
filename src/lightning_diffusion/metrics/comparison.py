"""Compares samples with real images in the features of one extractor."""

import json
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.metrics.cache import cached
from lightning_diffusion.metrics.distances.extrapolation import least
from lightning_diffusion.metrics.distances.manifold import nearest
from lightning_diffusion.metrics.extractors.base import Extractor, Features, ImageSet
from lightning_diffusion.metrics.reference import Reference, reference
from lightning_diffusion.metrics.scores import MIN_SAMPLES, Score, bias, directions, label, names, scores
from lightning_diffusion.system.progress import Phase

NEAR = 0.01  # a sample nearer than this quantile of the held-out images' distances is a near-copy


class Neighbours(NamedTuple):
    """The real images that are nearest to each sample.

    Args:
        distances, indices: of the nearest real images, (N, k), the nearest first.
        near_copies: share of samples that are nearer to a real image than 99% of the held-out images; 0.01 for samples
            as new as those. None without held-out images.
    """

    distances: Tensor
    indices: Tensor
    near_copies: float | None


class Comparison:
    """Scores samples, and held-out images for comparison, against real images.

    Args:
        extractor: of features.
        real: the images that samples should look like.
        held_out: other images of their kind, for the floor: the scores of a perfect model. None if there are none.
        device: of the extractor.
        extrapolate: whether to report also the Fréchet distance of infinitely many samples, as fd_…_inf.

    Raises:
        ValueError: fewer than ten real images, or what the extractor's `check` raises.
    """

    def __init__(
        self,
        extractor: Extractor,
        real: ImageSet,
        held_out: ImageSet | None = None,
        device: torch.device | str = "cpu",
        extrapolate: bool = False,
    ) -> None:
        self.extractor, self.held_out, self.device, self.extrapolate = extractor, held_out, device, extrapolate
        extractor.prepare(real, held_out)
        self.reference: Reference = reference(extractor, real, device)

    def __call__(self, samples: Features) -> dict[str, Score]:
        """The scores of samples, by the names under which they are reported."""
        with Phase("scores: comparing the features"):
            found = scores(samples, self.reference, self.extrapolate and self._suffices(len(samples.vectors)))
        return {label(self.extractor, name): score for name, score in found.items()}

    def check(self, count: int) -> None:
        """Raises ValueError if `count` samples are too few to extrapolate from."""
        if self.extrapolate and not self._suffices(count):
            d = self.reference.vectors.shape[1]
            raise ValueError(
                f"extrapolate=true: {count} samples in {d} dimensions are too few; choose num_samples={least(d)} or "
                "more, or extrapolate=false"
            )

    @property
    def names(self) -> list[str]:
        """The names of the scores, the Fréchet distance first."""
        return names(self.extractor)

    def floor(self, count: int) -> dict[str, Score]:
        """The scores of `count` held-out images, or of all if there are fewer; empty if there are too few."""
        if self.held_out is None or min(count, len(self.held_out)) < MIN_SAMPLES:
            return {}
        images, N = self.held_out, min(count, len(self.held_out))

        def make() -> tuple[dict[str, Tensor], dict[str, str]]:
            found = self(self.extractor.extract(images, N, device=self.device, what="held-out images"))
            return {}, {"scores": json.dumps({name: list(score) for name, score in found.items()})}

        extrapolated = " at infinity" if self.extrapolate and self._suffices(N) else ""
        key = f"{self.reference.hash} {images.fingerprint()} {N}{extrapolated} {' '.join(self.names)}"
        _, words = cached(self.extractor.cache_dir, f"floor-{self.extractor.name}", key, make)
        return {name: Score(*values) for name, values in json.loads(words["scores"]).items()}

    def beside_floor(self, found: dict[str, Score], count: int) -> dict[str, dict[str, Any]]:
        """Scores of `count` samples as plain containers, each with the best direction and the score of held-out
        images."""
        floor, best = self.floor(count), directions(self.extractor)
        return {
            name: score._asdict() | {"best": best[name]} | ({"floor": floor[name]._asdict()} if name in floor else {})
            for name, score in found.items()
        }

    def neighbours(self, samples: Features, k: int = 5) -> Neighbours:
        """The real images that are nearest to each sample."""
        with Phase("scores: the samples' nearest real images"):
            distances, found = nearest(samples.vectors, self.reference.vectors, k)
        near_copies = None
        if self.held_out is not None:
            near_copies = float((distances[:, 0] < self._near(self.held_out)).double().mean())
        return Neighbours(distances, self.reference.indices[found], near_copies)

    def near_copies(self, near: Neighbours) -> dict[str, dict[str, Any]]:
        """The share of near-copies by its name, as `beside_floor` gives scores; empty without held-out images."""
        if near.near_copies is None:
            return {}
        found = {"value": near.near_copies, "num_samples": len(near.distances), "floor": {"value": NEAR}}
        return {self.extractor.label("near_copies"): found}

    def _suffices(self, count: int) -> bool:
        return count >= least(self.reference.vectors.shape[1])

    def _near(self, held_out: ImageSet) -> float:
        """The distance to the nearest real image that 99% of the held-out images exceed."""

        def make() -> tuple[dict[str, Tensor], dict[str, str]]:
            vectors = self.extractor.extract(held_out, device=self.device, what="held-out images").vectors
            distances, _ = nearest(vectors, self.reference.vectors, 1)
            return {}, {"near": str(float(distances[:, 0].quantile(NEAR)))}

        key = f"near {self.reference.hash} {held_out.fingerprint()}"
        return float(cached(self.extractor.cache_dir, f"near-{self.extractor.name}", key, make)[1]["near"])

    def how(self) -> dict[str, Any]:
        """The conditions of a score: the extractor, its hash and resizing, and the reference's hash and size."""
        return {
            "extractor": self.extractor.name,
            "extractor_hash": self.extractor.identity[:16],
            "resize": self.extractor.resize,
            **self.extractor.note(),
            "reference_hash": self.reference.hash[:16],
            "num_real": self.reference.moments.number,
        }

    def bias(self, samples: Features) -> str | None:
        """A warning if the samples are too few for the Fréchet distance, or None."""
        return bias(samples, self.reference)
