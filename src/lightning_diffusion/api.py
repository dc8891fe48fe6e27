"""The Python API: train a model, or load a trained one to draw, edit and measure.

    import lightning_diffusion as ld
    model = ld.load("runs/digits/TIME")
    images = model.draw(64, seed=0, label=3, sampler="dpm_multistep", num_steps=10)

The results equal those of the programs: with the same options, `model.draw` returns the pixels that
`python -m src.sample` writes. Without options, a model draws as its own run does.

Images are uint8 arrays (N, H, W, C). An invalid argument raises `ConfigError`, whose line names it and the remedy.
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
    """A finished run, as `train` returns it.

    Args:
        record: the run's folder and the files in it.
    """

    record: Run

    @property
    def folder(self) -> Path:
        """The folder with config.yaml, metrics.json, samples/ and checkpoints/."""
        return self.record.folder

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of metrics.json by name: "val/bits_per_dim", "fd_classifier", …"""
        return self.record.metrics

    @property
    def floors(self) -> dict[str, float]:
        """The values of held-out images, by the name of the score."""
        return self.record.floors

    @property
    def curves(self) -> dict[str, Points]:
        """(steps, values) of each logged quantity, by name."""
        return self.record.curves

    def model(self, device: str = "auto", precision: str = "32-true", trust: Sequence[str] = ()) -> LoadedModel:
        """The trained model. Arguments and errors are those of `load`."""
        return load(self.folder, device, precision, trust)


def load(
    path: str | PathLike[str],
    device: str = "auto",
    precision: str = "32-true",
    trust: Sequence[str] = (),
    compile: Compile = False,
) -> LoadedModel:
    """Load a trained model with its averaged weights.

    Args:
        path: a run's folder (its checkpoints/last.ckpt is loaded), a checkpoint, a file written by src.export, or a
            folder written by diffusers. Nothing in it is executed.
        device: "cpu", "cuda", …; "auto" uses a GPU if there is one.
        precision: "32-true", or "bf16-mixed" to run the network in bfloat16.
        trust: packages whose classes the file can use, in addition to this project's own.
        compile: whether to compile the network; "reduce-overhead" also uses CUDA graphs.

    Raises:
        ConfigError: the file does not exist or holds no model of this project, or the device or precision is not
            available here.
    """
    with config_errors():
        found, where = _model_in(Path(path).expanduser()), usable(device)
        trained = assembled(read(found, "path", trust), trust)
        prepare_for_inference(trained.model, where, precision, compile)
    without_copy = trained._replace(file=trained.file._replace(weights={}))  # the model holds the weights
    return LoadedModel(without_copy, found, where, precision, list(trust))


def train(*words: str) -> TrainingRun:
    """Run `python -m src.train ARGUMENTS` in a separate process and print its output as it appears.

    An interruption (Ctrl-C, a notebook's stop button) ends the run with a checkpoint, and train("resume=RUN") resumes
    it.

    Args:
        words: the arguments of the command line, such as "experiment=digits", "trainer.max_steps=200".

    Raises:
        ConfigError: the program's own one-line error.
        RuntimeError: the run ended early for another reason.
        KeyboardInterrupt: the run was interrupted.
    """
    return TrainingRun(attend(words))


def _model_in(path: Path) -> Path:
    """The checkpoint of a run's folder; any other path unchanged."""
    is_a_run = (path / CHECKPOINT).parent.is_dir() or (path / CONFIG).is_file()
    return path / CHECKPOINT if is_a_run else path
