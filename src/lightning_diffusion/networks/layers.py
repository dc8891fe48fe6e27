"""Layers and checks that the networks share."""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize, height_width, simplest, typed
from lightning_diffusion.networks.captions import CaptionEncoder

SHORT = 64  # positions up to which plain products are faster in bfloat16 on a CPU; the fused kernel takes 14 ms for 49

Module = TypeVar("Module", bound=nn.Module)


def sinusoidal_embedding(time: Tensor, dim: int, frequency_shift: int = 1) -> Tensor:
    """[sin(ω_k t), cos(ω_k t)], ω_k = 10⁴^(−k/(dim/2 − shift)), k = 0 … dim/2 − 1: time (B,) -> (B, dim), float32.

    Ref: DDPM App. B and its published code (shift 1); Attention Is All You Need §3.5 (shift 0)
    """
    half = dim // 2
    omega = torch.exp(-math.log(10_000) / (half - frequency_shift) * torch.arange(half, device=time.device))
    angle = time.float()[:, None] * omega  # (B, dim/2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def zero(module: Module) -> Module:
    """Sets every parameter of a module to 0. A residual branch that ends with it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def patch_rows_columns(image_size: ImageSize, patch_size: int, key: str = "backbone.patch_size") -> tuple[int, int]:
    """(H/p, W/p): the rows and columns of patches of p × p pixels.

    Raises:
        ValueError: patches that do not fill the image; the message gives the nearest sizes that they fill.
    """
    sides, p = height_width(image_size), max(patch_size, 1)
    if patch_size < 1 or any(side % p for side in sides):
        legal = [p for p in range(1, min(sides) + 1) if not any(side % p for side in sides)]
        below, above = ([max(1, side // p + more) * p for side in sides] for more in (0, 1))
        above = [side if side % p == 0 else larger for side, larger in zip(sides, above, strict=True)]
        raise ValueError(
            f"{key}={patch_size} and data.image_size={typed(image_size)}: patches do not fill the image; "
            f"choose {key} among {legal}, or data.image_size={typed(simplest(below))} or "
            f"{typed(simplest(above))}"
        )
    return sides[0] // p, sides[1] // p


def halved_sides(
    image_size: ImageSize, depth: int, patch_size: int = 1, part: str = "network"
) -> list[tuple[int, int]]:
    """[(H/p, W/p), (⌈H/2p⌉, ⌈W/2p⌉), …]: the sides of an image of p×p patches that is halved `depth` times.

    Args:
        part: of the configuration, named in error messages.

    Raises:
        ValueError: patches that do not fill the image, or an image too small to be halved so often.
    """
    sides = [patch_rows_columns(image_size, patch_size, f"{part}.patch_size")]
    for _ in range(depth):
        H, W = sides[-1]
        if min(H, W) < 2:
            raise ValueError(
                f"{part}.depth={depth} and data.image_size={typed(image_size)}: the image is too small to be halved "
                f"{depth} times; choose a smaller depth"
            )
        sides.append(((H + 1) // 2, (W + 1) // 2))
    return sides


def maybe_checkpoint(enabled: bool, module: nn.Module, *inputs: Tensor) -> Tensor:
    """module(*inputs). With `enabled` only the inputs are kept, and the backward pass recomputes the activations."""
    if enabled and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)


class ConditionEmbedding(nn.Module):
    """One vector for the time and, if the network takes them, the class, the attributes and the caption.

    The embedding table has one row more than there are classes. This last row means "no class"; a missing condition
    selects it. The attributes are embedded by a linear map without bias, the caption by a `CaptionEncoder`. A missing
    one adds nothing, and neither do zeros, which mean "none".

    Args:
        dim: width of the sinusoidal embedding, even, ≥ 4.
        out_dim: width of the output.
        num_classes: None for an unconditional network.
        frequency_shift: see `sinusoidal_embedding`.
        takes_image: whether the network takes the condition's image, at its input; otherwise it is refused.
        num_attributes: K for attributes (B, K + 1), see `Condition`; 0: takes none.
        num_words: of the vocabulary of captions; 0: takes none.

    Raises:
        ValueError: a negative number.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        num_classes: int | None,
        frequency_shift: int = 1,
        takes_image: bool = False,
        num_attributes: int = 0,
        num_words: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.num_classes, self.frequency_shift = dim, num_classes, frequency_shift
        self.takes_image = takes_image
        self.mlp = nn.Sequential(nn.Linear(dim, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim))
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, out_dim)
        if min(num_attributes, num_words) < 0:
            raise ValueError(
                f"backbone.num_attributes={num_attributes}, num_words={num_words}: choose 0 for none, or more"
            )
        self.attributes = nn.Linear(num_attributes + 1, out_dim, bias=False) if num_attributes else None
        self.caption = CaptionEncoder(num_words, out_dim) if num_words else None

    def forward(self, time: Tensor, condition: Condition | None) -> Tensor:
        """time (B,), condition with a label in 0 … num_classes or None -> (B, out_dim).

        Raises:
            ValueError: a part of the condition that the network does not embed.
        """
        embedded = {"label": self.classes, "attributes": self.attributes, "tokens": self.caption}
        taken = [name for name, module in embedded.items() if module is not None]
        refuse_parts(condition, *taken, *["image"] * self.takes_image)
        features = sinusoidal_embedding(time, self.dim, self.frequency_shift)
        embedding = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        if self.classes is not None and self.num_classes is not None:
            label = None if condition is None else condition.label
            if label is None:
                label = torch.full(time.shape, self.num_classes, device=time.device, dtype=torch.long)
            embedding = embedding + self.classes(label)
        if self.attributes is not None and condition is not None and condition.attributes is not None:
            embedding = embedding + self.attributes(condition.attributes.to(self.attributes.weight.dtype))
        if self.caption is not None and condition is not None and condition.tokens is not None:
            embedding = embedding + self.caption(condition.tokens)
        return embedding


