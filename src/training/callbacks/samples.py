"""Pictures of what the model makes, always from the same noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from src.diffusion.denoiser import Denoiser
from src.diffusion.noise import IndexedNoise
from src.diffusion.samplers.base import Sampler, class_labels
from src.images import grid, square_columns, to_uint8, write_gif, write_png
from src.training.module import DiffusionModule

NUM_FRAMES = 40


class SampleGrid(L.Callback):
    """Sample grids during training, the final one and a film of the reverse process, made with the averaged weights.

    Writes step_NNNNNNN.png every n steps, final.png and trajectory.gif at the end, and hands them to W&B by path.
    With classes, each column of the grid is a class.

    Args:
        directory: where the pictures go.
        sampler, guidance: how samples are made.
        shape: (C, H, W) of an image.
        num_classes: None for an unconditional model.
        every_n_steps: optimizer steps between grids; 0 for the final one alone.
        num_samples: in a grid, ≥ 1.
        seed: of the noise.
    """

    def __init__(
        self,
        directory: str,
        sampler: Sampler,
        guidance: Callable[[Denoiser], Denoiser],
        shape: list[int],
        num_classes: int | None,
        every_n_steps: int,
        num_samples: int = 80,
        seed: int = 0,
    ) -> None:
        if every_n_steps < 0 or num_samples < 1:
            raise ValueError(
                f"callbacks.samples.every_n_steps={every_n_steps}, num_samples={num_samples}: "
                "choose every_n_steps >= 0 and num_samples >= 1"
            )
        self.directory, self.sampler, self.guidance = Path(directory), sampler, guidance
        self.shape, self.num_classes = tuple(shape), num_classes
        self.every_n_steps, self.num_samples, self.seed = every_n_steps, num_samples, seed

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step < trainer.max_steps:
            self._picture(trainer, pl_module, f"step_{step:07d}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._picture(trainer, pl_module, "final")
        self._film(trainer, pl_module)

    @rank_zero_only
    def _picture(self, trainer: L.Trainer, module: L.LightningModule, name: str) -> None:
        denoiser, labels = self._denoiser(module), class_labels(self.num_samples, self.num_classes)
        with trainer.precision_plugin.forward_context():
            x = self.sampler.sample(
                denoiser, range(self.num_samples), self.shape, self.seed, labels, device=module.device
            )
        write_png(self.directory / f"{name}.png", grid(to_uint8(x), square_columns(len(x), self.num_classes)))
        self._log(trainer, "samples", self.directory / f"{name}.png")

    @rank_zero_only
    @torch.inference_mode()
    def _film(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        count = min(self.num_samples, 2 * (self.num_classes or 8))
        labels = class_labels(count, self.num_classes)
        noise = IndexedNoise(self.seed, range(count), self.shape, module.device)
        cond = None if labels is None else labels.to(module.device)
        with trainer.precision_plugin.forward_context():
            states = [x.cpu() for x in self.sampler.walk(self._denoiser(module), noise, cond)]
        frames = [states[i] for i in torch.linspace(0, len(states) - 1, min(NUM_FRAMES, len(states))).long()]
        write_gif(
            self.directory / "trajectory.gif",
            [grid(to_uint8(x), square_columns(len(x), self.num_classes)) for x in frames],
        )
        self._log(trainer, "trajectory", self.directory / "trajectory.gif")

    def _denoiser(self, module: L.LightningModule) -> Denoiser:
        assert isinstance(module, DiffusionModule)
        return self.guidance(module.ema.model).to(module.device)  # a guidance may bring a network of its own

    def _log(self, trainer: L.Trainer, key: str, path: Path) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                log = logger.log_video if path.suffix == ".gif" else logger.log_image
                log(key, [str(path)], step=trainer.global_step)
