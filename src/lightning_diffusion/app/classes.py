"""data.num_classes=auto: the number that network, samples and data must agree on is read from the data beforehand."""

from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from lightning_diffusion.configuration.arguments import Node, parse
from lightning_diffusion.data.module import AUTO, ImageDataModule


@dataclass(frozen=True)
class DataArguments:
    """The data, which are read before anything else is checked."""

    data: Node[ImageDataModule]
    trust: list[str]


def count_classes(config: DictConfig) -> None:
    """Replaces data.num_classes=auto by the number of classes that the data have, or by null.

    Raises:
        ConfigError, ValueError, FileNotFoundError: data that do not count their classes, or cannot be read.
    """
    if OmegaConf.select(config, "data.num_classes") != AUTO:
        return
    node = OmegaConf.to_container(config.data, resolve=True, throw_on_missing=True)
    chosen = OmegaConf.create({"data": node, "trust": config.get("trust") or []})
    config.data.num_classes = parse(chosen, DataArguments).data.make().count_classes()
    if config.data.num_classes is not None:
        _print_classes(config.data.num_classes)


@rank_zero_only
def _print_classes(count: int) -> None:
    print(f"data: {count} class folders, trained as classes; data.num_classes=null trains without")
