"""Semantic segmentation as a family: the class of each pixel of an image, and by choice its instance."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.image_size import ImageSize, height_width
from lightning_diffusion.codecs.masks import IGNORED
from lightning_diffusion.codecs.pixels import to_model
from lightning_diffusion.models.contracts import Instances, Model, Predictor
from lightning_diffusion.models.segmentation.instances import OUTPUTS, grouped


class Outputs(NamedTuple):
    """The network's outputs in float32: logits of the classes (B, K, H, W), and with instances the heat map of their
    centres (B, 1, H, W) and the offsets to them (B, 2, H, W); otherwise these have no channels."""

    logits: Tensor
    heat: Tensor
    offsets: Tensor


class Segmentation(Model, Predictor):
    """p(class of pixel | image) = softmax of a network's outputs, which have the size of the image.

    Args:
        network: images in [−1, 1], (B, C, H, W) -> K channels, and 3 more for instances; or a function of
            `out_channels` that makes such a network.
        channels: of the images.
        image_size: n of squares, or [H, W].
        mask_classes: K, from 2 to 255, with the background; None if the data have no masks.
        time: of DDPM's clock, 0 … 1000, which a network of a diffusion model gets with every image. 0 means an image
            without noise. None for a network that takes images only.
        instances: whether the network also separates the instances of a class (see `instances.grouped`).

    Raises:
        ValueError: no masks, a number out of range, or a network whose number of outputs cannot be chosen.

    Ref: U-Net, §2 and Eq. 1; Panoptic-DeepLab, Cheng et al. 2020 (instances)
    """

    mask_classes: int

    def __init__(
        self,
        network: nn.Module | Callable[..., nn.Module],
        channels: int,
        image_size: ImageSize,
        mask_classes: int | None = None,
        time: float | None = None,
        instances: bool = False,
    ) -> None:
        super().__init__()
        if mask_classes is None:
            raise ValueError("model=segmentation: these data have no masks; choose experiment=scenes or data=scenes")
        if not 2 <= mask_classes <= IGNORED:
            raise ValueError(f"model.mask_classes={mask_classes}: choose a number from 2 to {IGNORED}")
        if time is not None and not 0 <= time <= 1000:
            raise ValueError(f"model.time={time}: choose a number from 0 to 1000, or null")
        if not isinstance(network, nn.Module):
            network = _with_outputs(network, mask_classes + OUTPUTS * instances)
        self.unet, self.mask_classes, self.time, self.has_instances = network, mask_classes, time, instances
        self.shape, self.num_classes = (channels, *height_width(image_size)), None

    @property
    def network(self) -> nn.Module:
        return self.unet

    def example(self, count: int, device: str) -> tuple[Tensor, ...]:
        return self._inputs(torch.zeros(count, *self.shape, device=device))

    def outputs(self, images: Tensor) -> Outputs:
        """uint8 (B, C, H, W) -> outputs in float32, whatever the network's precision."""
        output: Tensor = self.unet(*self._inputs(to_model(images)))
        K = self.mask_classes
        return Outputs(*output.float().tensor_split([K, K + 1], dim=1))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        return self.outputs(images.to(self.device)).logits.argmax(1).to(torch.uint8)

    @torch.no_grad()
    def instances(self, images: Tensor) -> Instances:
        logits, heat, offsets = self.outputs(images.to(self.device))
        return grouped(logits.softmax(1), heat, offsets)

    def _inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,) if self.time is None else (x, torch.full((len(x),), self.time, device=x.device))


def _with_outputs(network: Callable[..., nn.Module], count: int) -> nn.Module:
    """The network with this number of outputs for each pixel."""
    function = getattr(network, "func", network)
    if "out_channels" not in inspect.signature(function).parameters:
        raise ValueError(
            f"backbone: a {function.__name__} has no outputs for masks; choose backbone=unet_lecture, unet or adm"
        )
    return network(out_channels=count)
