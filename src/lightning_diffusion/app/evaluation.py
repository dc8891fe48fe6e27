"""Evaluations, prepared and measured, for src.evaluate and for the Python API."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from lightning_diffusion.app.drawing import NONE, apply_drawing, describe, fill_drawing, node_of
from lightning_diffusion.app.evaluation_inputs import (
    Arguments,
    EarlyArguments,
    ReferenceData,
    SamplingRun,
    count_samples,
    parse_early,
    read_reference,
    sampling_runs,
)
from lightning_diffusion.app.evaluation_report import Measured, measure_run
from lightning_diffusion.app.resume import typed_keys
from lightning_diffusion.checkpoints.loading import TrainedModel, load_data
from lightning_diffusion.configuration.arguments import at_least, parse
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.metrics.comparison import Comparison
from lightning_diffusion.metrics.extractors.base import Extractor
from lightning_diffusion.metrics.likelihood import Likelihood
from lightning_diffusion.models.contracts import Likelihood as Measurable
from lightning_diffusion.models.contracts import Model
from lightning_diffusion.system.progress import Phase

DISTANCE = "distance"
DRAWING = ("num_samples", "sampler", "samplers", "num_steps", "time_grid", "guidance")
UNREAD = {  # the keys that each kind of measurement does not read
    "metrics=likelihood": (*DRAWING, "images", "reference"), "images=…": (*DRAWING, "num_images", "split"),
    DISTANCE: ("num_images", "split"),
}  # fmt: skip


def parse_evaluation(config: DictConfig) -> tuple[EarlyArguments, Likelihood | Extractor]:
    """The metric, and the arguments that can be checked before the model's file is read.

    Raises:
        ConfigError: a wrong value, or a key that this kind of measurement does not read.
    """
    arguments = parse_early(config)
    at_least(1, num_images=arguments.num_images, batch_size=arguments.batch_size)
    metric = arguments.metrics.make()
    refuse_unread(arguments, isinstance(metric, Likelihood))
    if isinstance(metric, Likelihood) and arguments.extrapolate:
        raise ConfigError("extrapolate=true: a likelihood is not biased by the number of images; leave it out")
    return arguments, metric


def refuse_unread(arguments: EarlyArguments, is_likelihood: bool) -> None:
    """Raise ConfigError if the command line gives a key that this kind of measurement does not read."""
    kind = "metrics=likelihood" if is_likelihood else "images=…" if arguments.images is not None else DISTANCE
    others = {"num_samples": "num_images", "num_images": "num_samples"}
    for key in typed_keys():
        if key.split(".")[0] in UNREAD[kind]:
            other, value = others.get(key), getattr(arguments, key, None)
            instead = f"give {other}={value}" if other and other not in UNREAD[kind] else "leave it out"
            why = "only used with metrics=likelihood" if kind == DISTANCE else f"not used with {kind}"
            raise ConfigError(f"{key}: {why}; {instead}")


class SampleEvaluation(NamedTuple):
    """A prepared evaluation of samples: how they are drawn, how many, and the images to compare them with."""

    arguments: Arguments
    model: Model
    runs: list[SamplingRun]
    num_samples: int
    real: ReferenceData
    comparison: Comparison
    held_out: ImageDataset | None  # the images whose conditions the model draws with, if it needs them

    def measure(self, run: SamplingRun) -> Measured:
        """Draw and score the samples of one sampling run."""
        N, batch_size, seed = self.num_samples, self.arguments.batch_size, self.arguments.seed
        with Phase(
            f"drawing {N:,} samples by {self.describe(run)}", run.model.num_steps * -(-N // batch_size)
        ) as phase:
            return measure_run(self.comparison, run, seed, N, batch_size, phase.advance, self.held_out)

    def describe(self, run: SamplingRun) -> str:
        """How this run draws, for console output."""
        return describe(self.model, run.sampler or self.arguments.sampler, self.arguments.guidance)

    @property
    def made_with(self) -> dict[str, Any]:
        """The part of the configuration that metrics.json records."""
        keys = ("ckpt_path", "pretrained", "seed", "precision", "guidance", "reference", "data")
        found = self.arguments.recorded(*keys)
        if len(self.runs) > 1:
            return found
        sampler = self.runs[0].sampler
        return found | self.runs[0].model.how() | ({} if sampler is None else {"sampler": sampler.node})


def prepare_samples(
    config: DictConfig,
    trained: TrainedModel,
    extractor: Extractor,
    device: torch.device,
    objects: Mapping[str, Any] = NONE,
) -> SampleEvaluation:
    """Prepare an evaluation of samples, with the features of the reference, which are computed or read from a cache.

    Args:
        objects: made parts that replace the configuration's parts, by key.

    Raises:
        ConfigError, ValueError, FileNotFoundError: the samples cannot be drawn or compared this way.
    """
    arguments = parse(fill_drawing(config, trained.file, without=objects), Arguments)
    model = apply_drawing(trained.model, arguments, objects)
    real = read_reference(arguments, trained)
    count = count_samples(arguments.num_samples, real)
    runs = sampling_runs(arguments, model, objects)
    comparison = compare(extractor, real, device, arguments.extrapolate)
    comparison.check(count)
    names: dict[str, Any] = {key: node_of(key, part) for key, part in objects.items()}
    held_out = None
    if model.condition_source is not None:
        held_out = real.held_out if arguments.reference is None else load_data(trained, None, arguments.trust)["val"]
    return SampleEvaluation(replace(arguments, **names), model, runs, count, real, comparison, held_out)


def compare(extractor: Extractor, real: ReferenceData, device: torch.device, extrapolate: bool) -> Comparison:
    """A comparison with the reference. Raises ValueError if the extractor cannot read its images."""
    extractor.check(real.images)
    return Comparison(extractor, real.images, real.held_out, device, extrapolate)


class LikelihoodEvaluation(NamedTuple):
    """A prepared evaluation of a model's likelihood on the images of a data set."""

    arguments: EarlyArguments
    trained: TrainedModel
    metric: Likelihood
    measurable: Measurable
    dataset: ImageDataset

    def measure(self, device: torch.device) -> tuple[dict[str, Tensor], float]:
        """Bits per dimension of each image, (N,) by name, and the seconds that the measurement took."""
        started, parts, arguments = time.monotonic(), [], self.arguments
        batches = torch.arange(arguments.num_images).split(arguments.batch_size)
        with Phase("likelihood", len(batches) * self.metric.steps(self.measurable)) as phase:
            for batch in batches:
                sample = self.dataset.sample(batch)
                condition = sample.condition(self.trained.num_classes)
                parts.append(
                    self.metric(
                        self.measurable, sample.images.to(device), None if condition is None else condition.to(device),
                        int(batch[0]), arguments.seed, on_step=phase.advance,
                    )
                )  # fmt: skip
        scores = {name: torch.cat([part[name].cpu().double() for part in parts]) for name in parts[0]}
        return scores, time.monotonic() - started

    def results(self, scores: dict[str, Tensor], seconds: float) -> dict[str, Any]:
        """The content of metrics.json."""
        results: dict[str, Any] = {}
        for name, values in scores.items():
            error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
            results[name] = {"mean": float(values.mean()), "standard_error": error}
        keys = ("ckpt_path", "pretrained", "split", "num_images", "seed", "precision", "metrics")
        how = self.arguments.recorded(*keys)
        return results | {"how": how | {"model": self.trained.file.node, "seconds": seconds, "unit": "bits/dim"}}


def prepare_likelihood(arguments: EarlyArguments, trained: TrainedModel, metric: Likelihood) -> LikelihoodEvaluation:
    """Prepare an evaluation of the likelihood.

    Raises:
        ConfigError, ValueError, FileNotFoundError: the likelihood cannot be measured this way.
    """
    split, num_images = arguments.split, arguments.num_images
    if split not in ("train", "val"):
        raise ConfigError(f"split={split}: choose train or val")
    measurable = metric.check(trained.model)
    dataset = load_data(trained, arguments.data, arguments.trust)["train" if split == "train" else "val"]
    if num_images > len(dataset):
        raise ConfigError(f"num_images={num_images}: the {split} split has {len(dataset)} images; choose fewer")
    return LikelihoodEvaluation(arguments, trained, metric, measurable, dataset)
