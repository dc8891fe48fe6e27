"""Loads a trained model from a file, and the data that it was trained on."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf, open_dict
from safetensors.torch import save
from torch import Tensor

from lightning_diffusion.checkpoints.format import IMAGES, KEY, VERSION
from lightning_diffusion.checkpoints.model_file import ModelFile, check_drawing, named, read
from lightning_diffusion.checkpoints.network_size import no_larger_than
from lightning_diffusion.codecs.image_size import simplest, typed
from lightning_diffusion.configuration.arguments import Node
from lightning_diffusion.configuration.calls import make
from lightning_diffusion.configuration.trusted_targets import (
    DATA,
    DRAWING,
    TARGET,
    Targets,
    family_groups,
)
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.data.module import AUTO, ImageDataModule, Split
from lightning_diffusion.models.contracts import Model
from lightning_diffusion.system.files import write_bytes

LOCAL = ("cache_dir",)  # folders that are written to; a file cannot choose them


class TrainedModel(NamedTuple):
    """A model with its averaged weights, in evaluation mode, and the content of its file."""

    model: Model
    file: ModelFile

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.model.shape

    @property
    def num_classes(self) -> int | None:
        """The number of classes, or None for a model without."""
        return self.model.num_classes


def load(path: str | Path, key: str = "ckpt_path", trust: Any = ()) -> TrainedModel:
    """The model in a file, with the sampler and guidance of its run.

    Args:
        key: configuration key of the path, for messages.
        trust: packages whose classes the file can name in addition to this project's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a model of this project, weights that do not fit, or a configuration that is not plain data or
            calls anything but this project's options and classes of the trusted packages.
    """
    file = read(path, key, trust)
    trained = assembled(file, trust)
    with named(file.source):
        parts = {key: _own_part(file, key, trust) for key in trained.model.parts if key in file.drawing}
    return TrainedModel(trained.model.with_parts(**parts), file)


def _own_part(file: ModelFile, key: str, trust: Any) -> Any:
    """The sampler or guidance of the file."""
    check_drawing(key, file.drawing[key], trust)
    return make(file.drawing[key], Targets(DRAWING, trust, strict=True), key)


def assembled(file: ModelFile, trust: Any = ()) -> TrainedModel:
    """The model in a file, with its family's default sampler and guidance. Raises ValueError as `load` does."""
    with named(file.source), no_larger_than(file.weights):
        model: Model = make(file.node, Targets(family_groups(), trust, strict=True), "model")
    load_weights(model, file.weights, file.source)
    return TrainedModel(model.eval().requires_grad_(False), file)


def adopt(config: DictConfig, groups: Collection[str]) -> dict[str, Tensor]:
    """Copies the parts of config.pretrained's model into a training configuration and returns its weights.

    Args:
        groups: of the configuration. The parts that the model takes from them become the pretrained model's, except
            those that only affect how it draws.

    Raises:
        ValueError: a model of another kind, or data of another shape or with other classes.
    """
    file = read(str(config.pretrained), "pretrained", config.get("trust") or ())
    check_data(config.data, file.data)
    if config.model[TARGET] != file.node[TARGET]:
        theirs, ours = (str(node[TARGET]).rpartition(".")[2] for node in (file.node, config.model))
        raise ValueError(f"{file.source}: its model is a {theirs}, and model=… a {ours}; choose the same kind")
    with open_dict(config):
        _adopt(config, config.model, file.node, set(groups) - set(DRAWING))
    return file.weights


def _adopt(config: DictConfig, ours: DictConfig, theirs: dict[str, Any], groups: set[str]) -> None:
    for name, written in OmegaConf.to_container(ours, resolve=False).items():  # type: ignore[union-attr]
        match = re.fullmatch(r"\$\{(?:oc\.select:)?(\w+)(?:,null)?\}", written) if isinstance(written, str) else None
        if match is None or name not in theirs:
            continue
        if match[1] in groups:
            config[match[1]] = theirs[name]
        elif isinstance(theirs[name], dict):
            _adopt(config, config[match[1]], theirs[name], groups)


def load_data(
    model: TrainedModel | None, other: Node[ImageDataModule] | None, trust: Any = ()
) -> dict[Split, ImageDataset]:
    """The splits of the data that a model was trained on, or of other data with the same shape and classes.

    Args:
        other: data from the command line; they replace those of the file.
        trust: packages whose classes the model's file can name as its data.

    Raises:
        ValueError, FileNotFoundError: data that are missing, damaged or of another shape. Data that the model's file
            names are read, but never downloaded.
    """
    if other is not None:
        counted = {}
        if model is not None:
            if other.node.get("num_classes") == AUTO:
                counted = {"num_classes": model.num_classes}
            check_data(other.node | counted, model.file.data)
        datamodule = other.make(**counted)
        datamodule.prepare_data()
    else:
        node = {} if model is None else {key: value for key, value in model.file.data.items() if key not in LOCAL}
        if model is None or TARGET not in node:
            raise ValueError("data: missing; a pretrained model does not record its training data, choose data=NAME")
        datamodule = make(node, Targets(DATA, trust, strict=True), "data")
    if model is not None:
        datamodule.condition_source = model.model.condition_source
    datamodule.setup()
    return datamodule.splits


def check_data(data: Any, made_for: dict[str, Any]) -> None:
    """Raises ValueError if data differ in shape or classes from those of the model."""
    for key in IMAGES:
        if simplest(data[key]) != simplest(made_for[key]):
            wanted = "null" if made_for[key] is None else typed(made_for[key])
            raise ValueError(
                f"data.{key}={typed(data[key])}: this model was made for {wanted}; set data.{key}={wanted}"
            )


def load_weights(model: Model, weights: dict[str, Tensor], source: str) -> None:
    """Loads weights into a model. Raises ValueError if they do not fit."""
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{source}: its weights do not fit the network of its own configuration; choose another file"
        ) from error


def write_safetensors(path: Path, model: TrainedModel) -> None:
    """Writes the weights, with the nodes of the model and of its sampler and guidance as JSON in the header."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.model.state_dict().items()}
    nodes = {"model": json.dumps(model.file.node), "drawing": json.dumps(model.file.drawing)}
    header = {**nodes, KEY: str(VERSION)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(weights, metadata=header))
