"""Pictures of samples, always from the same noise."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.codecs.masks import compared
from lightning_diffusion.data.conditions import panels
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.metrics.batches import shard_batches
from lightning_diffusion.metrics.extractors.base import ImageSet
from lightning_diffusion.models.contracts import Generator, Model, Predictor
from lightning_diffusion.runs.pictures import columns_for, grid, square_columns, with_texts, write_gif, write_png
from lightning_diffusion.runs.run import PREDICTIONS
from lightning_diffusion.system.progress import Phase
from lightning_diffusion.training.callbacks.budget import Budget
from lightning_diffusion.training.callbacks.throughput import untimed
from lightning_diffusion.training.loggers.wandb import WandbLogger
from lightning_diffusion.training.module import TrainingModule
from lightning_diffusion.training.ownership import make_run_folder
from lightning_diffusion.training.ranks import RankBarrier

NUM_FRAMES = 40
BATCH = 64
PANELS = 4  # of an image with masks, and of a condition with its samples
MOST_READ = 1000  # held-out images among which those of each class are found


class SampleGrid(L.Callback):
    """Draws sample grids during training, and a final grid and an animation at the end, with the averaged weights.

    Writes step_NNNNNNN.png every n steps, final.png and trajectory.gif at the end, and logs them to W&B. With classes,
    each column of a grid shows one class. If images are conditions, a grid shows those of a quarter as many held-out
    images or fewer, each next to its samples and the true image (see `ConditionSource.panels`). A caption is below its
    sample. If the model makes
    pictures of given images, NAME.png shows as many held-out images in the same order at the end, each above its
    picture. If it predicts masks, predictions.png shows a quarter as many held-out images, each next to its mask, the
    predicted mask, and the errors in red. Instances are outlined.

    Args:
        directory: folder of the pictures.
        every_n_steps: optimizer steps between grids; 0 draws only the final one.
        num_samples: samples in a grid, ≥ 1.
        share: share of the time since the start that grids may take, in (0, 1]. A grid that would exceed it is
            skipped; the first and the final one are always drawn.
        seed: of the noise.
    """

    def __init__(
        self,
        directory: str,
        every_n_steps: int,
        num_samples: int = 80,
        share: float = 0.1,
        seed: int = 0,
    ) -> None:
        if every_n_steps < 0 or num_samples < 1 or not 0 < share <= 1:
            raise ValueError(
                f"callbacks.samples.every_n_steps={every_n_steps}, num_samples={num_samples}, share={share}: "
                "choose every_n_steps >= 0, num_samples >= 1 and 0 < share <= 1"
            )
        self.directory, self.seed = Path(directory), seed
        self.every_n_steps, self.num_samples = every_n_steps, num_samples
        self._barrier = RankBarrier("samples")
        self._pictured_step, self._budget = 0, Budget(share)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._budget.start()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Draws between two steps, where a stopped run can be resumed."""
        step = trainer.global_step
        if self.every_n_steps and step and step % self.every_n_steps == 0 and step != self._pictured_step:
            self._pictured_step = step  # accumulated batches belong to the same step
            with untimed(trainer):
                if self._budget.allows_another():
                    with self._budget.counted():
                        self._picture(trainer, pl_module, f"step_{step:07d}")
                self._barrier(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._picture(trainer, pl_module, "final")
        self._animation(trainer, pl_module)
        self._pictures_of_held_out_images(trainer, pl_module)
        self._predictions(trainer, pl_module)
        self._barrier(trainer)

    @rank_zero_only
    def _picture(self, trainer: L.Trainer, module: L.LightningModule, name: str) -> None:
        if (model := _generator(module)) is None:
            return
        source, held_out = model.condition_source, _held_out(trainer)
        V, N = (1, 0) if source is None else (source.num_samples, len(held_out))
        count = self.num_samples if source is None else min(N, max(1, self.num_samples // max(V, PANELS)))
        numbers = [variant * N + i for variant in range(V) for i in range(count)]
        batches = [numbers[batch.start : batch.stop] for batch in shard_batches(len(numbers), BATCH)]
        drawing = Phase(f"drawing samples/{name}.png", model.num_steps * len(batches))
        with drawing as phase, trainer.precision_plugin.forward_context():
            conditions = [model.conditions_in_turn(batch, held_out) for batch in batches]
            drawn = [model.draw(*each, self.seed, phase.advance) for each in zip(batches, conditions, strict=True)]
        images, columns = torch.cat([batch.images for batch in drawn]), square_columns(count, model.num_classes)
        if source is not None:
            images = panels(held_out, source, images.unflatten(0, (V, count)))
            condition = model.conditions_in_turn(range(count), held_out)
            texts = None if condition is None else source.texts(condition)
            images = images if texts is None else with_texts(images, texts)
            columns = columns_for(images)
        make_run_folder(self.directory)
        write_png(self.directory / f"{name}.png", grid(images, columns))
        self._log(trainer, "samples", self.directory / f"{name}.png")

    @rank_zero_only
    @torch.inference_mode()
    def _animation(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if (model := _generator(module)) is None:
            return
        K = model.num_classes
        indices = range(min(self.num_samples, 2 * (K or 8)))
        drawing = Phase("drawing samples/trajectory.gif", model.num_steps)
        with drawing as phase, trainer.precision_plugin.forward_context():
            states = []
            condition, source = model.conditions_in_turn(indices, _held_out(trainer)), model.condition_source
            for state in model.trajectory(indices, condition, self.seed):
                states.append(state if source is None else source.drawn_as_picture(state))
                phase.advance()
        frames = [states[i] for i in torch.linspace(0, len(states) - 1, min(NUM_FRAMES, len(states))).long()]
        columns = square_columns(len(indices), K)
        make_run_folder(self.directory)
        write_gif(self.directory / "trajectory.gif", [grid(images, columns) for images in frames])
        self._log(trainer, "trajectory", self.directory / "trajectory.gif")

    @rank_zero_only
    @torch.inference_mode()
    def _pictures_of_held_out_images(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        model, held_out = module.ema.model, trainer.datamodule.splits["val"]  # type: ignore[attr-defined]
        if type(model).pictures_of is Model.pictures_of:  # it makes none
            return
        indices, K = in_order_of_classes(held_out, self.num_samples, model.num_classes), model.num_classes
        tiles: dict[str, list[Tensor]] = defaultdict(list)
        with trainer.precision_plugin.forward_context():
            for batch in indices.split(BATCH):
                images, labels = held_out[batch]
                for name, pictures in model.pictures_of(images, None if K is None else by_label(labels)).items():
                    tiles[name].append(pairs(images, pictures.cpu()))
        for name, parts in tiles.items():
            make_run_folder(self.directory)
            columns = square_columns(len(indices), K)
            write_png(self.directory / f"{name}.png", grid(torch.cat(parts), columns))
            self._log(trainer, name, self.directory / f"{name}.png")

    @rank_zero_only
    def _predictions(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes predictions.png, if the model predicts masks and the data have them."""
        assert isinstance(module, TrainingModule)
        model, held_out = module.ema.model, trainer.datamodule.splits["val"]  # type: ignore[attr-defined]
        if not isinstance(model, Predictor) or model.mask_classes is None:
            return
        sample = held_out.sample(torch.arange(min(len(held_out), max(1, self.num_samples // PANELS))))
        if sample.targets is None:
            return
        with trainer.precision_plugin.forward_context():
            predicted = torch.cat([model.predict(images).cpu() for images in sample.images.split(BATCH)])
            instances: list[Tensor] = []
            if model.has_instances and sample.instances is not None:
                found = [model.instances(images).numbers.cpu() for images in sample.images.split(BATCH)]
                instances = [sample.instances, torch.cat(found)]
        panels = compared(sample.images, sample.targets, predicted, model.mask_classes, instances)
        make_run_folder(self.directory)
        path = self.directory / Path(PREDICTIONS).name
        write_png(path, grid(panels, max(1, square_columns(len(panels)) // 2)))
        self._log(trainer, path.stem, path)

    def _log(self, trainer: L.Trainer, key: str, path: Path) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_picture(key, path, trainer.global_step)


def pairs(upper: Tensor, lower: Tensor) -> Tensor:
    """Tiles of two images each, (B, C, H, W) -> (B, C, 2H + 3, W), whose distance is smaller than the next pair's."""
    line = torch.full_like(upper[:, :, :1], 128)
    return torch.cat([upper, line, lower, line, line], dim=2)


def in_order_of_classes(images: ImageSet, count: int, num_classes: int | None) -> Tensor:
    """The numbers of at most `count` images, the i-th of class i mod K.

    There are only as many rows as the rarest class has images. If a class has none, the images are in their own order.
    """
    N = len(images)
    if num_classes is None:
        return torch.arange(min(N, count))
    read = torch.linspace(0, N - 1, min(N, MOST_READ), dtype=torch.float64).long()  # spread over sorted classes
    labels = images[read][1]
    assert labels is not None
    of_class = [read[labels == k] for k in range(num_classes)]
    rows = min(math.ceil(count / num_classes), *map(len, of_class))
    if rows == 0:
        return read[:count]
    return torch.stack([numbers[:rows] for numbers in of_class], dim=1).flatten()[:count]


def _held_out(trainer: L.Trainer) -> ImageDataset:
    images: ImageDataset = trainer.datamodule.splits["val"]  # type: ignore[attr-defined]
    return images


def _generator(module: L.LightningModule) -> Generator | None:
    """The model with averaged weights; None if it cannot draw samples."""
    assert isinstance(module, TrainingModule)
    return module.ema.model if isinstance(module.ema.model, Generator) else None
