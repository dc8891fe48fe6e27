"""The package from Python: load a trained model, draw, edit and measure with it; train one.

    import lightning_diffusion as ld
    model = ld.load("runs/digits/TIME")
    images = model.draw(64, seed=0, label=3, sampler="dpm_multistep", num_steps=10)

Numbers are those of the programs: `model.draw` gives the pixels of `python -m src.sample` with the same words. Without
words a model draws as its own run does.

Images are uint8 arrays (N, H, W, C). Mistakes raise `ConfigError`, one line that names the argument and the remedy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from lightning_diffusion.app.cli import config_errors
from lightning_diffusion.app.loaded_model import LoadedModel
from lightning_diffusion.checkpoints.loading import assembled
from lightning_diffusion.checkpoints.model_file import read
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.models.contracts import Compile
from lightning_diffusion.runs.attended import attend
from lightning_diffusion.runs.run import CHECKPOINT, CONFIG, Points, Run
from lightning_diffusion.training.devices import prepare_for_inference, usable

__all__ = ["ConfigError", "LoadedModel", "TrainingRun", "load", "train"]


@dataclass(frozen=True)
class TrainingRun:
    """A finished run. `train` makes it.

    Args:
        record: the run as its folder has it.
    """

    record: Run

    @property
    def folder(self) -> Path:
        """With config.yaml, metrics.json, samples/ and checkpoints/."""
        return self.record.folder

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of metrics.json by name: "val/bits_per_dim", "fd_classifier", …"""
        return self.record.metrics

    @property
    def floors(self) -> dict[str, float]:
        """What held-out images reach, by the name of a score."""
        return self.record.floors

    @property
    def curves(self) -> dict[str, Points]:
        """(steps, values) of all that was logged, by name."""
        return self.record.curves

    def model(self, device: str = "auto", precision: str = "32-true", trust: Sequence[str] = ()) -> LoadedModel:
        """The trained model. Arguments and errors as of `load`."""
        return load(self.folder, device, precision, trust)


def load(
    path: str | PathLike[str],
    device: str = "auto",
    precision: str = "32-true",
    trust: Sequence[str] = (),
    compile: Compile = False,
) -> LoadedModel:
    """A trained model with its averaged weights.

    Args:
        path: a run's folder (its checkpoints/last.ckpt is taken), a checkpoint, a file of src.export, or a folder that
            diffusers wrote. Nothing in it is executed.
        device: "cpu", "cuda", …; "auto" takes a GPU where there is one.
        precision: "32-true", or "bf16-mixed": the network in bfloat16.
        trust: packages whose classes the file may name, besides this project's own.
        compile: whether to compile the network; "reduce-overhead" by CUDA graphs too.

    Raises:
        ConfigError: no such file, no model of this project, or a device or a precision that cannot be had here.
    """
    with config_errors():
        found, where = _model_in(Path(path).expanduser()), usable(device)
        trained = assembled(read(found, "path", trust), trust)
        prepare_for_inference(trained.model, where, precision, compile)
    unburdened = trained._replace(file=trained.file._replace(weights={}))  # the model has them
    return LoadedModel(unburdened, found, where, precision, list(trust))


def train(*words: str) -> TrainingRun:
    """Runs `python -m src.train WORDS` in a separate process and prints its output as it comes.

    An interruption (Ctrl-C, a notebook's stop button) ends the run with a checkpoint, and train("resume=RUN") continues
    it.

    Args:
        words: of the command line, "experiment=digits", "trainer.max_steps=200".

    Raises:
        ConfigError: the program's own one-line error.
        RuntimeError: the run ended otherwise before it was done.
        KeyboardInterrupt: it was interrupted.
    """
    return TrainingRun(attend(words))


def _model_in(path: Path) -> Path:
    """The checkpoint of a run's folder; any other path as it is."""
    is_a_run = (path / CHECKPOINT).parent.is_dir() or (path / CONFIG).is_file()
    return path / CHECKPOINT if is_a_run else path
