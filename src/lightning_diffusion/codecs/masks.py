"""Masks, which give each pixel of an image a class, and pictures of them."""

import colorsys
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED: Final = 255  # value of a pixel whose class is unknown: neither trained on nor scored
GREY: Final = 128  # of ignored pixels, and of the lines between panels
GOLDEN: Final = 0.618034  # turns of the colour wheel from one class to the next, so that neighbours differ


def palette(num_classes: int) -> Tensor:
    """Colours of the values 0 … 255, uint8 (256, 3): 0 is black, each other class has its hue, the rest is grey."""
    colours = torch.full((256, 3), GREY, dtype=torch.uint8)
    colours[0] = 0
    for k in range(1, num_classes):
        hue = colorsys.hsv_to_rgb(k * GOLDEN % 1, 0.5 + 0.5 * (k % 2), 1)
        colours[k] = torch.tensor([round(255 * part) for part in hue], dtype=torch.uint8)
    return colours


def coloured(masks: Tensor, num_classes: int) -> Tensor:
    """Masks (B, H, W) -> uint8 (B, 3, H, W)."""
    return palette(num_classes)[masks.long()].movedim(-1, 1)


def overlaid(images: Tensor, masks: Tensor, num_classes: int) -> Tensor:
    """Images (B, C, H, W) with the colours of their masks (B, H, W) at half strength, except on the background.

    Returns:
        uint8 (B, 3, H, W).
    """
    shown = as_colour(images)
    mixed = (shown.int() + coloured(masks, num_classes).int()) // 2
    return torch.where(masks[:, None] == 0, shown, mixed.to(torch.uint8))


def as_colour(images: Tensor) -> Tensor:
    """Images (B, C, H, W) as uint8 (B, 3, H, W): grey ones in grey, those with 2, 4 or more channels as their mean."""
    grey = images if images.shape[1] == 3 else images.float().mean(1, keepdim=True).to(torch.uint8)
    return grey.expand(-1, 3, -1, -1)


def outlined(pictures: Tensor, instances: Tensor) -> Tensor:
    """Pictures uint8 (B, 3, H, W) with a white line inside each instance, from the number of each pixel's (B, H, W)."""
    around = F.pad(instances.float()[:, None], (1, 1, 1, 1), mode="replicate")
    low, high = -F.max_pool2d(-around, 3, 1), F.max_pool2d(around, 3, 1)
    return torch.where((low != high) & (instances > 0)[:, None], torch.full_like(pictures, 255), pictures)


def compared(
    images: Tensor, truth: Tensor, predicted: Tensor, num_classes: int, instances: Sequence[Tensor] = ()
) -> Tensor:
    """Four panels in a row: the image, its mask, the predicted mask, and the dark image with errors in red.

    Args:
        images: uint8 (B, C, H, W); more channels than three are shown as their mean. truth, predicted: (B, H, W).
        instances: the number of each pixel's true and predicted instance, (B, H, W) each; empty without instances.
            They are outlined.

    Returns:
        uint8 (B, 3, H, 4W + 3).
    """
    shown = as_colour(images)
    wrong = (predicted != truth) & (truth != IGNORED)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    errors = torch.where(wrong[:, None], red, shown // 3)
    line = torch.full_like(shown[..., :1], GREY)
    masks = [coloured(truth, num_classes), coloured(predicted, num_classes)]
    masks = [outlined(*pair) for pair in zip(masks, instances, strict=True)] if instances else masks
    return torch.cat([shown, line, masks[0], line, masks[1], line, errors], dim=-1)
