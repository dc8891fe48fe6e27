"""Where in the clock the loss is lost."""

import csv
import io
from pathlib import Path
from typing import Any

import lightning as L

from lightning_diffusion.models.diffusion.noise_levels import Level, NoiseLevels
from lightning_diffusion.system.files import write_text
from lightning_diffusion.training.module import DiffusionModule
from lightning_diffusion.training.ownership import make_run_folder


class LossByNoiseLevel(L.Callback):
    """Logs each validation's loss by quarter of the clock, val/loss_q1 (next to data) … val/loss_q4, and keeps the
    last one's by twentieths, with their log-SNR and the error of x̂_0, in a file.

    Args:
        path: of the file, .csv.
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
        self._levels.add(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        self._levels.sums = trainer.strategy.reduce(self._levels.sums, reduce_op="sum")
        for quarter, loss in self._levels.quartiles().items():
            pl_module.log(f"val/loss_{quarter}", loss, sync_dist=True)
        if trainer.is_global_zero and not trainer.sanity_checking:
            _write(self.path, self._levels.levels(pl_module.denoiser.schedule))


def _write(path: Path, levels: list[Level]) -> None:
    make_run_folder(path.parent)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(Level.__annotations__))
    writer.writeheader()
    writer.writerows(levels)
    write_text(path, text.getvalue())
