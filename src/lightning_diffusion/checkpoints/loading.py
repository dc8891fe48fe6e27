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


class Pretrained(NamedTuple):
    """Averaged weights to start from: those of a model of the same kind, or of the network of a model of another kind.

    Args:
        kind: the other kind; None for the same one.
        source: where they were read from, pretrained=path.
    """

    weights: dict[str, Tensor]
    kind: str | None
    source: str


def adopt(config: DictConfig, groups: Collection[str]) -> Pretrained:
    """The weights of config.pretrained. If its model is of the same kind, its parts are copied into the configuration.

    Args:
        groups: of the configuration. The parts that the model takes from them become the pretrained model's, except
            those that only affect how it draws.

    Raises:
        ValueError: data of another shape or with other classes, or a file that is no model.
    """
    trust = config.get("trust") or ()
    file = read(str(config.pretrained), "pretrained", trust)
    check_data(config.data, file.data)
    if config.model[TARGET] != file.node[TARGET]:
        network = assembled(file, trust).model.network
        return Pretrained(network.state_dict(), str(file.node[TARGET]).rpartition(".")[2], file.source)
    with open_dict(config):
        _adopt(config, config.model, file.node, set(groups) - set(DRAWING))
    return Pretrained(file.weights, None, file.source)


def load_network(model: Model, pretrained: Pretrained) -> list[str]:
    """Loads the weights of another kind of model into the network, as far as their names and shapes agree.

    Returns:
        The names of the network's other weights, which keep their values.

    Raises:
        ValueError: weights that make up less than half of the network.
    """
    own, theirs = model.network.state_dict(), pretrained.weights
    fitting = {
        name: theirs[name] for name, value in own.items() if name in theirs and theirs[name].shape == value.shape
    }
    if 2 * sum(map(Tensor.numel, fitting.values())) < sum(map(Tensor.numel, own.values())):
        raise ValueError(
            f"{pretrained.source}: its model is a {pretrained.kind}, and model=… a {type(model).__name__} whose "
            "network has other weights; choose the same kind, or the network of that model (backbone=…)"
        )
    model.network.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


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
