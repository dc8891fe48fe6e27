"""The validation loss by diffusion time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_diffusion.models.contracts import HeldOut
from lightning_diffusion.system.files import csv_text, write_text
from lightning_diffusion.training.module import TrainingModule
from lightning_diffusion.training.ownership import make_run_folder

BINS = 20  # equal intervals of t/T


class NoiseLevels:
    """Sums over held-out images by interval of time: interval i is t/T in (i/BINS, (i + 1)/BINS]."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(BINS, 3, device=device)  # images, loss, error

    def add(self, time: Tensor, loss: Tensor, error: Tensor) -> None:
        part = ((time * BINS).ceil().long() - 1).clamp(0, BINS - 1)
        values = torch.stack([torch.ones_like(loss), loss, error], dim=1)  # (B, 3)
        self.sums += F.one_hot(part, BINS).to(values).T @ values.to(self.sums)

    def quartiles(self) -> dict[str, float]:
        """The mean loss by quarter of time; q1 is next to the data. Quarters without images are omitted."""
        images, losses, _ = self.sums.unflatten(0, (4, -1)).sum(1).T.tolist()
        return {f"q{i + 1}": losses[i] / images[i] for i in range(4) if images[i]}

    def levels(self, also: Callable[[Tensor], dict[str, list[float]]]) -> list[dict[str, float]]:
        """The intervals that contain images: the middle t/T, the columns of `also`, and means over the images.

        Args:
            also: middles of the intervals (BINS,) -> columns by name.
        """
        middles = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        columns = {"time": middles.tolist(), **also(middles)}
        return [
            {name: column[i] for name, column in columns.items()}
            | {"images": int(n), "loss": loss / n, "error": error / n}
            for i, (n, loss, error) in enumerate(self.sums.tolist())
            if n
        ]


class LossByNoiseLevel(L.Callback):
    """Logs each validation's loss by quarter of time, val/loss_q1 (next to the data) … val/loss_q4.

    A file holds the last validation's loss by twentieths, with their log-SNR and the error of x̂_0. A model without a
    notion of time writes no file.

    Args:
        path: of the .csv file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        if not self.path.name or self.path.is_dir():
            raise ValueError(f"callbacks.noise_levels.path={path!r}: name a file")
        self._levels = NoiseLevels()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._levels = NoiseLevels(pl_module.device)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        assert isinstance(outputs, HeldOut)
        if outputs.time is not None and outputs.error is not None:
            self._levels.add(outputs.time, outputs.figures["loss"], outputs.error)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._levels.sums = trainer.strategy.reduce(self._levels.sums, reduce_op="sum")
        for quarter, loss in self._levels.quartiles().items():
            pl_module.log(f"val/loss_{quarter}", loss, sync_dist=True)
        levels = self._levels.levels(lambda times: pl_module.objective.at_times(pl_module.model, times))
        if levels and trainer.is_global_zero and not trainer.sanity_checking:
            _write(self.path, levels)


def _write(path: Path, levels: list[dict[str, float]]) -> None:
    make_run_folder(path.parent)
    write_text(path, csv_text([levels[0], *(level.values() for level in levels)]))
