"""The features of real images that samples are compared with, kept between runs."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.metrics.cache import cached
from lightning_diffusion.metrics.distances.frechet import Moments, moments
from lightning_diffusion.metrics.extractors.base import Extractor, ImageSet
from lightning_diffusion.system.progress import Phase

MAX_VECTORS = 50_000  # feature vectors that are kept


class Reference(NamedTuple):
    """The features of a set of real images.

    Args:
        moments: of all images.
        vectors: features (n, d) of the images with numbers `indices` (n,).
        hash: of the images and the extractor.
    """

    moments: Moments
    vectors: Tensor
    indices: Tensor
    hash: str


def reference(
    extractor: Extractor,
    images: ImageSet,
    device: torch.device | str = "cpu",
) -> Reference:
    """The reference of a set of images, computed once for each pair of images and extractor, by their hashes."""
    with Phase("scores: hashing the training images"):
        identity = f"{images.fingerprint()} {extractor.identity}"

    def make() -> tuple[dict[str, Tensor], dict[str, str]]:
        vectors = extractor.extract(images, device=device, what="the training images").vectors
        m, kept = moments(vectors), _evenly(len(vectors))
        return {"mean": m.mean, "covariance": m.covariance, "vectors": vectors[kept], "indices": kept}, {}

    tensors, _ = cached(extractor.cache_dir, f"reference-{extractor.name}", identity, make)
    m, vectors = Moments(len(images), tensors["mean"], tensors["covariance"]), tensors["vectors"]
    if len(vectors) == len(images) < vectors.shape[1]:
        m = m._replace(factor=moments(vectors).factor)
    return Reference(m, vectors, tensors["indices"], hashlib.sha256(identity.encode()).hexdigest())


def _evenly(count: int) -> Tensor:
    """At most MAX_VECTORS image numbers below count, evenly spread."""
    return torch.linspace(0, count - 1, min(count, MAX_VECTORS), dtype=torch.float64).round().long()
