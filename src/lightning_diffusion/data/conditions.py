"""Conditions made from the samples of a data set, and images as conditions, such as a smaller copy of the image."""

import hashlib
from abc import ABC, abstractmethod
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import typed
from lightning_diffusion.codecs.masks import GREY, IGNORED, as_colour, coloured
from lightning_diffusion.codecs.pixels import to_model, to_uint8
from lightning_diffusion.data.dataset import ImageDataset, Sample

LUMINANCE: Final = (0.299, 0.587, 0.114)  # of red, green and blue. Ref: ITU-R BT.601


class ConditionSource(ABC):
    """Makes the condition of an image from a sample of a data set.

    part: of the condition, see `Condition`. word: the key of src.sample that gives such a condition, or None.
    channels: of the condition's picture, without the last channel. num_attributes, num_words: of the condition, see
    `networks.layers.ConditionEmbedding`. The last three are 0 for a condition of another kind. num_samples: of one
    condition in a run's picture. noise, max_noise: levels in [0, 1) of the noise that a model adds to the condition's
    picture: when it draws or is measured, and the largest in training. See `Condition.noised`.
    """

    part: str
    word: str | None = None
    channels = 0
    num_attributes = 0
    num_words = 0
    num_samples = 1
    noise = 0.0
    max_noise = 0.0

    @abstractmethod
    def __call__(self, sample: Sample) -> Sample:
        """The sample with the images that are drawn and the part of the condition."""

    @abstractmethod
    def check(self, data: Any) -> None:
        """Raise ValueError if the images of a data module do not fit."""

    def drawn(self, sample: Sample) -> Tensor:
        """The images that a model with this condition draws, uint8 (B, C, H, W)."""
        return sample.images

    def read(self, words: Any) -> Condition:
        """The condition, of length 1, that the value of the key `word` means. Raises ValueError for a wrong value."""
        raise NotImplementedError

    def texts(self, condition: Condition) -> list[str] | None:
        """Each condition as a text for people, or None if it has none."""
        return None

    def consistency(self, images: Tensor, shown: Tensor) -> Tensor | None:
        """The mean squared difference between the condition's picture and that of drawn images, (B,) with values in
        [0, 1]; None if the picture is not a function of the image.

        Args:
            images: uint8 (B, C, H, W).
            shown: (B, C' + 1, H, W).
        """
        return None

    def drawn_as_picture(self, images: Tensor) -> Tensor:
        """Drawn images for people, uint8 (B, C, H, W)."""
        return images

    def panels(self, truth: Sample, samples: Tensor) -> Tensor:
        """A tile for each condition. By default it shows the first of its samples.

        Args:
            truth: the true images with their conditions.
            samples: uint8 (num_samples, B, C, H, W).

        Returns:
            uint8 (B, 1 or 3, H, W').
        """
        return self.drawn_as_picture(samples[0])


