"""Reads and writes the folder of a diffusers pipeline without that library."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lightning_diffusion.checkpoints.diffusers.network import (
    CLASS,
    MOST_CLASSES,
    cosines_first,
    read_network,
    unet_config,
)
from lightning_diffusion.checkpoints.diffusers.process import PIPELINES, read_process, scheduler_config
from lightning_diffusion.checkpoints.diffusers.settings import Part, Settings
from lightning_diffusion.checkpoints.diffusers.weights import CLASSES, from_diffusers, to_diffusers
from lightning_diffusion.codecs.image_size import simplest
from lightning_diffusion.diffusion.denoiser import NetworkDenoiser
from lightning_diffusion.models.contracts import Model
from lightning_diffusion.models.diffusion.model import DiffusionModel
from lightning_diffusion.networks.unet import UNet
from lightning_diffusion.system.files import write_bytes, write_text

WEIGHTS = "diffusion_pytorch_model"
INDEX = "model_index.json"
OWN = "lightning_diffusion.json"  # data that diffusers' files have no place for


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(node, state dict) of the denoiser in a pipeline's folder, or in a UNet2DModel's with scheduler_config.json.

    No tensor is allocated before the size of the weights' file is checked against config.json.

    Raises:
        ValueError: files that are missing or damaged, or a network or scheduler that this project cannot express.
    """
    unet, scheduler = (folder / name if os.path.isdir(folder / name) else folder for name in ("unet", "scheduler"))
    classes = _components(folder / INDEX)
    config = _of_class(Settings.read(unet / "config.json"), classes.get("unet"))
    config.word("_class_name", (CLASS,))
    timing = _of_class(Settings.read(scheduler / "scheduler_config.json"), classes.get("scheduler"))
    process, backbone, own = read_process(timing), read_network(config), _own(folder / OWN)
    learns = backbone.options["outputs"] == 2
    reason = f"config.json has {'twice' if learns else 'only'} the image's channels"
    timing.need(learns == process.learns_variance, "variance_type", reason)
    backbone.options["num_classes"] = own.pop("num_classes", backbone.options["num_classes"])
    with torch.device("meta"):
        network: UNet = backbone.build(config.path)
    parts = {"schedule": process.schedule, "parameterization": process.parameterization}
    built = {name: part.build(timing.path) for name, part in parts.items()}
    Part(NetworkDenoiser, {"backbone": network, **built, **own}).build(timing.path)
    weights = _weights(unet, network, cosines_first(config), process.sign)
    nodes = {"backbone": backbone.node, **{name: part.node for name, part in parts.items()}}
    node = Part(NetworkDenoiser, {**nodes, **own}).node
    return node, {f"backbone.{name}": value for name, value in weights.items()}


def write(folder: Path, model: Model, label: int | None = None) -> str:
    """Writes a folder that DiffusionPipeline.from_pretrained loads.

    Args:
        label: merges one class into the network, which a pipeline without classes then samples.

    Returns:
        The class of the pipeline that samples the model.

    Raises:
        ValueError: a model that diffusers cannot express; nothing is written.
    """
    if not isinstance(model, DiffusionModel):
        raise ValueError(f"format=diffusers: exports diffusion models only, and this is a {type(model).__name__}")
    if model.condition_source is not None:
        raise ValueError(
            "format=diffusers: its pipelines pass only a label as a condition to the network; choose format=safetensors"
        )
    denoiser, (channels, *sides) = model.denoiser, model.shape
    image_size = simplest(sides)
    network: UNet = denoiser.backbone  # type: ignore[assignment]
    config, scheduler = unet_config(network, image_size, channels), scheduler_config(denoiser)
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    own = {"num_classes": network.num_classes, "label_dropout": denoiser.dropout["label"]}
    if label is not None:
        classes = weights.pop(CLASSES)
        weights["embedding.mlp.2.bias"] = weights["embedding.mlp.2.bias"] + classes[label]
        config["num_class_embeds"], own = None, {"num_classes": None, "label_dropout": 0.0}
    pipeline = PIPELINES[scheduler["_class_name"]]
    components = {"unet": ["diffusers", CLASS], "scheduler": ["diffusers", scheduler["_class_name"]]}
    contents = {
        INDEX: {"_class_name": pipeline, **components},
        "unet/config.json": config,
        "scheduler/scheduler_config.json": scheduler,
        OWN: own,
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, json.dumps(content, indent=2) + "\n")
    tensors = save(to_diffusers(weights), metadata={"format": "pt"})
    write_bytes(folder / "unet" / f"{WEIGHTS}.safetensors", tensors)
    return pipeline


def _components(path: Path) -> dict[str, str]:
    """The classes of a pipeline's parts by name, from its model_index.json; empty without that file."""
    if not path.exists():
        return {}
    index = Settings.read(path)
    index = Settings(path, {name: entry for name, entry in index.content.items() if entry != [None, None]})
    index.among(("unet", "scheduler"), "part of a pipeline")
    classes = {name: entry for name, entry in index.content.items() if not name.startswith("_")}
    for name, entry in classes.items():
        named = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
        index.need(named, name, "expected a library and a class")
    return {name: entry[1] for name, entry in classes.items()}


def _of_class(settings: Settings, name: str | None) -> Settings:
    """The settings with the class from model_index.json. They can omit the class, but not contradict it."""
    settings = settings.with_defaults({"_class_name": name})
    settings.need(name in (None, settings["_class_name"]), "_class_name", f"{INDEX} has {name!r}")
    return settings


def _own(path: Path) -> dict[str, Any]:
    """This project's own file: the share of labels that training dropped, and the number of classes."""
    if not path.exists():
        return {"label_dropout": 0.0}
    given = Settings.read(path)
    given.among(("num_classes", "label_dropout"))
    own = given.with_defaults({"label_dropout": 0.0})
    result: dict[str, Any] = {"label_dropout": own.number("label_dropout", 0, 0.999)}
    if "num_classes" in given.content:
        result["num_classes"] = own.optional_integer("num_classes", 1, MOST_CLASSES)
    return result


def _weights(folder: Path, network: UNet, flipped: bool, sign: int) -> dict[str, Tensor]:
    """The state dict for a network on the meta device, from the weights' file next to config.json."""
    safe, pickled = folder / f"{WEIGHTS}.safetensors", folder / f"{WEIGHTS}.bin"
    path = safe if safe.is_file() else pickled
    if not path.is_file():
        raise ValueError(f"pretrained={folder}: there is neither {safe.name} nor {pickled.name}")
    expected = network.state_dict()
    count, size = sum(value.numel() for name, value in expected.items() if name != CLASSES), path.stat().st_size
    if 2 * count > size:
        raise ValueError(
            f"pretrained={path}: {size:,} bytes cannot hold the {count:,} weights of its config.json; "
            "download both again"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, about pickles
            weights = load_file(path) if path == safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"pretrained={path}: its weights cannot be read ({type(error).__name__})") from error
    try:
        result = from_diffusers(weights, expected, flipped)
    except ValueError as error:
        raise ValueError(
            f"pretrained={path}: its weights do not fit its config.json ({error}); download both again"
        ) from error
    return result | {name: sign * result[name] for name in ("head.weight", "head.bias")}
