"""How a model draws: by its run's own sampler, time grid and guidance, where the command line chooses none.

What the model's file holds of them is data: it is checked against this project's own options before any is made.
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
    """A trained model, and how it computes: keys that conf/sample.yaml and conf/evaluate.yaml have in common."""

    ckpt_path: Text | None
    pretrained: Text | None
    trust: list[str]
    batch_size: int
    seed: int
    device: str
    precision: object  # `prepare_for_inference` checks these two
    compile: object

    def read(self) -> ModelFile:
        """The file's content; nothing is made of it yet."""
        return read_either(self.ckpt_path, self.pretrained, self.trust)


@dataclass(frozen=True)
class SamplerArguments:
    """A sampler."""

    sampler: Node[Sampler]
    trust: list[str]


@dataclass(frozen=True)
class Drawing(SamplerArguments):
    """How samples are drawn: what is checked once the model's file was read, which may hold it."""

    time_grid: Node[TimeGrid]
    guidance: Node[Callable[..., Denoiser]]


def fill_drawing(config: DictConfig, file: ModelFile, without: Collection[str] = ()) -> DictConfig:
    """The configuration with the run's own sampler, time grid and guidance where the command line chooses none.

    Words such as sampler.num_steps=10 change the run's own option. The sampler takes the time grid of time_grid=…

    Args:
        without: groups that keep the program's defaults.

    Raises:
        ValueError: the file holds another call than an option of the group, a wrong value, or needs another file.
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
        if key == "sampler" and _follows(node, file.drawing, typed):
            node["time_grid"] = "${time_grid}"
        with open_dict(config):
            config[key] = node
    return config


def apply_drawing(model: Model, drawing: Drawing, objects: Mapping[str, Any] = NONE) -> Model:
    """The model with the configuration's sampler and guidance, if its kind has such parts.

    Args:
        objects: made parts that replace the configuration's parts, by key.

    Raises:
        ValueError: the command line chooses a part that it does not have, or one that does not fit.
    """
    chosen = {key.split(".")[0] for key in (*typed_keys(), *objects)}
    for group in (key for key in DRAWING if key in chosen):
        if group not in model.parts and not (group == "time_grid" and "sampler" in model.parts):
            raise ConfigError(f"{group}: a {type(model).__name__} has none; leave it out")
    if "sampler" in objects and "time_grid" in chosen:
        raise ConfigError("time_grid: the given sampler has one of its own; leave it out, or name a sampler")
    inner = {"sampler": {key: part for key, part in objects.items() if key == "time_grid"}}
    parts = {
        key: objects[key] if key in objects else getattr(drawing, key).make(**inner.get(key, {})) for key in model.parts
    }
    drawn: Model = model.with_parts(**parts)
    drawn.check()
    return drawn


def option_of(part: Node[Any]) -> str:
    """The name of the option in conf/ that makes the same call; else the last part of the call's own name."""
    target = str(part.node[TARGET])
    for path in sorted((CONF / part.key).glob("*.yaml")):
        if (yaml.safe_load(path.read_text()) or {}).get(TARGET) == target:
            return path.stem
    return part.name


def describe(model: Model, sampler: Node[Any], guidance: Node[Any]) -> str:
    """How it draws, in a line of output: ddim, 50 steps, guidance clip."""
    if "sampler" not in model.parts:
        return type(model).__name__
    num_steps = sampler.node.get("num_steps")
    steps = "every step" if num_steps is None else f"{num_steps} step{'s' * (num_steps != 1)}"
    return f"{option_of(sampler)}, {steps}, guidance {option_of(guidance)}"


def node_of(key: str, part: Any) -> Node[Any]:
    """An object as a configuration names it, for messages and records; its other arguments are unknown."""
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


def _follows(sampler: dict[str, Any], drawing: dict[str, Any], typed: Collection[str]) -> bool:
    """Whether the sampler takes the configuration's time grid: the run's own did, or the command line gives one."""
    given = any(word.split(".")[0] == "time_grid" for word in typed)
    return given or ("time_grid" in drawing and sampler.get("time_grid") == drawing["time_grid"])
