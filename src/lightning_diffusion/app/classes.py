"""data.num_classes=auto: the number that network, samples and data must agree on is read from the data beforehand."""

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from lightning_diffusion.configuration.build import build, check
from lightning_diffusion.data.module import AUTO, ImageDataModule


def count_classes(config: DictConfig) -> None:
    """Replaces data.num_classes=auto by the number of classes that the data have, or by null.

    Raises:
        ConfigError, ValueError, FileNotFoundError: data that do not count their classes, or cannot be read.
    """
    if OmegaConf.select(config, "data.num_classes") != AUTO:
        return
    node = OmegaConf.to_container(config.data, resolve=True, throw_on_missing=True)
    chosen = OmegaConf.create({"data": node, "trust": config.get("trust") or []})
    datamodule: ImageDataModule = build(check(chosen, {"data": ImageDataModule, "trust": list[str]}), "data")
    config.data.num_classes = datamodule.count_classes()
    if config.data.num_classes is not None:
        _print_classes(config.data.num_classes)


@rank_zero_only
def _print_classes(count: int) -> None:
    print(f"data: {count} class folders, trained as classes; data.num_classes=null trains without")