class ImageSource(ConditionSource):
    """Makes the image of a condition. See `codecs.condition` for its last channel."""

    part = "image"
    channels: int

    @abstractmethod
    def picture(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The condition's picture, float (B, C, H, W) in [−1, 1], and the known share of each pixel (B, 1, H, W)."""

    def shown_as_picture(self, shown: Tensor) -> Tensor:
        """The image of a condition for people, uint8 (B, 1 or 3, H, W)."""
        return to_uint8(shown[:, :-1])

    def panels(self, truth: Sample, samples: Tensor) -> Tensor:
        """A row of panels for each condition: its image, the samples, and the true image."""
        assert truth.shown is not None
        images = (self.drawn_as_picture(each) for each in (*samples, truth.images))
        return in_a_row(self.shown_as_picture(truth.shown), *images)

    def __call__(self, sample: Sample) -> Sample:
        picture, known = self.picture(sample)
        return sample._replace(images=self.drawn(sample), shown=torch.cat([known * picture, known], dim=1))


class LowResolution(ImageSource):
    """Super-resolution: the mean of each square of factor × factor pixels, at all of its pixels.

    Args:
        channels: of the images.
        factor: side of the squares, ≥ 2; it divides the sides of the image.
        max_noise, noise: see `ConditionSource`; 0 ≤ noise ≤ max_noise < 1.

    Raises:
        ValueError: a value out of range.

    Ref: Cascaded Diffusion Models §4.2, for the noise
    """

    def __init__(self, channels: int, factor: int = 4, max_noise: float = 0.0, noise: float = 0.0) -> None:
        if factor < 2:
            raise ValueError(f"condition.factor={factor}: choose a whole number of at least 2")
        if not 0 <= noise <= max_noise < 1:
            raise ValueError(
                f"condition.noise={noise}, max_noise={max_noise}: choose 0 <= noise <= max_noise < 1; a model does not "
                "know more noise than it was trained with"
            )
        self.channels, self.factor, self.max_noise, self.noise = channels, factor, max_noise, noise

    def check(self, data: Any) -> None:
        if data.channels != self.channels:
            raise ValueError(
                f"condition.channels={self.channels} and data.channels={data.channels}: the condition is a smaller "
                "copy of the image; leave out condition.channels"
            )
        if any(side % self.factor for side in data.shape[1:]):
            raise ValueError(
                f"condition.factor={self.factor} and data.image_size={typed(data.image_size)}: the factor does not "
                "divide the sides of the image; choose another one"
            )

    def averaged(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, H, W) in [−1, 1], constant in each square."""
        small = F.avg_pool2d(to_model(images), self.factor)
        return small.repeat_interleave(self.factor, dim=2).repeat_interleave(self.factor, dim=3)

    def picture(self, sample: Sample) -> tuple[Tensor, Tensor]:
        return self.averaged(sample.images), _all_known(sample.images)

    def consistency(self, images: Tensor, shown: Tensor) -> Tensor:
        return _squared_difference(self.averaged(images), shown[:, :-1])


class Grey(ImageSource):
    """Colourization: the luminance of a colour image.

    Args:
        channels: of the condition's picture, 1.
    """

    def __init__(self, channels: int = 1) -> None:
        if channels != 1:
            raise ValueError(f"condition.channels={channels}: a grey image has 1 channel; leave it out")
        self.channels = channels

    def check(self, data: Any) -> None:
        if data.channels != len(LUMINANCE):
            raise ValueError(
                f"condition=grey and data.channels={data.channels}: only colour images can be shown in grey; choose "
                "data with 3 channels, or another condition"
            )

    def luminance(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 1, H, W) in [−1, 1]."""
        weights = torch.tensor(LUMINANCE, device=images.device)[:, None, None]
        return (weights * to_model(images)).sum(dim=1, keepdim=True)

    def picture(self, sample: Sample) -> tuple[Tensor, Tensor]:
        return self.luminance(sample.images), _all_known(sample.images)

    def consistency(self, images: Tensor, shown: Tensor) -> Tensor:
        return _squared_difference(self.luminance(images), shown[:, :-1])


class Mask(ImageSource):
    """Mask to image: a channel for each class, 1 where the mask has this class. Pixels to ignore are unknown.

    Args:
        channels: number of classes of the masks, ≥ 2.

    Raises:
        ValueError: no masks.
    """

    def __init__(self, channels: int) -> None:
        self.channels = _mask_classes(channels)

    def check(self, data: Any) -> None:
        _check_masks(data, self.channels, "condition.channels")

    def picture(self, sample: Sample) -> tuple[Tensor, Tensor]:
        assert sample.targets is not None
        return one_hot(sample.targets, self.channels), (sample.targets != IGNORED)[:, None].float()

    def shown_as_picture(self, shown: Tensor) -> Tensor:
        return class_colours(shown[:, :-1], shown[:, -1] > 0)


class Picture(ImageSource):
    """Image to mask: the condition is the image, and its mask is drawn, with a channel for each class: 255 where the
    mask has this class and 0 elsewhere. Pixels to ignore are 0 in all channels.

    Args:
        channels: of the images.
        drawn_channels: number of classes of the masks, ≥ 2.

    Raises:
        ValueError: no masks.
    """

    num_samples = 8

    def __init__(self, channels: int, drawn_channels: int) -> None:
        self.channels, self.mask_classes = channels, _mask_classes(drawn_channels)

    def check(self, data: Any) -> None:
        _check_masks(data, self.mask_classes, "condition.drawn_channels")

    def picture(self, sample: Sample) -> tuple[Tensor, Tensor]:
        return to_model(sample.images), _all_known(sample.images)

    def drawn(self, sample: Sample) -> Tensor:
        assert sample.targets is not None
        return 255 * one_hot(sample.targets, self.mask_classes).to(torch.uint8)

    def shown_as_picture(self, shown: Tensor) -> Tensor:
        return as_colour(super().shown_as_picture(shown))

    def drawn_as_picture(self, images: Tensor) -> Tensor:
        return class_colours(images, (images > 0).any(dim=1))

    def panels(self, truth: Sample, samples: Tensor) -> Tensor:
        """The image, the true mask, the most frequent class of each pixel, and the entropy of its classes, from black
        (the samples agree) to white (each has another class)."""
        assert truth.shown is not None
        votes = shares(samples)
        return in_a_row(
            self.shown_as_picture(truth.shown),
            self.drawn_as_picture(truth.images),
            class_colours(votes),
            (255 * entropy(votes, len(samples))).round().to(torch.uint8)[:, None],
        )


class WithCondition(ImageDataset):
    """A data set with the images and conditions that a source makes of it."""

    def __init__(self, dataset: ImageDataset, source: ConditionSource) -> None:
        self.dataset, self.source = dataset, source

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._keeps_images:
            return self.dataset[indices]
        return self.sample(indices)[:2]

    def sample(self, indices: Tensor) -> Sample:
        return self.source(self.dataset.sample(indices))

    def fingerprint(self) -> str:
        if self._keeps_images:
            return self.dataset.fingerprint()
        digest = hashlib.sha256(type(self.source).__name__.encode())
        for batch in torch.arange(len(self)).split(1000):
            digest.update(self[batch][0].contiguous().numpy().data)
        return digest.hexdigest()

    def label_range(self) -> tuple[int, int] | None:
        return self.dataset.label_range()

    @property
    def _keeps_images(self) -> bool:
        return type(self.source).drawn is ConditionSource.drawn


def panels(held_out: ImageDataset, source: ConditionSource, samples: Tensor) -> Tensor:
    """The tiles of the first B conditions of the held-out images, uint8 (B, 1 or 3, H, W'), see `panels` of a source.

    Args:
        samples: uint8 (V, B, C, H, W), V samples of each.
    """
    return source.panels(held_out.sample(torch.arange(samples.shape[1]) % len(held_out)), samples)


def one_hot(masks: Tensor, num_classes: int) -> Tensor:
    """Masks uint8 (B, H, W) -> float32 (B, K, H, W), 1 in the channel of a pixel's class; an ignored pixel has none."""
    classes = torch.arange(num_classes, device=masks.device)[:, None, None]
    return (masks[:, None] == classes).float()


def class_colours(scores: Tensor, known: Tensor | None = None) -> Tensor:
    """The class with the highest score at each pixel, (B, K, H, W) -> uint8 (B, 3, H, W); unknown pixels are grey."""
    masks = scores.argmax(dim=1)
    masks = masks if known is None else torch.where(known, masks, IGNORED)
    return coloured(masks, scores.shape[1])


def shares(samples: Tensor) -> Tensor:
    """The share of samples of one-hot masks, (V, B, K, H, W), that have each class at a pixel, float32 (B, K, H, W)."""
    classes = samples.argmax(dim=2).to(torch.uint8)
    return torch.stack([one_hot(each, samples.shape[2]) for each in classes]).mean(dim=0)


def entropy(shares: Tensor, count: int) -> Tensor:
    """The entropy of the classes of each pixel, −Σ p log p, (B, K, H, W) -> (B, H, W), divided by its greatest value
    for `count` samples of K classes."""
    greatest = torch.tensor(float(max(2, min(count, shares.shape[1])))).log()
    return torch.special.entr(shares).sum(dim=1) / greatest


def in_a_row(*images: Tensor) -> Tensor:
    """Images (B, C, H, W) side by side, with a line of a pixel between them, in colour if one of them is."""
    channels = max(image.shape[1] for image in images)
    tiles: list[Tensor] = []
    for image in (image.expand(-1, channels, -1, -1) for image in images):
        tiles += [image, torch.full_like(image[..., :1], GREY)]
    return torch.cat(tiles[:-1], dim=-1)


def _all_known(images: Tensor) -> Tensor:
    return torch.ones_like(images[:, :1], dtype=torch.float32)


def _squared_difference(one: Tensor, other: Tensor) -> Tensor:
    """The mean squared difference of values in [−1, 1], for values in [0, 1]."""
    return ((one - other.to(one)) / 2).square().flatten(1).mean(dim=1)


def _mask_classes(classes: int) -> int:
    if classes < 2:  # conf/condition gives 1 for data without masks
        raise ValueError("condition: these images have no masks; choose data=scenes, or another condition")
    return classes


def _check_masks(data: Any, classes: int, key: str) -> None:
    if data.mask_classes != classes:
        raise ValueError(
            f"{key}={classes} and data.mask_classes={data.mask_classes}: the masks have other classes; leave out {key}"
        )
