"""The description of a model in a checkpoint, an export of src.export, or a folder that diffusers wrote.

It is data. It is read and checked against the signatures of this project's options; nothing is built from it here.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_diffusion.checkpoints.content import averaged_weights
from lightning_diffusion.checkpoints.diffusers import folder
from lightning_diffusion.checkpoints.folder import read_checkpoint
from lightning_diffusion.checkpoints.format import IMAGES, KEY, check_version, drawn_images, of_denoiser, upgrade
from lightning_diffusion.codecs.image_size import height_width, simplest, typed
from lightning_diffusion.configuration.arguments import Text
from lightning_diffusion.configuration.calls import check_node
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
from lightning_diffusion.data.module import ImageDataModule
from lightning_diffusion.models.contracts import Model

OPENS_FILES = f"{__package__}.weak_model."  # allowed on the command line only
MOST = 100_000  # the largest whole number, such as steps, that a file can set for a sampler
LARGEST = 4096  # pixels; the longest side of an image that a file can set


class ModelFile(NamedTuple):
    """The content of a model's file.

    Args:
        node: configuration of the model, without its sampler and guidance.
        weights: averaged weights.
        data: configuration of the training data, as far as it is known.
        drawing: nodes of DRAWING that the file has, such as the sampler; they are checked when they are used.
        source: where it was read from, key=path.
    """

    node: dict[str, Any]
    weights: dict[str, Tensor]
    data: dict[str, Any]
    drawing: dict[str, Any]
    source: str


def read_either(ckpt_path: Text | None, pretrained: Text | None, trust: Any = ()) -> ModelFile:
    """The content of ckpt_path or pretrained, of which exactly one is given; nothing is built yet."""
    given = [(path, key) for path, key in ((ckpt_path, "ckpt_path"), (pretrained, "pretrained")) if path is not None]
    if len(given) != 1:
        problem = "give only one of the two" if given else "missing; give ckpt_path=… or pretrained=…"
        raise ValueError(f"ckpt_path: {problem}")
    path, key = given[0]
    return read(str(path), key, trust)


def read(path: str | Path, key: str, trust: Any = ()) -> ModelFile:
    """The checked content of a file; nothing is built yet. Raises as `load` does."""
    source = f"{key}={path}"
    if Path(path).is_dir():
        return _checked(*of_denoiser(*folder.read(Path(path))), None, {}, source, trust)
    if str(path).endswith(".safetensors"):
        node, weights, drawing = _read_safetensors(Path(path), source)
        return _checked(node, weights, None, drawing, source, trust)
    return of_checkpoint(read_checkpoint(path, key), source, trust)


def of_checkpoint(content: dict[str, Any], source: str, trust: Any = ()) -> ModelFile:
    """The model in a checkpoint's content, checked. Raises ValueError as `load` does."""
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
        if data is None:
            data = {key: node.get(key) for key in IMAGES}
            condition = node.get("condition")
            if drawn_images({}, condition):  # the image, whose mask is drawn, is the condition
                data["channels"] = condition.get("channels")
        if not isinstance(data, dict):
            raise ConfigError(f"data={data!r}: expected the options of a data set")
        check_node(data, ImageDataModule if TARGET in data else dict, "data", Targets(DATA, trust, strict=True))
        _check_images(data, node)
        if not isinstance(drawing, dict) or not set(drawing) <= set(DRAWING):
            raise ConfigError(f"has keys other than {', '.join(DRAWING)} for how samples are drawn")
    return ModelFile(node, weights, data, drawing, source)


def check_drawing(key: str, node: Any, trust: Any = (), wanted: Any = Any) -> None:
    """Raises ConfigError for a file's node of a sampler or guidance that does not fit, or could do more than draw.

    Args:
        key: of DRAWING.
        wanted: the type that the node must have, as in a signature.
    """
    if any(str(target).startswith(OPENS_FILES) for target in targets_in(node)):
        raise ConfigError(
            "guidance needs another checkpoint, which only the command line can name; give guidance=autoguidance "
            "guidance.weak.ckpt_path=…, or choose guidance=clip"
        )
    try:
        if not isinstance(node, dict) or TARGET not in node:
            raise ConfigError(f"{key}: expected an option of its group")
        check_node(node, wanted, key, Targets((key, "time_grid"), trust, strict=True))
        _check_numbers(node, key)
    except ConfigError as error:
        raise ConfigError(f"{error}; or choose another {key}=…") from error


def _check_numbers(node: Any, path: str) -> None:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        _check_numbers(child, f"{path}.{key}")
    if isinstance(node, int) and abs(node) > MOST:
        raise ConfigError(f"{path}={node}: more than {MOST:,}")


@contextlib.contextmanager
def named(source: str) -> Iterator[None]:
    """Turns a ConfigError inside the context into a ValueError that names the file."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        problem = (
            text if text.startswith(("is ", "has ", "holds ", "contains ", "describes ")) else f"cannot be used: {text}"
        )
        raise ValueError(f"{source}: its configuration {problem}") from error


def _check_images(data: dict[str, Any], model: dict[str, Any]) -> None:
    """Checks the shape and classes of the images, which the model and its parts must agree with."""
    for key in IMAGES:
        value = data.get(key, "missing")
        if key == "image_size":
            _check_size(value)
        elif not (key == "num_classes" and value is None) and (type(value) is not int or not 1 <= value <= 10**6):
            raise ConfigError(f"data.{key}={value!r}: expected a whole number of at least 1")
    if data["channels"] > LARGEST:
        raise ConfigError(f"data.channels={data['channels']}: more than {LARGEST}")
    data = drawn_images(data, model.get("condition"))
    for name, part in parts_of("model", model):
        for key, theirs in IMAGES.items():
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
    """(last part of the key, node) of a node and of every node in it."""
    yield name, node
    for key, child in node.items():
        if isinstance(child, dict):
            yield from parts_of(key, child)


def _read_safetensors(path: Path, source: str) -> tuple[Any, dict[str, Tensor], Any]:
    """The node of the model, the weights, and the nodes of its sampler and guidance."""
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
