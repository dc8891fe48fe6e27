"""A trained model out of a file: a checkpoint, an export of src.export, or a folder that diffusers wrote.

What the file says is data. It is read, held against the signatures of this project's own options, and only then made.
"""

import contextlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf, open_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_diffusion.checkpoints.content import averaged_weights
from lightning_diffusion.checkpoints.diffusers import folder
from lightning_diffusion.checkpoints.folder import read_checkpoint
from lightning_diffusion.checkpoints.format import KEY, VERSION, check_version, of_denoiser, upgrade
from lightning_diffusion.checkpoints.network_size import no_larger_than
from lightning_diffusion.configuration.arguments import Node, Text
from lightning_diffusion.configuration.calls import check_node, make
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.configuration.trusted_targets import (
    DATA,
    DRAWING,
    TARGET,
    Targets,
    family_groups,
    require_plain,
    targets_in,
)
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.data.module import AUTO, ImageDataModule, Split
from lightning_diffusion.models.contracts import Model
from lightning_diffusion.networks.image_size import height_width, simplest, typed
from lightning_diffusion.system.files import write_bytes

OPENS_FILES = f"{__package__}.weak_model."  # what may stand in a command line only
MOST = 100_000  # steps, or any other whole number that a file may ask a sampler for
OF_IMAGES = {"channels": "in_channels", "image_size": "image_size", "num_classes": "num_classes"}  # data's, backbone's
LARGEST = 4096  # pixels, the side of an image that a file may ask for
LOCAL = ("cache_dir",)  # where something is written, which no file decides


class ModelFile(NamedTuple):
    """What a file holds: the model's configuration without how it draws, its averaged weights, the configuration of the
    data that it was trained on, as far as it is known, how its run draws (nodes of DRAWING, as far as they are known,
    which are checked where they are used), and where it was read from, key=path."""

    node: dict[str, Any]
    weights: dict[str, Tensor]
    data: dict[str, Any]
    drawing: dict[str, Any]
    source: str


class TrainedModel(NamedTuple):
    """A model with its averaged weights, in evaluation mode, and the file that it came from."""

    model: Model
    file: ModelFile

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.model.shape

    @property
    def num_classes(self) -> int | None:
        """None of a model without classes."""
        return self.model.num_classes


def load(path: str | Path, key: str = "ckpt_path", trust: Any = ()) -> TrainedModel:
    """The model in a file, which draws as its run did.

    Args:
        key: of the configuration, for messages.
        trust: packages whose classes the file may name, besides this project's own.

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
    """The sampler or guidance that the file holds."""
    check_drawing(key, file.drawing[key], trust)
    return make(file.drawing[key], Targets(DRAWING, trust, strict=True), key)


def check_drawing(key: str, node: Any, trust: Any = ()) -> None:
    """Raises ConfigError for a file's node under a key of DRAWING that could do more than draw."""
    if any(str(target).startswith(OPENS_FILES) for target in targets_in(node)):
        raise ConfigError(
            "guidance needs another checkpoint, which only the command line may name; give guidance=autoguidance "
            "guidance.weak.ckpt_path=…, or choose guidance=clip"
        )
    try:
        if not isinstance(node, dict) or TARGET not in node:
            raise ConfigError(f"{key}: expected an option of its group")
        check_node(node, Any, key, Targets((key, "time_grid"), trust, strict=True))
        _check_numbers(node, key)
    except ConfigError as error:
        raise ConfigError(f"{error}; or choose another {key}=…") from error


def _check_numbers(node: Any, path: str) -> None:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        _check_numbers(child, f"{path}.{key}")
    if isinstance(node, int) and abs(node) > MOST:
        raise ConfigError(f"{path}={node}: more than {MOST:,}")


def assembled(file: ModelFile, trust: Any = ()) -> TrainedModel:
    """The model that a file holds; it draws by its family's defaults. Raises ValueError as `load` does."""
    with named(file.source), no_larger_than(file.weights):
        model: Model = make(file.node, Targets(family_groups(), trust, strict=True), "model")
    load_weights(model, file.weights, file.source)
    return TrainedModel(model.eval().requires_grad_(False), file)


def read_either(ckpt_path: Text | None, pretrained: Text | None, trust: Any = ()) -> ModelFile:
    """The content of ckpt_path or of pretrained, whichever is given; nothing is made of it yet."""
    given = [(path, key) for path, key in ((ckpt_path, "ckpt_path"), (pretrained, "pretrained")) if path is not None]
    if len(given) != 1:
        told = "give one of the two" if given else "missing; give ckpt_path=… or pretrained=…"
        raise ValueError(f"ckpt_path: {told}")
    path, key = given[0]
    return read(str(path), key, trust)


def read(path: str | Path, key: str, trust: Any = ()) -> ModelFile:
    """A file's content, checked; nothing is made of it yet. Raises as `load` does."""
    source = f"{key}={path}"
    if Path(path).is_dir():
        return _checked(*of_denoiser(*folder.read(Path(path))), None, {}, source, trust)
    if str(path).endswith(".safetensors"):
        node, weights, drawing = _read_safetensors(Path(path), source)
        return _checked(node, weights, None, drawing, source, trust)
    return of_checkpoint(read_checkpoint(path, key), source, trust)


