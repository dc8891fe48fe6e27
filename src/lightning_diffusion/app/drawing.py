"""How a model draws: by its run's own sampler, time grid and guidance, unless the command line chooses others.

The model's file holds these parts as data. They are checked against this project's own options before any is made.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_diffusion.app.resume import typed_keys
from lightning_diffusion.checkpoints.model_file import ModelFile, check_drawing, named, read_either
from lightning_diffusion.configuration.arguments import Node, Text, keys_of
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.configuration.trusted_targets import CONF, DRAWING, TARGET, Targets
from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.time_grid import TimeGrid
from lightning_diffusion.models.contracts import Model

NONE: Mapping[str, Any] = {}


@dataclass(frozen=True)
class ModelArguments:
    """A trained model and its device: the keys that conf/sample.yaml and conf/evaluate.yaml share."""

    ckpt_path: Text | None
    pretrained: Text | None
    trust: list[str]
    batch_size: int
    seed: int
    device: str
    precision: object  # `prepare_for_inference` checks these two
    compile: object

    def read(self) -> ModelFile:
        """The file's content. Nothing is made from it yet."""
        return read_either(self.ckpt_path, self.pretrained, self.trust)


@dataclass(frozen=True)
class SamplerArguments:
    """The keys of a sampler."""

    sampler: Node[Sampler]
    trust: list[str]


@dataclass(frozen=True)
class Drawing(SamplerArguments):
    """How samples are drawn. These keys are checked after the model's file is read, because it can hold them."""

    time_grid: Node[TimeGrid]
    guidance: Node[Callable[..., Denoiser]]


def fill_drawing(config: DictConfig, file: ModelFile, without: Collection[str] = ()) -> DictConfig:
    """The configuration with the run's own sampler, time grid and guidance unless the command line chooses others.

    Words such as sampler.num_steps=10 change the run's own option. time_grid=… changes the sampler's time grid.

    Args:
        without: groups that keep the program's defaults.

    Raises:
        ValueError: the file's part is not an option of the group, has a wrong value, or needs another file.
    """
    typed, trust = typed_keys(), config.get("trust", ())
    own = {key: node for key, node in file.drawing.items() if key not in typed and key not in without}
    with named(file.source):
        for key, node in own.items():
            check_drawing(key, node, trust, keys_of(Drawing)[key])
    config = copy.deepcopy(config)
    for key, node in own.items():
        node = copy.deepcopy(node)
        for word in typed:
            if word.startswith(f"{key}."):
                _put(node, word.split(".")[1:], OmegaConf.select(config, word, default=_GONE))
        if key == "sampler" and _uses_time_grid(node, file.drawing, typed):
            node["time_grid"] = "${time_grid}"
        with open_dict(config):
            config[key] = node
    return config


def apply_drawing(model: Model, drawing: Drawing, objects: Mapping[str, Any] = NONE) -> Model:
    """The model with the configuration's sampler and guidance, if its family has such parts.

    Args:
        objects: made parts that replace the configuration's parts, by key.

    Raises:
        ConfigError, ValueError: the command line chooses a part that the model does not have, or one that does not fit.
    """
    chosen = {key.split(".")[0] for key in (*typed_keys(), *objects)}
    for group in (key for key in DRAWING if key in chosen):
        if group not in model.parts and not (group == "time_grid" and "sampler" in model.parts):
            raise ConfigError(f"{group}: a {type(model).__name__} has no {group}; leave it out")
    if "sampler" in objects and "time_grid" in chosen:
        raise ConfigError("time_grid: the given sampler already has one; leave it out, or give the sampler by name")
    inner = {"sampler": {key: part for key, part in objects.items() if key == "time_grid"}}
    parts = {
        key: objects[key] if key in objects else getattr(drawing, key).make(**inner.get(key, {})) for key in model.parts
    }
    drawn: Model = model.with_parts(**parts)
    drawn.check()
    return drawn


def option_of(part: Node[Any]) -> str:
    """The name of the option in conf/ that makes the same call, or the last part of the call's name."""
    target = str(part.node[TARGET])
    for path in sorted((CONF / part.key).glob("*.yaml")):
        if (yaml.safe_load(path.read_text()) or {}).get(TARGET) == target:
            return path.stem
    return part.name


def describe(model: Model, sampler: Node[Any], guidance: Node[Any]) -> str:
    """How the model draws, for console output: ddim, 50 steps, guidance clip."""
    if "sampler" not in model.parts:
        return type(model).__name__
    num_steps = sampler.node.get("num_steps")
    steps = "every step" if num_steps is None else f"{num_steps} step{'s' * (num_steps != 1)}"
    return f"{option_of(sampler)}, {steps}, guidance {option_of(guidance)}"


def node_of(key: str, part: Any) -> Node[Any]:
    """The node of a ready object, for messages and records; only its number of steps is known."""
    made = getattr(part, "func", part)  # of a functools.partial
    named = made if hasattr(made, "__qualname__") else type(made)
    steps = {"num_steps": part.num_steps} if hasattr(part, "num_steps") else {}
    return Node(key, {TARGET: f"{named.__module__}.{named.__qualname__}", **steps}, Targets())


_GONE = object()  # the value of a key that ~key has removed


def _put(node: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for key in parents:
        if not isinstance(node.get(key), dict):
            node[key] = {}
        node = node[key]
    if value is _GONE:
        node.pop(last, None)
    else:
        node[last] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _uses_time_grid(sampler: dict[str, Any], drawing: dict[str, Any], typed: Collection[str]) -> bool:
    """Whether the sampler uses the configuration's time grid: the run's own did, or the command line gives one."""
    chosen = any(word.split(".")[0] == "time_grid" for word in typed)
    return chosen or ("time_grid" in drawing and sampler.get("time_grid") == drawing["time_grid"])
