"""A trained model out of a file: a checkpoint, an export of src.export, or a folder that diffusers wrote.

What the file says is data. It is read, held against the signatures of this project's own options, and only then made.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, open_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_diffusion.checkpoints.content import averaged_weights
from lightning_diffusion.checkpoints.diffusers import folder
from lightning_diffusion.checkpoints.folder import read_checkpoint
from lightning_diffusion.checkpoints.format import KEY, VERSION, check_version, upgrade
from lightning_diffusion.checkpoints.network_size import no_larger_than
from lightning_diffusion.configuration.calls import check_node, make
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.configuration.trusted_targets import DATA, MODEL, TARGET, Targets, require_plain
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.data.module import AUTO, ImageDataModule, Split
from lightning_diffusion.diffusion.denoiser import Denoiser, NetworkDenoiser
from lightning_diffusion.diffusion.guidance import Autoguidance
from lightning_diffusion.networks.image_size import height_width, simplest, typed
from lightning_diffusion.system.files import write_bytes

OF_IMAGES = {"channels": "in_channels", "image_size": "image_size", "num_classes": "num_classes"}  # data's, backbone's
LARGEST = 4096  # pixels, the side of an image that a file may ask for
LOCAL = ("cache_dir",)  # where something is written, which no file decides


class ModelFile(NamedTuple):
    """What a file holds: the denoiser's configuration, its averaged weights, the configuration of the data that it was
    trained on, as far as it is known, and where it was read from, key=path."""

    denoiser: dict[str, Any]
    weights: dict[str, Tensor]
    data: dict[str, Any]
    source: str


class TrainedModel(NamedTuple):
    """A denoiser with its averaged weights, in evaluation mode, and the file that it came from."""

    denoiser: NetworkDenoiser
    file: ModelFile

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        data = self.file.data
        return data["channels"], *height_width(data["image_size"])

    @property
    def num_classes(self) -> int | None:
        """None of a model without classes."""
        classes: int | None = self.file.data["num_classes"]
        return classes


def load(path: str | Path, key: str = "ckpt_path", trust: Any = ()) -> TrainedModel:
    """The model in a file.

    Args:
        key: of the configuration, for messages.
        trust: packages whose classes the file may name, besides this project's own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a model of this project, weights that do not fit, or a configuration that is not plain data or
            calls anything but this project's options and classes of the trusted packages.
    """
    file = read(path, key, trust)
    with _named(file.source), no_larger_than(file.weights):
        denoiser: NetworkDenoiser = make(file.denoiser, Targets(MODEL, trust, strict=True), "denoiser")
    load_weights(denoiser, file.weights, file.source)
    return TrainedModel(denoiser.eval().requires_grad_(False), file)


def load_either(plain: dict[str, Any]) -> TrainedModel:
    """The model of ckpt_path or of pretrained, whichever is given."""
    given = [key for key in ("ckpt_path", "pretrained") if plain[key] is not None]
    if len(given) != 1:
        told = "give one of the two" if given else "missing; give ckpt_path=… or pretrained=…"
        raise ValueError(f"ckpt_path: {told}")
    return load(plain[given[0]], given[0], plain["trust"])


def load_weak_model(ckpt_path: str, trust: list[str] | None = None) -> NetworkDenoiser:
    """The denoiser that autoguidance leads away from: an earlier checkpoint of the run, or one of a smaller network."""
    return load(ckpt_path, "guidance.weak.ckpt_path", trust or ()).denoiser


def autoguidance(denoiser: Denoiser, weak: Denoiser, scale: float = 2.0) -> Denoiser:
    """`Autoguidance`, away from a denoiser that comes out of a file."""
    return Autoguidance(denoiser, weak, scale)


def read(path: str | Path, key: str, trust: Any = ()) -> ModelFile:
    """A file's content, checked; nothing is made of it yet. Raises as `load` does."""
    source = f"{key}={path}"
    if Path(path).is_dir():
        return _checked(*folder.read(Path(path)), None, source, trust)
    if str(path).endswith(".safetensors"):
        return _checked(*_read_safetensors(Path(path), source), None, source, trust)
    return of_checkpoint(read_checkpoint(path, key), source, trust)


def of_checkpoint(content: dict[str, Any], source: str, trust: Any = ()) -> ModelFile:
    """What a checkpoint's content says of its model, checked. Raises ValueError as `load` does."""
    known = content["hyper_parameters"]
    with _named(source):
        require_plain(known)
    return _checked(known["denoiser"], averaged_weights(content), known.get("data"), source, trust)