def refuse_parts(condition: Condition | None, *embedded: str) -> None:
    """Raises ValueError for a part of the condition that is not among those that the network embeds."""
    for name in () if condition is None else condition.parts:
        if name not in embedded:
            raise ValueError(f"condition.{name}: this network has no embedding for it; leave it out")


def input_channels(in_channels: int, condition_channels: int) -> int:
    """Channels of the input of a network that `with_image` makes.

    Raises:
        ValueError: fewer than 0 condition channels.
    """
    if condition_channels < 0:
        raise ValueError(f"backbone.condition_channels={condition_channels}: choose 0 for no image, or more")
    return in_channels + (condition_channels + 1 if condition_channels else 0)


def with_image(x: Tensor, condition: Condition | None, condition_channels: int) -> Tensor:
    """x (B, C, H, W) with the condition's image appended: (B, C + C' + 1, H, W), or x itself if C' = 0.

    Without an image in the condition, zeros are appended, which mean "none" (see `Condition`).

    Args:
        condition_channels: C', channels of the condition's picture, which has one more for the share that is known.

    Raises:
        ValueError: an image with another number of channels or another size.
    """
    if condition_channels == 0:
        return x
    B, _, H, W = x.shape
    image = None if condition is None else condition.image
    if image is None:
        image = x.new_zeros(B, condition_channels + 1, H, W)
    if image.shape[1:] != (condition_channels + 1, H, W):
        raise ValueError(
            f"condition.image: this network takes {condition_channels + 1} × {H} × {W}, not "
            f"{' × '.join(map(str, image.shape[1:]))} (C × H × W)"
        )
    return torch.cat([x, image.to(x.dtype)], dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(QKᵀ/√d) V over all positions: q, k, v (…, positions, d) -> the same shape."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= SHORT:
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class ClassEmbedding(nn.Embedding):
    """A vector for each class, and one for no class, which is the last.

    Args:
        num_classes: K.
        dim: of a vector.
        std: of its numbers at the start.
    """

    def __init__(self, num_classes: int, dim: int, std: float = 1.0) -> None:
        super().__init__(num_classes + 1, dim)
        if std != 1:
            nn.init.normal_(self.weight, std=std)

    def forward(self, count: int, condition: Condition | None) -> Tensor:  # type: ignore[override]  # labels by condition
        """(count, dim)."""
        label = None if condition is None else condition.label
        if label is None:
            label = torch.full((count,), self.num_embeddings - 1, device=self.weight.device)
        return super().forward(label)
