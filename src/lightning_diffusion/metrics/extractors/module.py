"""Any network as a feature extractor."""

import re

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_diffusion.codecs.image_size import ImageSize, height_width
from lightning_diffusion.codecs.pixels import to_model
from lightning_diffusion.metrics.extractors.base import Extractor, Features, ImageSet, as_colour


class Module(Extractor):
    """A user's network. It gets images in [−1, 1], and its output, averaged over any positions, is the features.

    Args:
        network: any module, (B, C, H, W) -> (B, d) or (B, d, H', W').
        name: the ending of its scores' names: letters, digits and underscores; not `inception`.
        image_size: side, or [H, W], to which images are resized; None leaves their size.
        colour: whether grey images get three equal channels.
    """

    def __init__(
        self,
        cache_dir: str,
        network: nn.Module,
        name: str,
        image_size: ImageSize | None = None,
        colour: bool = False,
    ) -> None:
        if not re.fullmatch(r"\w+", name) or name == "inception":
            raise ValueError(f"metrics.name={name}: choose letters, digits and underscores, and not `inception`")
        super().__init__(cache_dir)
        self._name, self._given, self.colour = name, network, colour
        self.size = None if image_size is None else height_width(image_size, "metrics.image_size")

    @property
    def name(self) -> str:
        return self._name

    @property
    def resize(self) -> str:
        return "none" if self.size is None else f"{self.size[0]}×{self.size[1]}, bicubic with antialiasing"

    classifies = False

    @property
    def any_size(self) -> bool:
        return self.size is not None and self.colour

    def load(self, train: ImageSet, held_out: ImageSet | None) -> nn.Module:
        return _Network(self._given, self.size, self.colour)


class _Network(nn.Module):
    """uint8 (B, C, H, W) -> Features."""

    def __init__(self, network: nn.Module, size: tuple[int, int] | None, colour: bool) -> None:
        super().__init__()
        self.network, self.size, self.colour = network, size, colour

    def forward(self, images: Tensor) -> Features:
        x = to_model(as_colour(images) if self.colour else images)
        if self.size is not None:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True).clamp(-1, 1)
        vectors = self.network(x)
        return Features(vectors if vectors.ndim == 2 else vectors.flatten(2).mean(2), None)
