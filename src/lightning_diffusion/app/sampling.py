"""Samples and edits, prepared and drawn, for src.sample and for the Python API."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lightning_diffusion.app.drawing import NONE, Drawing, ModelArguments, fill_drawing, option_of
from lightning_diffusion.app.edit_inputs import EditInputs
from lightning_diffusion.app.output import show
from lightning_diffusion.checkpoints.loading import TrainedModel, load_data
from lightning_diffusion.checkpoints.model_file import ModelFile
from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.configuration.arguments import Node, Text, parse
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.data.module import ImageDataModule
from lightning_diffusion.diffusion.editing.base import Editing
from lightning_diffusion.metrics.batches import shard_batches
from lightning_diffusion.models.contracts import Editor, Generator, Model
from lightning_diffusion.system.progress import Phase

NAMES = {"image": "an image", "attributes": "attributes", "tokens": "a caption"}  # of the parts of a condition


@dataclass(frozen=True)
class EarlyArguments(ModelArguments):
    """The keys of conf/sample.yaml that are checked before the model's file is read."""

    num_samples: int
    label: int | None
    output_dir: Text
    images: list[Text] | None
    mask: Text | None
    caption: Text | None
    attributes: list[float] | None
    data: Node[ImageDataModule] | None


@dataclass(frozen=True)
class Arguments(Drawing, EarlyArguments):
    """All keys of conf/sample.yaml."""

    edit: Node[Editing] | None  # uses the time grid


def parse_early(config: DictConfig) -> EarlyArguments:
    """The arguments that can be checked before the model's file is read."""
    return parse(config, EarlyArguments, whole=Arguments)


def parse_arguments(config: DictConfig, file: ModelFile, objects: Mapping[str, Any] = NONE) -> Arguments:
    """The arguments, with the run's own sampler, time grid and guidance unless a word chooses others.

    If an edit needs a deterministic sampler and the run's own is stochastic, it gets the program's default sampler.

    Args:
        objects: made parts that replace the configuration's parts, by key.
    """
    arguments = parse(fill_drawing(config, file, without=objects), Arguments)
    if "sampler" in objects or arguments.edit is None or not arguments.edit.make().needs_latents:
        return arguments
    if not arguments.sampler.make().stochastic:
        return arguments
    instead = parse(fill_drawing(config, file, without=["sampler", *objects]), Arguments)
    if instead.sampler.node != arguments.sampler.node:
        own, default = (option_of(found.sampler) for found in (arguments, instead))
        text = f"sampler={default}: this edit needs a deterministic sampler, and the run's own, {own}, is stochastic"
        show(text)
    return instead


def as_generator(model: Model, key: str = "ckpt_path") -> Generator:
    """The model, if it draws samples. Otherwise raises ConfigError with this key."""
    if not isinstance(model, Generator):
        raise ConfigError(f"{key}: a {type(model).__name__} draws no samples; choose another model")
    return model


def as_editor(model: Model) -> Editor:
    """The model, if it edits pictures. Otherwise raises ConfigError."""
    if not isinstance(model, Editor):
        raise ConfigError(f"edit: a {type(model).__name__} cannot edit pictures; leave it out")
    if isinstance(model, Generator) and (part := model.needs_part) is not None:
        raise ConfigError(
            f"edit: this model draws only with {NAMES[part]} as its condition; train with {part}_dropout=0.1"
        )
    return model


def given_condition(model: Generator, arguments: EarlyArguments, count: int) -> Condition | None:
    """The condition of `count` samples by caption=… or attributes=…, without a label; None if there is none.

    Raises:
        ConfigError: the model takes no such condition.
        ValueError: a wrong value.
    """
    source = model.condition_source
    for key in ("caption", "attributes"):
        if (value := getattr(arguments, key)) is not None:
            if source is None or source.word != key:
                takes = "" if source is None or source.word is None else f"; give {source.word}=…"
                raise ConfigError(f"{key}: this model was trained without {key}; leave it out{takes}")
            return Condition.cat([source.read(value)] * count)
    return None


def conditions(
    model: Generator, count: int, given: Condition | None, held_out: ImageDataset | None
) -> Condition | None:
    """The condition of each sample: the one that is given with a class in turn, or those of held-out images in turn."""
    if given is None:
        return model.conditions_in_turn(range(count), held_out)
    K = model.num_classes
    return given if K is None else Condition(**given.parts | {"label": torch.arange(count) % K})


def held_out_conditions(
    trained: TrainedModel, data: Node[ImageDataModule] | None, trust: list[str], given: Condition | None = None
) -> ImageDataset | None:
    """The held-out images whose conditions a model draws with, of its own data or of `data`; None if it needs none.

    Args:
        given: the condition that replaces those of the images, or None.

    Raises:
        ConfigError: data are given, but the model needs none.
        ValueError, FileNotFoundError: data that are missing, damaged or do not fit.
    """
    if given is not None and data is not None:
        raise ConfigError("data: the condition of each sample is given, so no data are needed; leave it out")
    if trained.model.condition_source is None and data is not None:
        raise ConfigError("data: this model takes no condition from data, so it needs none; leave it out")
    if trained.model.condition_source is None or given is not None:
        return None
    return load_data(trained, data, trust)["val"]


def draw(model: Generator, condition: Condition | None, count: int, batch_size: int, seed: int) -> Tensor:
    """Samples 0 … count − 1, uint8 (N, C, H, W), drawn in batches. condition: of length N, or None."""
    batches, images = shard_batches(count, batch_size), []
    with Phase(f"drawing {count:,} samples", model.num_steps * len(batches)) as phase:
        for batch in batches:
            part = None if condition is None else condition[batch.start : batch.stop]
            images.append(model.draw(batch, part, seed, phase.advance).images)
    return torch.cat(images)


def edit(model: Editor, editing: Editing, inputs: EditInputs, seed: int) -> dict[str, Tensor]:
    """The columns of a strip, by name, each uint8 (B, C, H, W)."""
    with Phase("editing") as phase:
        return model.edit(editing, *inputs, seed, phase.advance)
