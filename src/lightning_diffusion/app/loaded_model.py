"""A trained model in the Python API, which draws, edits and measures as the programs do."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig
from torch import Tensor

from lightning_diffusion.app.cli import config_errors
from lightning_diffusion.app.drawing import NONE, apply_drawing
from lightning_diffusion.app.edit_inputs import label_condition, prepare_inputs, with_label
from lightning_diffusion.app.evaluation import (
    LikelihoodEvaluation,
    SampleEvaluation,
    parse_evaluation,
    prepare_likelihood,
    prepare_samples,
)
from lightning_diffusion.app.evaluation_report import score_results
from lightning_diffusion.app.keywords import configured
from lightning_diffusion.app.sampling import (
    NAMES,
    as_editor,
    as_generator,
    conditions,
    given_condition,
    held_out_conditions,
    parse_arguments,
    parse_early,
)
from lightning_diffusion.app.sampling import draw as draw_all
from lightning_diffusion.app.sampling import edit as edit_all
from lightning_diffusion.checkpoints.loading import TrainedModel
from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.configuration.arguments import at_least
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.time_grid import TimeGrid
from lightning_diffusion.metrics.batches import shard_batches
from lightning_diffusion.metrics.likelihood import Likelihood as LikelihoodMetric
from lightning_diffusion.models.contracts import Generator, Model
from lightning_diffusion.system.memory import check_fits

Images = npt.NDArray[np.uint8]
Classes = int | Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor
SINGLE: Final = {"num_variants": 1}
Guidance = Callable[..., Denoiser]  # a denoiser -> the guided one


class LoadedModel:
    """A trained model with its averaged weights, as `load` returns it.

    `draw`, `trajectory`, `edit` and `evaluate` share these arguments:

        sampler, time_grid, guidance: the name of an option in conf/, such as "dpm_multistep", or an object of that
            kind; None draws as the model's own run does.
        options: arguments of these parts, of the edit or of the metric: num_steps=10, order=3, scale=2.0. If two parts
            have an argument of the same name, the first of edit, sampler, time_grid, guidance, metrics and data
            receives it.

    A wrong name, a wrong value, or a task that this family of models does not support raises ConfigError.
    """

    def __init__(
        self, trained: TrainedModel, path: Path, device: torch.device, precision: str, trust: list[str]
    ) -> None:
        self.path, self.device, self.precision = path, device, precision
        self._trained, self._trust = trained, trust

    @property
    def module(self) -> Model:
        """The model, an nn.Module in evaluation mode."""
        return self._trained.model

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        C, H, W = self._trained.shape
        return H, W, C

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None for a model without classes."""
        return self._trained.num_classes

    def __repr__(self) -> str:
        classes = "" if self.num_classes is None else f", {self.num_classes} classes"
        shape = "×".join(map(str, self.shape))
        return f"<{type(self.module).__name__} of {shape} images{classes}, {self.path}, {self.device}>"

    def draw(
        self,
        num_samples: int = 64,
        *,
        seed: int = 0,
        label: Classes | None = None,
        caption: str | None = None,
        attributes: Sequence[float] | None = None,
        batch_size: int = 64,
        sampler: str | Sampler | None = None,
        time_grid: str | TimeGrid | None = None,
        guidance: str | Guidance | None = None,
        **options: Any,
    ) -> Images:
        """Samples, uint8 (N, H, W, C). Sample i depends only on the weights, the seed, i and its class.

        Args:
            label: one class for all samples, or one for each; None cycles through the classes.
            caption, attributes: the condition of all samples, for a model that takes it; None cycles through those of
                held-out images.
            batch_size: the number of samples that are drawn at once.

        Raises:
            ConfigError: see the class.
        """
        parts = {"sampler": sampler, "time_grid": time_grid, "guidance": guidance}
        keys: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "batch_size": batch_size}
        keys |= {"caption": caption, "attributes": attributes}
        model, condition = self._generator(keys, label, parts, options)
        return _arrays(draw_all(model, condition, num_samples, batch_size, seed))

    def trajectory(
        self,
        num_samples: int = 8,
        *,
        seed: int = 0,
        label: Classes | None = None,
        caption: str | None = None,
        attributes: Sequence[float] | None = None,
        batch_size: int = 64,
        sampler: str | Sampler | None = None,
        time_grid: str | TimeGrid | None = None,
        guidance: str | Guidance | None = None,
        **options: Any,
    ) -> Images:
        """The states that lead to the samples of `draw`, uint8 (states, N, H, W, C); the samples come last.

        Raises:
            ConfigError: see the class.
        """
        parts = {"sampler": sampler, "time_grid": time_grid, "guidance": guidance}
        keys: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "batch_size": batch_size}
        keys |= {"caption": caption, "attributes": attributes}
        model, condition = self._generator(keys, label, parts, options, states=True)
        trajectories = []
        for batch in shard_batches(num_samples, batch_size):
            part = None if condition is None else condition[batch.start : batch.stop]
            trajectories.append(torch.stack(list(model.trajectory(batch, part, seed))))
        return _arrays(torch.cat(trajectories, dim=1))

    def bits_per_dim(
        self, images: Images | Tensor, *, label: Classes | None = None, seed: int = 0, batch_size: int = 64
    ) -> npt.NDArray[np.float64]:
        """The negative log-likelihood of each image in bits per dimension (N,): lower is better.

        Validation logs its mean as val/bits_per_dim. For a diffusion model it is an upper bound.
        `evaluate(metrics="likelihood")` measures every likelihood that the model's family has.

        Args:
            images: uint8 (N, H, W, C) of the model's shape.
            label: one class for all images, or one for each; None for a model that needs no classes.
            seed: of the noise that is added to the images.

        Raises:
            ConfigError: see the class.
        """
        with config_errors():
            at_least(1, batch_size=batch_size)
            model = LikelihoodMetric().check(self.module)
            pictures = self._pictures(images)
            condition = label_condition(label, len(pictures), self.num_classes)
            if condition is None and isinstance(model, Generator) and model.needs_labels:
                raise ConfigError("label: missing; this model needs the class of each image")
            if isinstance(model, Generator) and (needed := model.needs_part) is not None:
                raise ConfigError(f"images: this model needs {NAMES[needed]} as the condition of each; use evaluate")
        found = []
        with torch.no_grad():
            for batch in shard_batches(len(pictures), batch_size):
                here = slice(batch.start, batch.stop)
                part = None if condition is None else condition[here].to(self.device)
                found.append(model.bits_per_dim(pictures[here].to(self.device), part, batch, seed).cpu().double())
        bits: npt.NDArray[np.float64] = torch.cat(found).numpy()
        return bits

    def edit(
        self,
        edit: str,
        images: Images | Tensor,
        *,
        mask: str | npt.NDArray[Any] | Tensor | None = None,
        label: Classes | None = None,
        seed: int = 0,
        sampler: str | Sampler | None = None,
        time_grid: str | TimeGrid | None = None,
        guidance: str | Guidance | None = None,
        **options: Any,
    ) -> dict[str, Images]:
        """The columns of a strip by name, inputs first, each uint8 (N, H, W, C).

        With num_variants=V the columns of results are (V N, H, W, C): the first variant of every picture, then the
        second, and so on. V is 1 by default.

        Args:
            edit: "inpaint", "image_to_image", "invert" or "interpolate".
            images: uint8 (N, H, W, C) of the model's shape.
            mask: for "inpaint": (H, W), true where to fill in, or "left", "right", "top", "bottom", "middle".
            label: one class for all images, or one for each.

        Raises:
            ConfigError: see the class.
        """
        parts = {"edit": edit, "sampler": sampler, "time_grid": time_grid, "guidance": guidance}
        with config_errors():
            editor, pictures = as_editor(self.module), self._pictures(images)
            keys = {"seed": seed}
            area = mask if mask is None or isinstance(mask, str) else torch.as_tensor(mask).cpu()
            with self._configured("sample", keys, parts, options, SINGLE) as (config, objects):
                parse_early(config)
                arguments = parse_arguments(config, self._trained.file, objects)
                editor = as_editor(apply_drawing(self.module, arguments, objects))
            if arguments.edit is None:
                raise ConfigError("edit: missing; give the name of an edit, such as inpaint")
            grid = {key: part for key, part in objects.items() if key in arguments.edit.node}
            editing = arguments.edit.make(**grid)
            inputs = prepare_inputs(pictures, label, area, editing, editor)
            editor.check_edit(editing, len(pictures))
        columns = edit_all(editor, editing, inputs, seed)
        first = {name: column[: len(pictures)] for name, column in columns.items() if name in editing.inputs}
        return {name: _arrays(column) for name, column in (columns | first).items()}

    def evaluate(
        self,
        num_samples: int | None = None,
        metrics: str = "classifier",
        *,
        seed: int = 0,
        batch_size: int = 64,
        data: str | None = None,
        reference: str | PathLike[str] | None = None,
        extrapolate: bool | None = None,
        num_images: int | None = None,
        split: str | None = None,
        sampler: str | Sampler | None = None,
        time_grid: str | TimeGrid | None = None,
        guidance: str | Guidance | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """The content of src.evaluate's metrics.json. Nothing is written.

        Each score is a dict: "value", and under "floor" the value of equally many held-out images. "how" records the
        samples and the images that were compared. With metrics="likelihood", each has "mean" and "standard_error".

        Args:
            num_samples: the number of samples to draw; None draws as many as there are held-out images, at most 1,000.
            metrics: the name of an option in conf/metrics.
            data: the name of an option in conf/data; None is the data that the model was trained on.
            reference: a folder or .npz file of images to compare with instead of the data.
            extrapolate: whether to extrapolate the Fréchet distance to infinitely many samples.
            num_images, split: for metrics="likelihood": the number of images, from "train" or "val".

        Raises:
            ConfigError: see the class.
        """
        parts = {"sampler": sampler, "time_grid": time_grid, "guidance": guidance, "metrics": metrics, "data": data}
        is_a_checkpoint = not self.path.is_dir() and self.path.suffix != ".safetensors"
        keys = {
            "ckpt_path" if is_a_checkpoint else "pretrained": self.path, "num_samples": num_samples, "seed": seed,
            "batch_size": batch_size, "reference": reference, "extrapolate": extrapolate, "num_images": num_images,
            "split": split, "precision": self.precision,
        }  # fmt: skip
        with self._configured("evaluate", keys, parts, options) as (config, objects), config_errors():
            arguments, metric = parse_evaluation(config)
            ready: LikelihoodEvaluation | SampleEvaluation
            if isinstance(metric, LikelihoodMetric):
                ready = prepare_likelihood(arguments, self._trained, metric)
            else:
                ready = prepare_samples(config, self._trained, metric, self.device, objects)
        if isinstance(ready, LikelihoodEvaluation):
            return ready.results(*ready.measure(self.device))
        measured = ready.measure(ready.runs[0])
        near = ready.comparison.neighbours(measured.features)
        return score_results(ready.comparison, measured, near, ready.made_with)

    def _generator(
        self,
        keys: Mapping[str, Any],
        label: Classes | None,
        parts: Mapping[str, Any],
        options: Mapping[str, Any],
        states: bool = False,
    ) -> tuple[Generator, Condition | None]:
        """The model with these parts, and the condition of each sample."""
        num_samples = keys["num_samples"]
        with config_errors(), self._configured("sample", keys, parts, options) as (config, objects):
            as_generator(self.module, "model")
            early = parse_early(config)
            at_least(1, num_samples=early.num_samples, batch_size=early.batch_size)
            arguments = parse_arguments(config, self._trained.file, objects)
            model = as_generator(apply_drawing(self.module, arguments, objects))
            size = 1 + model.num_steps if states else 4
            check_fits("num_samples", num_samples, size * math.prod(self.shape))
            labels = label_condition(label, num_samples, self.num_classes)
            given = given_condition(model, arguments, num_samples)
            held_out = held_out_conditions(self._trained, arguments.data, self._trust, given)
            condition = conditions(model, num_samples, given, held_out)
        return model, condition if labels is None else with_label(condition, labels)

    def _configured(
        self,
        program: str,
        keys: Mapping[str, Any],
        parts: Mapping[str, Any],
        options: Mapping[str, Any],
        defaults: Mapping[str, Any] = NONE,
    ) -> AbstractContextManager[tuple[DictConfig, dict[str, Any]]]:
        return configured(self._trained, self._trust, program, keys, parts, options, defaults)

    def _pictures(self, images: Images | Tensor) -> Tensor:
        """uint8 (N, C, H, W) on the CPU."""
        pictures = images.cpu() if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
        if pictures.dtype != torch.uint8 or pictures.shape[1:] != self.shape or len(pictures) == 0:
            wanted = ", ".join(map(str, ("N", *self.shape)))
            kind = str(pictures.dtype).removeprefix("torch.")
            raise ConfigError(f"images: expected uint8 ({wanted}), got {kind} {tuple(pictures.shape)}")
        return pictures.permute(0, 3, 1, 2).contiguous()


def _arrays(images: Tensor) -> Images:
    """(…, C, H, W) -> (…, H, W, C)"""
    arrays: Images = images.movedim(-3, -1).contiguous().numpy()
    return arrays