def _checked(node: Any, weights: dict[str, Tensor], data: Any, source: str, trust: Any) -> ModelFile:
    with _named(source):
        require_plain(node)
        require_plain(data)
        check_node(node, NetworkDenoiser, "denoiser", Targets(MODEL, trust, strict=True))
        backbone = node.get("backbone", {})
        data = _data_of(backbone) if data is None else data
        if not isinstance(data, dict):
            raise ConfigError(f"data={data!r}: expected what the images are like")
        check_node(data, ImageDataModule if TARGET in data else dict, "data", Targets(DATA, trust, strict=True))
        _check_images(data, backbone)
    return ModelFile(node, weights, data, source)


def adopt(config: DictConfig) -> dict[str, Tensor]:
    """Puts the network, schedule and prediction of config.pretrained into a training configuration -> its weights.

    Raises:
        ValueError: data of another shape or with other classes.
    """
    file = read(str(config.pretrained), "pretrained", config.get("trust") or ())
    check_data(config.data, file.data)
    with open_dict(config):
        for key in ("backbone", "schedule", "parameterization"):
            config[key] = file.denoiser[key]
    return file.weights


def load_data(model: TrainedModel | None, other: dict[str, Any] | None, trust: Any = ()) -> dict[Split, ImageDataset]:
    """The splits of the data that a model was trained on, or of other data of the same shape and classes.

    Args:
        other: the node of other data, or of the same in another place, from the command line.

    Raises:
        ValueError, FileNotFoundError: data that are missing, damaged or of another shape. Data that the model's file
            names are only read, never fetched.
    """
    if other is not None:
        if model is not None:
            if other.get("num_classes") == AUTO:
                other = {**other, "num_classes": model.num_classes}
            check_data(other, model.file.data)
        datamodule: ImageDataModule = make(other, Targets(trust=trust), "data")
        datamodule.prepare_data()
    else:
        node = {} if model is None else {key: value for key, value in model.file.data.items() if key not in LOCAL}
        if model is None or TARGET not in node:
            raise ValueError("data: missing; a pretrained model does not say what it was trained on, give data=NAME")
        datamodule = make(node, Targets(DATA, trust, strict=True), "data")
    datamodule.setup()
    return datamodule.splits


def check_data(data: Any, made_for: dict[str, Any]) -> None:
    """Raises ValueError where data differ in shape or classes from those that a model was made for."""
    for key in OF_IMAGES:
        if simplest(data[key]) != simplest(made_for[key]):
            wanted = "null" if made_for[key] is None else typed(made_for[key])
            raise ValueError(
                f"data.{key}={typed(data[key])}: this model was made for {wanted}; set data.{key}={wanted}"
            )


def load_weights(denoiser: NetworkDenoiser, weights: dict[str, Tensor], source: str) -> None:
    """Raises ValueError where they do not fit."""
    try:
        denoiser.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{source}: its weights do not fit the network of its own configuration; take another file"
        ) from error


def write_safetensors(path: Path, denoiser: NetworkDenoiser, node: dict[str, Any]) -> None:
    """The weights, and the denoiser's node as JSON in the file's header."""
    weights = {name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(weights, metadata={"denoiser": json.dumps(node), KEY: str(VERSION)}))


@contextlib.contextmanager
def _named(source: str) -> Iterator[None]:
    """What is wrong with a file's configuration is a ValueError that names the file."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        told = text if text.startswith(("is ", "has ", "holds ", "asks ")) else f"cannot be used: {text}"
        raise ValueError(f"{source}: its configuration {told}") from error


def _check_images(data: dict[str, Any], backbone: dict[str, Any]) -> None:
    """The shape and classes that every user of a model asks for, which the network must agree with."""
    for key in OF_IMAGES:
        value = data.get(key, "missing")
        if key == "image_size":
            _check_size(value)
        elif not (key == "num_classes" and value is None) and (type(value) is not int or not 1 <= value <= 10**6):
            raise ConfigError(f"data.{key}={value!r}: expected a whole number of at least 1")
    if data["channels"] > LARGEST:
        raise ConfigError(f"data.channels={data['channels']}: more than {LARGEST}")
    for key, theirs in OF_IMAGES.items():
        if simplest(backbone.get(theirs, data[key])) != simplest(data[key]):
            raise ConfigError(f"data.{key}={data[key]} and backbone.{theirs}={backbone[theirs]} differ")


def _check_size(image_size: Any) -> None:
    try:
        sides = height_width(image_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if max(sides) > LARGEST:
        raise ConfigError(f"data.image_size={typed(image_size)}: more than {LARGEST}")


def _data_of(backbone: dict[str, Any]) -> dict[str, Any]:
    """What the data must be like for a network."""
    return {key: backbone.get(name) for key, name in OF_IMAGES.items()}


def _read_safetensors(path: Path, source: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            node, version = json.loads(about["denoiser"]), int(about.get(KEY, 1))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not a file of src.export ({type(error).__name__})") from error
    check_version(version, source)
    return upgrade(node, version), weights
