"""The inputs of src.evaluate: its arguments, the samples to measure, and the images to compare them with."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_diffusion.app.drawing import NONE, Drawing, ModelArguments, SamplerArguments, option_of
from lightning_diffusion.checkpoints.loading import TrainedModel, load_data
from lightning_diffusion.configuration.arguments import Node, Text, at_least, parse
from lightning_diffusion.configuration.errors import ConfigError, did_you_mean
from lightning_diffusion.configuration.trusted_targets import Targets
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.data.external_images import read_images
from lightning_diffusion.data.module import ImageDataModule
from lightning_diffusion.metrics.extractors.base import Extractor, as_colour
from lightning_diffusion.metrics.likelihood import Likelihood
from lightning_diffusion.metrics.scores import MIN_SAMPLES
from lightning_diffusion.models.contracts import Generator, Model
from lightning_diffusion.system.memory import check_fits

DEFAULT_COUNT = 1000  # samples


@dataclass(frozen=True)
class EarlyArguments(ModelArguments):
    """The keys of conf/evaluate.yaml that are checked before the model's file is read."""

    images: Text | None
    reference: Text | None
    split: str
    num_images: int
    num_samples: int | None
    output_dir: Text | None
    data: Node[ImageDataModule] | None
    extrapolate: bool
    metrics: Node[Extractor | Likelihood]
    samplers: list[str] | str | None
    num_steps: object  # checked against the signature of each sampler

    def recorded(self, *keys: str) -> dict[str, Any]:
        """These keys as metrics.json records them; data only if they are given."""
        found = {key: getattr(self, key) for key in keys if key != "data" or self.data is not None}
        return {key: value.node if isinstance(value, Node) else value for key, value in found.items()}


@dataclass(frozen=True)
class Arguments(Drawing, EarlyArguments):
    """All keys of conf/evaluate.yaml."""


def parse_early(config: DictConfig) -> EarlyArguments:
    """The arguments that can be checked before the model's file is read."""
    return parse(config, EarlyArguments, whole=Arguments)


class ReferenceData(NamedTuple):
    """The real images to compare with, and held-out images of the same kind or None."""

    images: ImageDataset
    held_out: ImageDataset | None


class SamplingRun(NamedTuple):
    """One way to draw: its name, its number of steps, the sampler, and the model with that sampler."""

    name: str
    num_steps: int | None
    sampler: Node[Any] | None
    model: Generator


def read_reference(arguments: EarlyArguments, model: TrainedModel | None) -> ReferenceData:
    """The images of reference=FOLDER|FILE.npz|NAME, or of data=NAME, or those that the model was trained on."""
    name, data = None if arguments.reference is None else str(arguments.reference), arguments.data
    if name is not None and data is not None:
        raise ConfigError("reference: given together with data=NAME; leave one of the two out")
    if name is not None:
        names = _options("data")
        if name not in names:
            if not Path(name).expanduser().exists():
                raise ConfigError(f"reference={name}: no such folder, file or data set{did_you_mean(name, names)}")
            return ReferenceData(read_images(Path(name).expanduser(), "reference"), None)
        data = Node("data", _composed([f"data={name}"])["data"], Targets(trust=arguments.trust))
    if data is None and model is None:
        raise ConfigError("reference: missing; give reference=FOLDER, reference=FILE.npz or data=NAME")
    splits = load_data(model, data, arguments.trust)
    return ReferenceData(splits["train"], splits["val"])


def read_samples(images: Text, real: ReferenceData, extractor: Extractor) -> ImageDataset:
    """The images of images=FOLDER|FILE.npz."""
    samples = read_images(Path(str(images)).expanduser(), "images")
    if len(samples) < MIN_SAMPLES:
        raise ConfigError(f"images={images}: {len(samples)} images are too few; give at least {MIN_SAMPLES}")
    ours, theirs = (tuple(each[torch.arange(1)][0].shape[1:]) for each in (samples, real.images))
    if extractor.colour:
        as_colour(samples[torch.arange(1)][0])
    if ours != theirs and not extractor.any_size:
        raise ConfigError(
            f"images={images}: C×H×W = {'×'.join(map(str, ours))}, but the reference has "
            f"{'×'.join(map(str, theirs))}, and metrics={extractor.name} compares only equal shapes; "
            "choose metrics=inception or metrics=imagenet_lite, which resize both, or resize the images"
        )
    return samples