def of_checkpoint(content: dict[str, Any], source: str, trust: Any = ()) -> ModelFile:
    """What a checkpoint's content says of its model, checked. Raises ValueError as `load` does."""
    known = content["hyper_parameters"]
    with named(source):
        require_plain(known)
    drawing = {key: known[key] for key in DRAWING if key in known}
    node = known["model"]
    if isinstance(node, dict):
        node = {key: child for key, child in node.items() if key not in DRAWING}
    return _checked(node, averaged_weights(content), known.get("data"), drawing, source, trust)


def _checked(node: Any, weights: dict[str, Tensor], data: Any, drawing: Any, source: str, trust: Any) -> ModelFile:
    with named(source):
        for part in (node, data, drawing):
            require_plain(part)
        check_node(node, Model, "model", Targets(family_groups(), trust, strict=True))
        data = {key: node.get(key) for key in OF_IMAGES} if data is None else data
        if not isinstance(data, dict):
            raise ConfigError(f"data={data!r}: expected what the images are like")
        check_node(data, ImageDataModule if TARGET in data else dict, "data", Targets(DATA, trust, strict=True))
        _check_images(data, node)
        if not isinstance(drawing, dict) or not set(drawing) <= set(DRAWING):
            raise ConfigError(f"holds other keys than {', '.join(DRAWING)} of how samples are drawn")
    return ModelFile(node, weights, data, drawing, source)


def adopt(config: DictConfig, groups: Collection[str]) -> dict[str, Tensor]:
    """Puts the parts of config.pretrained's model into a training configuration -> its weights.

    Args:
        groups: of the configuration: what the model takes of them, but for how it draws, is the pretrained one's.

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
        match = re.fullmatch(r"\$\{(\w+)\}", written) if isinstance(written, str) else None
        if match is None or name not in theirs:
            continue
        if match[1] in groups:
            config[match[1]] = theirs[name]
        elif isinstance(theirs[name], dict):
            _adopt(config, config[match[1]], theirs[name], groups)


def load_data(
    model: TrainedModel | None, other: Node[ImageDataModule] | None, trust: Any = ()
) -> dict[Split, ImageDataset]:
    """The splits of the data that a model was trained on, or of other data of the same shape and classes.

    Args:
        other: other data, or the same in another place, from the command line.
        trust: packages whose classes the model's file may name as its data.

    Raises:
        ValueError, FileNotFoundError: data that are missing, damaged or of another shape. Data that the model's file
            names are only read, never fetched.
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


def load_weights(model: Model, weights: dict[str, Tensor], source: str) -> None:
    """Raises ValueError where they do not fit."""
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{source}: its weights do not fit the network of its own configuration; take another file"
        ) from error


def write_safetensors(path: Path, model: TrainedModel) -> None:
    """The weights, and in the file's header, as JSON, the model's node and those of how its run draws."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.model.state_dict().items()}
    nodes = {"model": json.dumps(model.file.node), "drawing": json.dumps(model.file.drawing)}
    header = {**nodes, KEY: str(VERSION)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(weights, metadata=header))


@contextlib.contextmanager
def named(source: str) -> Iterator[None]:
    """What is wrong with a file's configuration is a ValueError that names the file."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        told = text if text.startswith(("is ", "has ", "holds ", "asks ")) else f"cannot be used: {text}"
        raise ValueError(f"{source}: its configuration {told}") from error


def _check_images(data: dict[str, Any], model: dict[str, Any]) -> None:
    """The shape and classes that every user of a model asks for, which the model and its parts must agree with."""
    for key in OF_IMAGES:
        value = data.get(key, "missing")
        if key == "image_size":
            _check_size(value)
        elif not (key == "num_classes" and value is None) and (type(value) is not int or not 1 <= value <= 10**6):
            raise ConfigError(f"data.{key}={value!r}: expected a whole number of at least 1")
    if data["channels"] > LARGEST:
        raise ConfigError(f"data.channels={data['channels']}: more than {LARGEST}")
    for name, part in parts_of("model", model):
        for key, theirs in OF_IMAGES.items():
            other = key if part is model else theirs
            if simplest(part.get(other, data[key])) != simplest(data[key]):
                raise ConfigError(f"data.{key}={typed(data[key])} and {name}.{other}={part[other]} differ")


def _check_size(image_size: Any) -> None:
    try:
        sides = height_width(image_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if max(sides) > LARGEST:
        raise ConfigError(f"data.image_size={typed(image_size)}: more than {LARGEST}")


def parts_of(name: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(last part of the key, node) of a node and of all in it."""
    yield name, node
    for key, child in node.items():
        if isinstance(child, dict):
            yield from parts_of(key, child)


def _read_safetensors(path: Path, source: str) -> tuple[Any, dict[str, Tensor], Any]:
    """The model's node, the weights, and the nodes of how its run draws."""
    if not path.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            version, drawing = int(header.get(KEY, 1)), json.loads(header.get("drawing", "{}"))
            node = json.loads(header["denoiser" if version == 1 else "model"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not a file of src.export ({type(error).__name__})") from error
    check_version(version, source)
    node, drawing = upgrade(node, version), upgrade(drawing, version)
    return (node, weights, drawing) if version > 1 else (*of_denoiser(node, weights), drawing)
