"""Semantic segmentation as a family: the class of each pixel of an image."""

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.image_size import ImageSize, height_width
from lightning_diffusion.codecs.masks import IGNORED
from lightning_diffusion.codecs.pixels import to_model
from lightning_diffusion.models.contracts import Model, Predictor


class Segmentation(Model, Predictor):
    """p(class of pixel | image) = softmax of a network's outputs, which have the size of the image.

    Args:
        network: images in [−1, 1], (B, C, H, W) -> logits (B, K, H, W).
        channels: of the images.
        image_size: n of squares, or [H, W].
        mask_classes: K, from 2 to 255, with the background; None if the data have no masks.

    Raises:
        ValueError: no masks, or a number out of range.

    Ref: U-Net, §2 and Eq. 1
    """

    def __init__(
        self, network: nn.Module, channels: int, image_size: ImageSize, mask_classes: int | None = None
    ) -> None:
        super().__init__()
        if mask_classes is None:
            raise ValueError("model=segmentation: these data have no masks; choose experiment=scenes or data=scenes")
        if not 2 <= mask_classes <= IGNORED:
            raise ValueError(f"model.mask_classes={mask_classes}: choose a number from 2 to {IGNORED}")
        self.unet, self.mask_classes = network, mask_classes
        self.shape, self.num_classes = (channels, *height_width(image_size)), None

    @property
    def network(self) -> nn.Module:
        return self.unet

    def example(self, count: int, device: str) -> tuple[Tensor]:
        return (torch.zeros(count, *self.shape, device=device),)

    def logits(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, K, H, W), whatever the network's precision."""
        output: Tensor = self.unet(to_model(images))
        return output.float()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        return self.logits(images.to(self.device)).argmax(1).to(torch.uint8)