def count_samples(num_samples: int | None, real: ReferenceData) -> int:
    """num_samples, or as many as there are held-out images but at most DEFAULT_COUNT, so that both have the same N."""
    if num_samples is None:
        return min(DEFAULT_COUNT, len(real.held_out)) if real.held_out else DEFAULT_COUNT
    at_least(MIN_SAMPLES, num_samples=num_samples)
    check_fits("num_samples", num_samples, 4 * real.images[torch.arange(1)][0].numel())
    return num_samples


def sampling_runs(arguments: Arguments, model: Model, objects: Mapping[str, Any] = NONE) -> list[SamplingRun]:
    """A run for every pair of `samplers` and `num_steps`, or for the one sampler of the configuration.

    Args:
        model: draws by the configuration's sampler and guidance.
        objects: made parts that replace the configuration's parts, by key.
    """
    if not isinstance(model, Generator):
        raise ConfigError(f"ckpt_path: a {type(model).__name__} draws no samples to score; choose another model")
    several = {"samplers": arguments.samplers, "num_steps": arguments.num_steps}
    if "sampler" not in model.parts:
        if one := [key for key, value in several.items() if value is not None]:
            raise ConfigError(f"{one[0]}: a {type(model).__name__} has no sampler; leave it out")
        return [SamplingRun(type(model).__name__, None, None, model)]
    if "sampler" in objects or "time_grid" in objects:
        return [SamplingRun(option_of(arguments.sampler), None, None, model)]
    nodes = {option_of(arguments.sampler): arguments.sampler.node}
    if arguments.samplers is not None:
        if one := [word for word in HydraConfig.get().overrides.task if re.match(r"\+*sampler[=.]", word)]:
            raise ConfigError(
                f"samplers: each sampler has its own options; leave out {' '.join(one).replace('++', '')} or samplers=…"
            )
        nodes = {name: _sampler_node(name, arguments.time_grid.node) for name in _as_list(arguments.samplers)}
    for key, value in several.items():
        if value == []:
            raise ConfigError(f"{key}=[]: empty list; give at least one, or leave it out")
    runs = []
    for name, node in nodes.items():
        for num_steps in _as_list(arguments.num_steps):
            whole = node if num_steps is None else node | {"num_steps": num_steps}
            chosen = OmegaConf.create({"sampler": whole, "trust": arguments.trust})
            sampler = parse(chosen, SamplerArguments).sampler
            drawn = model.with_parts(sampler=sampler.make())
            drawn.check()
            runs.append(SamplingRun(name, whole.get("num_steps"), sampler, drawn))
    return runs


def _sampler_node(name: str, time_grid: dict[str, Any]) -> dict[str, Any]:
    """The node of conf/sampler/<name>.yaml, composed with the rest of the command line and on this time grid."""
    names = _options("sampler")
    if name not in names:
        raise ConfigError(f"samplers={name}: no such sampler{did_you_mean(str(name), names)}")
    node: dict[str, Any] = _composed([f"sampler={name}"], time_grid=time_grid)["sampler"]
    return node


def _options(group: str) -> list[str]:
    """The names of a group's options, in conf/ and in the folder of --config-dir."""
    names: list[str] = GlobalHydra.instance().config_loader().get_group_options(group)
    return names


def _composed(overrides: list[str], **nodes: dict[str, Any]) -> dict[str, Any]:
    """src.evaluate's configuration from the command line, with more overrides and with these nodes replaced."""
    config = compose("evaluate", [*HydraConfig.get().overrides.task, *overrides])
    with open_dict(config):
        config.update(nodes)
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
