"""Trains a diffusion model: python -m src.train [experiment=…] [key=value …]"""

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO, Precision
from omegaconf import DictConfig

from src.checkpoint import read_checkpoint
from src.cli import entry, mistakes
from src.config import Mistake, check
from src.data.module import ImageDataModule
from src.device import check_trainer
from src.pretrained import adopt, load_weights
from src.resume import resumed, save_overrides
from src.training.callbacks.scores import SampleScores
from src.training.durable import DurableCheckpointIO, NotSaved
from src.training.module import DiffusionModule, Diverged
from src.training.precision import TrueBFloat16
from src.training.results import Results, quiet

KEYS = (
    "name", "seed", "resume", "ckpt_path", "compile", "pretrained", "run_dir",
    "data", "backbone", "schedule", "parameterization", "time_sampler", "weighting", "objective", "denoiser", "module",
    "time_grid", "sampler", "guidance", "metrics", "optimizer", "lr_scheduler", "trainer", "callbacks", "logger",
)  # fmt: skip


@entry("train")
def main(config: DictConfig) -> float:
    """Returns the final validation loss, for sweeps to compare."""
    quiet()
    with mistakes():
        given, config = config, config if config.resume is None else resumed(config)
        weights = adopt(config) if config.get("pretrained") is not None else None
        plain = check(config, KEYS)
        L.seed_everything(plain["seed"], verbose=False)
        datamodule: ImageDataModule = instantiate(plain["data"], _convert_="all")
        module: DiffusionModule = instantiate(plain["module"], _convert_="all")
        if weights is not None:
            for denoiser in (module.denoiser, module.ema.model):
                load_weights(denoiser, weights, plain["pretrained"])
        callbacks: dict[str, L.Callback] = instantiate(plain["callbacks"], _convert_="all")
        logger = instantiate(plain["logger"], _convert_="all")
        trainer = trainer_of(plain["trainer"], list(callbacks.values()), list(logger.values()))
        datamodule.check_devices(trainer.world_size)
        results = Results(plain, trainer)
        # a walk that can be walked, and a guidance that fits the model
        instantiate(plain["sampler"], _convert_="all").check(module.denoiser)
        instantiate(plain["guidance"], _convert_="all")(module.denoiser)
        with mistakes("optimizer"):
            module.configure_optimizers()
        if plain["ckpt_path"] is not None:
            read_checkpoint(plain["ckpt_path"])
        if trainer.is_global_zero:
            datamodule.prepare_data()
            datamodule.setup("fit")
            for callback in callbacks.values():
                if isinstance(callback, SampleScores):
                    callback.check(datamodule.splits["train"])
    module.save_hyperparameters(plain)

    with results:
        results.start(module, datamodule)
        if trainer.is_global_zero:
            save_overrides(results.run_dir, given)
        with ending(trainer):
            trainer.fit(module, datamodule, ckpt_path=plain["ckpt_path"], weights_only=True)
        trainer.validate(module, datamodule, verbose=False)
        return results.finish()


def trainer_of(options: dict[str, Any], callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    """Lightning's trainer, with the project's own ways to save and to round."""
    device_type = check_trainer(options)
    plugins: list[CheckpointIO | Precision] = [DurableCheckpointIO()]
    if options["precision"] == TrueBFloat16.precision:
        options, plugins = {**options, "precision": None}, [*plugins, TrueBFloat16(device_type)]
    with mistakes("trainer"):
        trainer: L.Trainer = instantiate(options, callbacks=callbacks, logger=loggers, plugins=plugins, _convert_="all")
    return trainer


@contextlib.contextmanager
def ending(trainer: L.Trainer) -> Iterator[None]:
    """A run that cannot go on ends in one line: what would come after would be lost."""
    try:
        yield
    except NotSaved as error:
        raise Mistake(f"callbacks.checkpoint: {error}; make room and go on with resume=RUN_DIR") from error
    except Diverged as error:
        raise Mistake(
            f"step {trainer.global_step + 1}: {error}; the checkpoints are from before it: lower optimizer.lr, or "
            "module.nonfinite=skip to leave such steps out"
        ) from error


if __name__ == "__main__":
    main()
