"""The U-Net as the lecture draws it, with time and class."""

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize, height_width, typed
from lightning_diffusion.networks.layers import ConditionEmbedding, input_channels, refuse_parts, with_image, zero


class LectureUNet(nn.Module):
    """The original U-Net with "same" padding, time and class: a contracting path, a bottom and an expanding path.

    Without time it is a plain image-to-image network. Pooling rounds odd sides down, and the up-convolution restores
    them, so any image with sides of at least 2^depth pixels fits.

    Args:
        in_channels: channels of the image.
        channels: width of the first level, even, ≥ 4; every step down doubles it.
        depth: number of steps down, ≥ 1.
        out_channels: channels of the output; None means outputs · in_channels.
        outputs: see `UNet`.
        num_classes: None for an unconditional network.
        time: False for a network without time and condition.
        image_size: side of the image in pixels, or [H, W]; used only to check depth.
        condition_channels: channels of the condition's picture, which is appended to x; 0: takes no image.
        num_attributes, num_words: see `ConditionEmbedding`.

    Raises:
        ValueError: a number out of range, or an image that is too small for this depth.

    Ref: U-Net, Fig. 1
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 32,
        depth: int = 2,
        out_channels: int | None = None,
        outputs: int = 1,
        num_classes: int | None = None,
        time: bool = True,
        image_size: ImageSize | None = None,
        condition_channels: int = 0,
        num_attributes: int = 0,
        num_words: int = 0,
    ) -> None:
        super().__init__()
        if channels < 4 or channels % 2 or depth < 1:
            raise ValueError(
                f"backbone.channels={channels}, depth={depth}: choose an even number of channels >= 4 and depth >= 1"
            )
        if image_size is not None and (shorter := min(height_width(image_size))) < 2**depth:
            raise ValueError(
                f"backbone.depth={depth} and data.image_size={typed(image_size)}: the image is too small "
                f"for so many halvings; choose backbone.depth <= {shorter.bit_length() - 1}"
            )
        self.num_classes, self.outputs, self.condition_channels = num_classes, outputs, condition_channels
        widths = [channels * 2**k for k in range(depth + 1)]
        embedding_dim = 4 * channels if time else None
        self.num_attributes, self.num_words = num_attributes, num_words
        self.embedding = None
        if time:
            self.embedding = ConditionEmbedding(
                channels, 4 * channels, num_classes, takes_image=condition_channels > 0,
                num_attributes=num_attributes, num_words=num_words,
            )  # fmt: skip

        self.contracting_path = nn.ModuleList()
        width = input_channels(in_channels, condition_channels)
        for wider in widths[:-1]:
            self.contracting_path.append(DoubleConvolution(width, wider, embedding_dim))
            width = wider
        self.max_pool = nn.MaxPool2d(2)
        self.bottom = DoubleConvolution(width, widths[-1], embedding_dim)
        self.expanding_path = nn.ModuleList(
            ExpandingStep(wider, width, embedding_dim)
            for wider, width in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = zero(nn.Conv2d(channels, outputs * in_channels if out_channels is None else out_channels, 1))

    def forward(self, x: Tensor, time: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        """x (B, C, H, W), time (B,) on DDPM's clock or None, condition or None -> (B, C_out, H, W)."""
        embedding = None
        if self.embedding is not None and time is not None:
            embedding = self.embedding(time, condition)
        else:
            refuse_parts(condition)
        x = with_image(x, condition, self.condition_channels).to(next(self.parameters()).dtype)
        copied = []
        for double_convolution in self.contracting_path:
            x = double_convolution(x, embedding)
            copied.append(x)
            x = self.max_pool(x)  # (B, C, ⌊H/2⌋, ⌊W/2⌋)
        x = self.bottom(x, embedding)
        for step in self.expanding_path:
            x = step(x, copied.pop(), embedding)
        return self.head(x)


class DoubleConvolution(nn.Module):
    """3×3 conv, ReLU, 3×3 conv, ReLU. The first convolution's output gets the embedding of time and class added."""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int | None) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.embedding = None if embedding_dim is None else nn.Linear(embedding_dim, out_channels)
        for conv in (self.conv_1, self.conv_2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # no normalization corrects the scale

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        x = self.conv_1(x)
        if self.embedding is not None and embedding is not None:
            x = x + self.embedding(torch.relu(embedding))[:, :, None, None]
        return torch.relu(self.conv_2(torch.relu(x)))


class ExpandingStep(nn.Module):
    """2×2 up-convolution that halves the channels, concatenation with the contracting path, double convolution."""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int | None) -> None:
        super().__init__()
        self.up_convolution = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.double_convolution = DoubleConvolution(2 * out_channels, out_channels, embedding_dim)

    def forward(self, x: Tensor, copied: Tensor, embedding: Tensor | None) -> Tensor:
        x = self.up_convolution(x, output_size=list(copied.shape[-2:]))  # restores odd sides
        return self.double_convolution(torch.cat([copied, x], dim=1), embedding)
