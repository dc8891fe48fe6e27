"""Instances as centres and offsets: the targets of a network's three extra outputs, and the grouping of their pixels.

Ref: Panoptic-DeepLab, Cheng et al. 2020, §3
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_diffusion.models.contracts import Instances

OUTPUTS: Final = 3  # of each pixel: the heat map of centres, and the vertical and horizontal offset to its centre
SIGMA: Final = 1 / 32  # of the Gaussian at a centre, as a share of the image's shorter side
UNIT: Final = 1 / 8  # of offsets, as a share of the image's shorter side
LEAST: Final = 0.1  # heat of a centre
MOST: Final = 32  # centres in an image


class Centres(NamedTuple):
    """Targets of B images.

    heat: max over the instances i of exp(−|p − c_i|² / 2σ²) at pixel p, (B, 1, H, W). c_i is the centre of mass of the
    visible part of i. offsets: (c_i − p) / UNIT for a pixel of instance i, vertical and horizontal, (B, 2, H, W). has:
    whether a pixel belongs to an instance, bool (B, 1, H, W); elsewhere the offsets are 0.
    """

    heat: Tensor
    offsets: Tensor
    has: Tensor


def centres_of(instances: Tensor) -> Centres:
    """The targets for the number of each pixel's instance, uint8 (B, H, W); 0 is none."""
    B, H, W = instances.shape
    numbers, M = instances.long(), int(instances.max()) + 1
    y, x = _grid(H, W, instances.device)
    index = (numbers + M * torch.arange(B, device=instances.device)[:, None, None]).flatten()
    area = torch.bincount(index, minlength=B * M).reshape(B, M)
    centre = torch.stack(
        [torch.bincount(index, p.expand(B, H, W).flatten(), B * M).reshape(B, M) / area.clamp(min=1) for p in (y, x)]
    ).float()  # (2, B, M)
    sigma, heat = SIGMA * min(H, W), torch.zeros(B, H, W, device=instances.device)
    for i in range(1, M):
        vertical, horizontal = ((p[None] - c[:, i, None, None]).square() for p, c in zip((y, x), centre, strict=True))
        near = torch.exp(-(vertical + horizontal) / (2 * sigma**2))
        heat = heat.maximum(near * (area[:, i] > 0)[:, None, None])
    has = numbers > 0
    own = centre.flatten(1)[:, index].reshape(2, B, H, W)
    offsets = torch.stack([own[0] - y, own[1] - x], dim=1) / (UNIT * min(H, W))
    return Centres(heat[:, None], offsets * has[:, None], has[:, None])


def grouped(probability: Tensor, heat: Tensor, offsets: Tensor) -> Instances:
    """Groups the pixels of items around the centres.

    Centres are the local maxima of the heat map of at least LEAST. Each pixel whose most probable class is not the
    background belongs to the centre that is nearest to the pixel's own position plus its offset. The class of an
    instance has the largest sum of probabilities over its pixels. Its score is the heat of its centre times the mean
    probability of its class.

    Args:
        probability: of the classes, (B, K, H, W). heat: (B, 1, H, W). offsets: (B, 2, H, W), in UNIT.
    """
    H, W = probability.shape[-2:]
    window = 2 * max(1, round(2 * SIGMA * min(H, W))) + 1
    peaks = heat * (heat == F.max_pool2d(heat, window, 1, window // 2)) * (heat >= LEAST)
    score, place = peaks.flatten(1).topk(min(MOST, H * W))  # (B, M)
    y, x = _grid(H, W, heat.device)
    at_y, at_x = (p + UNIT * min(H, W) * offsets[:, i] for i, p in enumerate((y, x)))  # (B, H, W)
    nearest, numbers = torch.full_like(at_y, torch.inf), torch.zeros_like(at_y, dtype=torch.long)
    for i in range(int((score > 0).sum(1).max())):
        row, column = place[:, i] // W, place[:, i] % W
        distance = (at_y - row[:, None, None]).square() + (at_x - column[:, None, None]).square()
        closer = (distance < nearest) & (score[:, i] > 0)[:, None, None]
        nearest, numbers = distance.where(closer, nearest), torch.where(closer, i + 1, numbers)
    numbers = numbers * (probability.argmax(1) > 0)
    members = F.one_hot(numbers, score.shape[1] + 1)[..., 1:].flatten(1, 2).to(probability.dtype)  # (B, HW, M)
    votes = probability.flatten(2)[:, 1:] @ members  # (B, K − 1, M)
    best, size = votes.max(1), members.sum(1)
    scores = score.clamp(max=1) * best.values / size.clamp(min=1)
    classes = (1 + best.indices) * (size > 0)
    return Instances(numbers.to(torch.uint8), classes, scores * (size > 0))


def _grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The row of each pixel, (H, 1), and its column, (1, W), in float32."""
    return torch.arange(height, device=device).float()[:, None], torch.arange(width, device=device).float()[None]
