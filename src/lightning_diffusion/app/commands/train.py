"""A training run: its parts are built and checked, then it trains and measures the model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from lightning_diffusion.app.assembly import assemble
from lightning_diffusion.app.cli import config_errors
from lightning_diffusion.app.resume import resumed, save_overrides, typed_keys
from lightning_diffusion.checkpoints.folder import Damaged
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.configuration.trusted_targets import TARGET
from lightning_diffusion.data.dataset import WrongLabel
from lightning_diffusion.data.decoding import UnreadableImage
from lightning_diffusion.data.module import ImageDataModule
from lightning_diffusion.runs.attended import announce
from lightning_diffusion.runs.environment import record
from lightning_diffusion.system.files import NotWritten, Unreadable
from lightning_diffusion.system.interrupt import let_sigterm_end_at_once
from lightning_diffusion.training.callbacks.lookup import callbacks_of
from lightning_diffusion.training.callbacks.scores import SampleScores
from lightning_diffusion.training.guard import Diverged
from lightning_diffusion.training.ownership import own, ownership, resumes_in_place
from lightning_diffusion.training.results import Results, quiet


@ownership()
def main(config: DictConfig) -> float:
    """Train, and return the final config.metric, which sweeps compare."""
    quiet()
    with config_errors():
        if "samplers" in config:
            raise ConfigError(
                "sweep=samplers: for a trained model only; use python -m src.evaluate ckpt_path=… sweep=samplers"
            )
        given, config = config, config if config.resume is None else resumed(config)
        if resumes_in_place(config.ckpt_path, config.run_dir):
            own(Path(config.run_dir))
        arguments, trainer, module, datamodule = assemble(config)
        if trainer.world_size > 1:
            let_sigterm_end_at_once()  # until the run handles signals itself
        datamodule.fetches = given.resume is None or "data.root" in typed_keys()
        results = Results(trainer, Path(str(arguments.run_dir)), arguments.record)
        if trainer.is_global_zero:
            prepare_data(trainer, datamodule)
            results.claim(resumes_in_place(arguments.ckpt_path, arguments.run_dir))
            announce(results.run_dir)
    module.save_hyperparameters(arguments.record)

    with results, ending(results, module.skips_nonfinite):
        if trainer.is_global_zero:
            record(results.run_dir)
            save_overrides(results.run_dir, given)
        called = {key: node.name for key, node in arguments.nodes.items() if TARGET in node.node}
        results.start(module, datamodule, called, arguments.print_config)
        ckpt_path = None if arguments.ckpt_path is None else str(arguments.ckpt_path)
        trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
        trainer.validate(module, datamodule, verbose=False)
        return results.finish()[arguments.metric]


def prepare_data(trainer: L.Trainer, datamodule: ImageDataModule) -> None:
    """Download and read the images before anything is written, so that bad data is a user error."""
    datamodule.prepare_data()
    datamodule.setup("fit")
    share = trainer.limit_val_batches
    if isinstance(share, float) and datamodule.num_val_batches * share < trainer.world_size:
        raise ConfigError(
            f"trainer.limit_val_batches={share}: leaves none of the {datamodule.num_val_batches} batches; choose a "
            "larger share, or a number of batches"
        )
    for scores in callbacks_of(trainer, SampleScores):
        scores.check(datamodule.splits["train"])


@contextlib.contextmanager
def ending(results: Results, skips_nonfinite: bool) -> Iterator[None]:
    """End a run that cannot continue with one line: errors of files, of data, and divergence."""
    try:
        yield
    except NotWritten as error:
        raise ConfigError(f"{error}{results.remedy()}") from error
    except (Damaged, Unreadable) as error:
        raise ConfigError(str(error)) from error
    except UnreadableImage as error:
        raise ConfigError(f"data: {_last_line(error)}, or data.unreadable=skip to leave such files out") from error
    except WrongLabel as error:
        raise ConfigError(_last_line(error)) from error
    except Diverged as error:
        kept = "the checkpoints precede it" if results.has_checkpoint else "no checkpoint precedes it"
        skip = "" if skips_nonfinite else ", or module.nonfinite=skip to leave such steps out"
        raise ConfigError(f"{error}; {kept}: lower optimizer.lr{skip}") from error


def _last_line(error: Exception) -> str:
    """An error's message without the traceback that a data worker puts before it."""
    kind = type(error)
    return str(error).strip().splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")
