"""Feature extractors: maps from images to vectors with meaningful distances."""

import hashlib
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lightning_diffusion.metrics.cache import check_writable
from lightning_diffusion.system.progress import Phase


class ImageSet(Protocol):
    """N images of one size, such as a data set of lightning_diffusion.data."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]: ...

    def fingerprint(self) -> str: ...


class Features(NamedTuple):
    """The features of N images.

    Args:
        vectors: float32 (N, d).
        logits: of a classifier of the vectors, (N, K), or None without a classifier.
    """

    vectors: Tensor
    logits: Tensor | None


class Extractor(ABC):
    """A fixed map from uint8 images to features.

    Scores are comparable only if their extractors' identities agree. An extractor is not part of a training module, so
    that no optimizer and no checkpoint contains it.

    Args:
        cache_dir: folder for slow results, which are kept between runs.
    """

    colour = False  # whether it takes only colour images, to which grey ones are converted

    def __init__(self, cache_dir: str) -> None:
        self.cache_dir = cache_dir
        self._network: nn.Module | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """The ending of its scores' names: fd_<name>."""

    @property
    @abstractmethod
    def resize(self) -> str:
        """How images are resized, in words."""

    @property
    def any_size(self) -> bool:
        """Whether it converts images of any shape to one, so that sets of different shapes are comparable."""
        return False

    @property
    def classifies(self) -> bool:
        """Whether it gives logits."""
        return True

    def check(self, train: ImageSet) -> None:
        """Raises ValueError or FileNotFoundError if `prepare` would fail; runs before anything slow."""
        check_writable(self.cache_dir)
        if self.colour:
            as_colour(train[torch.arange(1)][0])

    @abstractmethod
    def load(self, train: ImageSet, held_out: ImageSet | None) -> nn.Module:
        """The network: uint8 (B, C, H, W) -> Features.

        Args:
            train: the images that samples should look like.
            held_out: other images of their kind, or None.
        """

    def label(self, score: str) -> str:
        """The name under which a score is reported."""
        return f"{score}_{self.name}"

    def note(self) -> dict[str, float]:
        """Additional facts to report with its scores."""
        return {}

    def prepare(self, train: ImageSet, held_out: ImageSet | None = None) -> None:
        """Loads the network, once; can take a minute."""
        if self._network is None:
            self._network = self.load(train, held_out).eval().requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        assert self._network is not None, "prepare comes first"
        return self._network

    @property
    def identity(self) -> str:
        """A hash of its name, its resizing and its weights."""
        digest = hashlib.sha256(f"{self.name} {self.resize} {self.network}".encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.inference_mode()
    def __call__(self, images: Tensor, device: torch.device | str = "cpu") -> Features:
        """Features, on the CPU, of uint8 images (B, C, H, W)."""
        if images.dtype != torch.uint8:
            raise TypeError(f"expected uint8 images, not {images.dtype}")
        vectors, logits = self.network.to(device)(images.to(device))
        return Features(vectors.float().cpu(), None if logits is None else logits.float().cpu())

    def extract(
        self,
        images: ImageSet,
        count: int | None = None,
        batch_size: int = 250,
        device: torch.device | str = "cpu",
        what: str = "images",
    ) -> Features:
        """Features of the first `count` images of a set, or of all.

        Args:
            what: the images, in words, for the progress.
        """
        parts, N = [], len(images) if count is None else count
        with Phase(f"scores: features of {what}", N, "image") as phase:
            for indices in torch.arange(N).split(batch_size):
                parts.append(self(images[indices][0], device))
                phase.advance(len(indices))
        return concatenate(parts)


def concatenate(parts: list[Features]) -> Features:
    logits = [part.logits for part in parts if part.logits is not None]
    return Features(torch.cat([part.vectors for part in parts]), torch.cat(logits) if logits else None)


def as_colour(images: Tensor) -> Tensor:
    """Colour images (B, 3, H, W), to which grey ones (B, 1, H, W) are expanded.

    Raises:
        ValueError: images with any other number of channels.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(
            f"metrics: this extractor takes grey or colour images, not {images.shape[1]} channels; choose "
            "metrics=classifier, or metrics=module with metrics.colour=false"
        )
    return images.expand(-1, 3, -1, -1)
