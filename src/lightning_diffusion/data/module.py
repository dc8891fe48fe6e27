"""The LightningDataModule of any image data set."""

import os
import resource
from abc import ABC, abstractmethod
from typing import Literal

import lightning as L
import torch
from torch.utils.data import DataLoader

from lightning_diffusion.codecs.image_size import ImageSize, height_width, typed
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.data.captions import Vocabulary
from lightning_diffusion.data.conditions import ConditionSource, WithCondition
from lightning_diffusion.data.dataset import Batches, First, ImageDataset, Mirrored, check_labels
from lightning_diffusion.data.order import EndlessShuffle, Sequential
from lightning_diffusion.data.workers import Loader
from lightning_diffusion.system.memory import check_fits

Split = Literal["train", "val"]
AUTO = "auto"  # value of data.num_classes: the number of classes found in the data
OPEN_FILES = 256  # that a process with loader processes can need, because it receives batches through files
WORKERS_PER_CORE = 8  # more would only wait for each other


class ImageDataModule(L.LightningDataModule, ABC):
    """Images as uint8 batches, in an order that is a function of (seed, batch number) only.

    Training is one endless epoch of `trainer.max_steps` batches. A subclass reads one data set.

    Args:
        channels: 1 (grey), 3 (colour), or any other number of channels in the data.
        image_size: side in pixels, or [H, W].
        num_classes: number of classes to condition on; None omits labels.
        batch_size: images in one batch of all devices together; divisible by their number.
        num_workers: loader processes; 0 is fastest for data in memory.
        horizontal_flip: trains on every training image's mirror image too.
        seed: of the order.
        num_images: number of training images, from the first; None takes all.

    Raises:
        ValueError: a value out of range; on setup, data that contradict channels, image_size or num_classes.

    `prepare_data` can download and write files. `setup` without it only reads existing files and writes only into the
    cache, so that it is safe to read the data that a model's file names.
    """

    def __init__(
        self,
        channels: int,
        image_size: ImageSize,
        num_classes: int | None,
        batch_size: int,
        num_workers: int = 0,
        horizontal_flip: bool = False,
        seed: int = 0,
        num_images: int | None = None,
    ) -> None:
        super().__init__()
        height, width = height_width(image_size)
        for key, value, least in (
            ("channels", channels, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("num_classes", num_classes, 1),
            ("num_images", num_images, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"data.{key}={value}: must be at least {least}")
        check_fits("data.batch_size", batch_size, 4 * channels * height * width)
        if num_workers > (most := WORKERS_PER_CORE * (os.cpu_count() or 1)):
            raise ValueError(f"data.num_workers={num_workers}: choose at most {most} on this machine")
        if num_workers > 0 and 0 <= (files := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < OPEN_FILES:
            raise ValueError(
                f"data.num_workers={num_workers}: loader processes need more open files than ulimit -n allows, "
                f"{files}; give ulimit -n {OPEN_FILES}, or choose data.num_workers=0"
            )
        self.channels, self.image_size, self.num_classes = channels, image_size, num_classes
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.horizontal_flip, self.num_images = horizontal_flip, num_images
        self.splits: dict[Split, ImageDataset] = {}

    mask_classes: int | None = None  # number of classes of the masks; None if the images have no masks
    num_attributes: int | None = None  # of an image; None if the data set has none
    vocabulary: Vocabulary | None = None  # of the captions; None if the images have no captions
    condition_source: ConditionSource | None = None  # of the model; set before `setup`, which applies it
    has_instances = False  # whether the masks come with the number of each pixel's instance
    fetches = True  # whether `prepare_data` may download missing files; False for data named by a model's file or a run

    def prepare_data(self) -> None:
        if self.fetches:
            self.fetch()

    def fetch(self) -> None:
        """Download or unpack the files for `read`; called in one process only."""

    @abstractmethod
    def read(self, split: Split) -> ImageDataset:
        """The images of a split from existing files; those of "val" are held out. Nothing is downloaded.

        Raises:
            ValueError, FileNotFoundError: missing or damaged files; the message names them and the remedy in one line.
        """

    def count_classes(self) -> int | None:
        """The number of classes: as given, or as found in the data for data.num_classes=auto. No image is decoded."""
        return self.num_classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.channels, *height_width(self.image_size)

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            splits: tuple[Split, Split] = ("train", "val")
            self.splits = {split: self._checked(split, self.read(split)) for split in splits}
            if self.num_images is not None:
                self.splits["train"] = self._first(self.splits["train"], self.num_images)
            if self.condition_source is not None:
                self.condition_source.check(self)
                self.splits = {
                    split: WithCondition(dataset, self.condition_source) for split, dataset in self.splits.items()
                }

    @property
    def num_val_batches(self) -> int:
        """Number of validation batches, of all devices together."""
        return -(-len(self.splits["val"]) // self.batch_size)

    def check_devices(self, count: int) -> None:
        """Raise ValueError if a batch does not divide evenly over `count` devices."""
        if self.batch_size % count:
            raise ValueError(
                f"data.batch_size={self.batch_size} does not divide over {count} devices; choose a multiple of {count}"
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        trainer = self.trainer
        assert trainer is not None
        self.check_devices(trainer.world_size)
        accumulate = trainer.accumulate_grad_batches
        dataset = Mirrored(self.splits["train"]) if self.horizontal_flip else self.splits["train"]
        order = EndlessShuffle(
            len(dataset),
            self.batch_size,
            num_batches=trainer.max_steps * accumulate,
            seed=self.seed,
            first_batch=trainer.global_step * accumulate,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return self._loader(dataset, order)

    def val_dataloader(self) -> DataLoader[Batch]:
        trainer = self.trainer
        assert trainer is not None
        dataset = self.splits["val"]
        order = Sequential(len(dataset), self.batch_size, trainer.global_rank, trainer.world_size)
        return self._loader(dataset, order)

    def _loader(self, dataset: ImageDataset, order: EndlessShuffle | Sequential) -> DataLoader[Batch]:
        assert self.trainer is not None
        return Loader(
            Batches(dataset, self.num_classes),
            sampler=order,  # of whole batches
            num_workers=self.num_workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

    def _first(self, dataset: ImageDataset, count: int) -> ImageDataset:
        if count > len(dataset):
            raise ValueError(f"data.num_images={count}: there are {len(dataset)} to train on; null takes all of them")
        return First(dataset, count)

    def _checked(self, split: Split, dataset: ImageDataset) -> ImageDataset:
        if len(dataset) == 0:
            raise ValueError(f"data: the {split} split is empty; add images or lower data.val_fraction")
        images, labels = dataset[torch.arange(1)]
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"data.channels={self.channels}, data.image_size={typed(self.image_size)}: these images are "
                f"{images.shape[1]} × {images.shape[2]} × {images.shape[3]} (C × H × W)"
            )
        if self.num_classes is not None and labels is None:
            raise ValueError(
                f"data.num_classes={self.num_classes}: these images have no labels; set data.num_classes=null"
            )
        if self.num_classes is not None and labels is not None:
            if labels.dtype != torch.int64 or labels.shape != (1,):
                raise ValueError(
                    f"data.num_classes={self.num_classes}: labels must be int64 (B,), not {labels.dtype} "
                    f"{tuple(labels.shape)}; correct the data set, or set data.num_classes=null"
                )
            check_labels(dataset.label_range(), self.num_classes)
        return dataset
