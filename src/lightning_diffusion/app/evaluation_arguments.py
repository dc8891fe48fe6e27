"""What src.evaluate is asked."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from lightning_diffusion.app.drawing import Drawing, ModelArguments
from lightning_diffusion.configuration.arguments import Node, Text, parse
from lightning_diffusion.data.module import ImageDataModule
from lightning_diffusion.metrics.extractors.base import Extractor
from lightning_diffusion.metrics.likelihood import Likelihood


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
    num_steps: object  # a sampler's signature is what they are held against

    def recorded(self, *keys: str) -> dict[str, Any]:
        """What metrics.json holds of these keys; no data where none are given."""
        found = {key: getattr(self, key) for key in keys if key != "data" or self.data is not None}
        return {key: value.node if isinstance(value, Node) else value for key, value in found.items()}


@dataclass(frozen=True)
class Arguments(Drawing, EarlyArguments):
    """All keys of conf/evaluate.yaml."""


def check_rest(config: DictConfig) -> EarlyArguments:
    """All that can be checked before the model's file is read."""
    return parse(config, EarlyArguments, whole=Arguments)
