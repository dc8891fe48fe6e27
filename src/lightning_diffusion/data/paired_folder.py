"""A folder of images, and a folder with a mask or a second image for each of them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from torch import Tensor

from lightning_diffusion.codecs.masks import IGNORED
from lightning_diffusion.data.dataset import ImageDataset, Sample
from lightning_diffusion.data.decoding import check_image, image_shape, read_image
from lightning_diffusion.data.image_files import (
    Files,
    check_count,
    files_of,
    folder_of,
    stop_at_unreadable,
    without_unreadable,
)
from lightning_diffusion.data.mask_files import MaskReader, WrongTarget
from lightning_diffusion.data.module import ImageDataModule, Split
from lightning_diffusion.data.order import check_fraction, shuffled_split

LEVELS: Final = 256  # values of a pixel of a mask


class Pair(NamedTuple):
    """An image's file, and its partner's: a mask or a second image."""

    image: Path
    target: Path


class PairedFolder(ImageDataModule):
    """Images with masks, or with second images. Partners have the same subfolder and name, without its ending.

    Images are read as `ImageFolder` reads them. A mask has the size of its image, and is resized and cropped with it,
    by the nearest pixel. A second image has the aspect ratio of its image, and is read in the same way. The targets of
    a batch are masks, uint8 (B, H, W), or second images, uint8 (B, target_channels, H, W).

    Args:
        root: a folder, or an archive of one (`archive.ENDINGS`), with the two folders …
        images: … of the images, and …
        targets: … of their partners; each is a path below `root`, or an absolute one.
        mask_classes: K, the number of classes of the masks, from 2 to 255; None if the partners are second images.
        levels: the values of the classes in the masks, [0, 255] for instance; None if they are the class numbers.
        ignore: the value of unknown pixels in the masks; None if there are none.
        target_channels: channels of the second images.
        val_fraction: share held out, in (0, 1), by a fixed shuffle of the sorted images; at least one pair.
        unreadable: "stop" raises an error for an unreadable file, "skip" omits and counts such pairs, see
            `ImageFolder`. A readable file that is no mask of these classes raises an error in advance either way.
        cache_dir: folder for unpacked archives; None for `archive.cache_folder`.
        options: those of every data set; `num_classes` is None.
    """

    def __init__(
        self,
        root: str,
        mask_classes: int | None,
        images: str = "images",
        targets: str = "masks",
        levels: Sequence[int] | None = None,
        ignore: int | None = None,
        target_channels: int = 3,
        val_fraction: float = 0.1,
        unreadable: Literal["stop", "skip"] = "stop",
        cache_dir: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_fraction(val_fraction)
        if self.num_classes is not None:
            raise ValueError(
                f"data.num_classes={self.num_classes}: pairs have no classes; choose data.num_classes=null"
            )
        if target_channels < 1:
            raise ValueError(f"data.target_channels={target_channels}: must be at least 1")
        check_masks(mask_classes, levels, ignore)
        self.root, self.images, self.targets, self.mask_classes = Path(root), images, targets, mask_classes
        self.levels, self.ignore, self.target_channels = levels, ignore, target_channels
        self.val_fraction, self.unreadable, self.cache_dir = val_fraction, unreadable, cache_dir

    def fetch(self) -> None:
        folder_of(self.root, self.cache_dir)  # one process unpacks, before the others look

    def read(self, split: Split) -> ImageDataset:
        train, val = shuffled_split(len(self.pairs), self.val_fraction)
        chosen = [self.pairs[i] for i in (train if split == "train" else val)]
        images = Files([pair.image for pair in chosen], None, self.shape)
        return PairedFiles(images, Files([pair.target for pair in chosen], None, self._target_shape, self._reader))

    @cached_property
    def pairs(self) -> Sequence[Pair]:
        """The pairs of both splits, sorted by the path of the image, all of them checked."""
        folders = self._folders()
        found = partners(folders, (f"data.images={self.images}", f"data.targets={self.targets}"))
        source = f"data.root={self.root}"
        try:
            if self.unreadable == "stop":
                pairs = stop_at_unreadable(found, self._check, source)
            else:
                pairs = without_unreadable(found, self._try, lambda pair: pair.image.relative_to(folders.image), source)
        except WrongTarget as error:
            raise WrongTarget(f"data.targets={self.targets}: {error}") from error
        check_count(len(pairs), len(pairs) < len(found), f"data.images={self.images}")
        return pairs

    @property
    def _reader(self) -> Any:
        """The function that reads a target."""
        if self.mask_classes is None:
            return read_image
        return MaskReader(self.mask_classes, None if self.levels is None else tuple(self.levels), self.ignore)

    @property
    def _target_shape(self) -> tuple[int, int, int]:
        return (self.target_channels if self.mask_classes is None else 1, *self.shape[1:])

    def _folders(self) -> Pair:
        """The folders of the images and of their partners. Raises ValueError unless they are two separate ones."""
        root = folder_of(self.root, self.cache_dir)
        folders = Pair(root / self.images, root / self.targets)
        for key, name, folder in (("images", self.images, folders.image), ("targets", self.targets, folders.target)):
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"data.{key}={name}: no such folder in data.root={self.root}; give a path below it, or an absolute "
                    "one"
                )
        image, target = (folder.resolve() for folder in folders)
        if image == target or image in target.parents or target in image.parents:
            where = "the same folder as" if image == target else "not apart from"
            raise ValueError(
                f"data.targets={self.targets}: {where} data.images={self.images}; give two separate folders"
            )
        return folders

    def _check(self, pair: Pair) -> None:
        """Raise an error that headers show, and any error of a mask."""
        check_image(pair.image, self.shape[0])
        if self.mask_classes is None:
            check_image(pair.target, self.target_channels)
        self._check_sizes(pair)
        if isinstance(reader := self._reader, MaskReader):
            reader.check(pair.target)

    def _try(self, pair: Pair) -> None:
        """Raise any error of a pair."""
        self._check(pair)
        read_image(pair.image, self.shape)
        self._reader(pair.target, self._target_shape)

    def _check_sizes(self, pair: Pair) -> None:
        (_, H, W), (_, h, w) = image_shape(pair.image), image_shape(pair.target)
        if self.mask_classes is not None and (h, w) != (H, W):
            raise WrongTarget(
                f"{pair.target}: the mask is {h}×{w}, its image {pair.image.name} {H}×{W} (H×W); save it in the size "
                "of the image"
            )
        if abs(h * W - w * H) > W + H:  # more than rounding a scaled side to a whole number
            raise WrongTarget(
                f"{pair.target}: {h}×{w}, its image {pair.image.name} {H}×{W} (H×W); the two must have the same "
                "aspect ratio"
            )


class PairedFiles(ImageDataset):
    """Image files with their targets, masks (one channel) or second images."""

    def __init__(self, images: Files, targets: Files) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, None]:
        return self.images[indices][0], None

    def sample(self, indices: Tensor) -> Sample:
        targets, _ = self.targets[indices]
        return Sample(self.images[indices][0], None, targets[:, 0] if self.are_masks else targets)

    @property
    def are_masks(self) -> bool:
        return isinstance(self.targets.read, MaskReader)

    def fingerprint(self) -> str:
        return self.images.fingerprint()


def check_masks(mask_classes: int | None, levels: Sequence[int] | None, ignore: int | None) -> None:
    """Raise ValueError unless these options of masks are in range and do not contradict each other."""
    for key, value in (("levels", levels), ("ignore", ignore)):
        if mask_classes is None and value is not None:
            raise ValueError(f"data.{key}={value}: only for masks; leave it out, or give data.mask_classes")
    if mask_classes is not None and not 2 <= mask_classes <= IGNORED:
        raise ValueError(f"data.mask_classes={mask_classes}: choose a number from 2 to {IGNORED}")
    for key, values in (("levels", levels or ()), ("ignore", () if ignore is None else (ignore,))):
        if wrong := [value for value in values if not 0 <= value < LEVELS]:
            raise ValueError(f"data.{key}: {wrong[0]} is not the value of a pixel; choose 0 to {LEVELS - 1}")
    if levels is not None and (len(levels) != mask_classes or len(set(levels)) < len(levels)):
        raise ValueError(
            f"data.levels={list(levels)}: give a different value for each of the {mask_classes} classes of "
            "data.mask_classes"
        )
    if ignore is not None and ignore in (range(mask_classes or 0) if levels is None else levels):
        raise ValueError(f"data.ignore={ignore}: this is the value of a class; choose another value")


def partners(folders: Pair, keys: tuple[str, str]) -> list[Pair]:
    """The pairs of files with the same name, sorted by the path of the image.

    Args:
        keys: data.images=… and data.targets=…, for messages.

    Raises:
        ValueError: two files of a folder have the same name, or a file has no partner.
    """
    images, targets = (_by_name(folder, key) for folder, key in zip(folders, keys, strict=True))
    for ours, theirs, (key, other) in ((images, targets, keys), (targets, images, keys[::-1])):
        if missing := [name for name in ours if name not in theirs]:
            raise ValueError(
                f"{key}: {len(missing)} of {len(ours)} files have no partner in {other}, first {missing[0]}"
                f"{ours[missing[0]].suffix}; add a file of the same name there, or remove it"
            )
    return [Pair(images[name], targets[name]) for name in images]


def _by_name(folder: Path, key: str) -> dict[str, Path]:
    """The image files by their path in the folder without the ending, sorted by path."""
    found: dict[str, Path] = {}
    for path in files_of(folder, key):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ValueError(
                f"{key}: {path.name} and {found[name].name} have the same name, {name}, so their partner is ambiguous; "
                "remove or rename one"
            )
        found[name] = path
    return found
