"""Resuming a run where it stopped: python -m src.train resume=RUN_DIR"""

import re
from pathlib import Path

import yaml
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from lightning_diffusion.app.cli import explain
from lightning_diffusion.app.saved_words import OF_THE_COMMAND_LINE, Word, refuse_changes
from lightning_diffusion.checkpoints.folder import newest_intact
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.runs.run import OVERRIDES
from lightning_diffusion.system.files import Unreadable, read_text, write_text
from lightning_diffusion.system.quoting import quoted
from lightning_diffusion.training.ownership import own

MOST = 2**20  # bytes of overrides.yaml
ADOPTED = "pretrained"  # key of overrides.yaml: whether the network came from a pretrained model
REMEDY = "if you trust it, repeat the run's own command with ckpt_path=RUN/checkpoints/last.ckpt"


def save_overrides(run_dir: Path, config: DictConfig) -> None:
    """Write the words of the command line to overrides.yaml, from which `resumed` composes them again.

    A reference, ${…}, is written as its value, because a file holds plain data. `trust` is left out, because a file
    never decides what is trusted. A resumed run writes nothing.
    """
    if config.resume is None:
        typed = map(Word, HydraConfig.get().overrides.task)
        words = [word.resolved(config) for word in typed if word.key not in OF_THE_COMMAND_LINE]
        record = {"name": config.name, "overrides": words, ADOPTED: config.pretrained is not None}
        write_text(run_dir / OVERRIDES, yaml.safe_dump(record, allow_unicode=True))


def resumed(config: DictConfig) -> DictConfig:
    """The configuration of the run in config.resume, composed again, with its newest intact checkpoint.

    Other words of the command line change it: trainer.max_steps=2000 trains longer.

    Raises:
        ConfigError: the folder holds no run, no checkpoint is intact, or a saved word is not allowed in a file.
    """
    source = f"resume={config.resume}"
    folder = Path(str(config.resume)).expanduser().resolve()
    name, words, adopted = _saved(folder, source)
    own(folder)  # before looking for its newest checkpoint
    checkpoint = newest_intact(folder / "checkpoints", source)
    typed = [
        *HydraConfig.get().overrides.task,
        f"name={quoted(name)}",
        f"run_dir={quoted(folder)}",
        f"ckpt_path={quoted(checkpoint)}",
        f"pretrained={quoted(checkpoint) if adopted else 'null'}",  # whose network it is
    ]
    try:
        whole: DictConfig = compose("train", [*(word.text for word in words), *typed])
        chosen = compose("train", [*(word.text for word in words if word.is_choice), *typed])
    except HydraException as error:
        raise ConfigError(explain(error, "train")) from error
    try:
        refuse_changes(*(OmegaConf.to_container(node, resolve=False) for node in (chosen, whole)))
    except ConfigError as error:
        raise ConfigError(f"{source}: {OVERRIDES} {error}; {REMEDY}") from error
    return whole


def typed_keys() -> list[str]:
    """The keys that the command line itself gives, not a file."""
    return [re.split("[=@:]", text.lstrip("~+"))[0] for text in HydraConfig.get().overrides.task]


def _saved(folder: Path, source: str) -> tuple[str, list[Word], bool]:
    """The name and the words of a run, and whether its network came from a pretrained model."""
    try:
        saved = yaml.safe_load(read_text(folder / OVERRIDES, MOST))
        name, texts, adopted = saved["name"], saved["overrides"], saved.get(ADOPTED, False) is True
        if not isinstance(name, str) or "${" in name or not all(isinstance(text, str) for text in texts):
            raise TypeError
    except (Unreadable, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{source}: no run to resume, {OVERRIDES} is missing or unreadable; give the folder of a run"
        ) from error
    loader = GlobalHydra.instance().config_loader()
    try:
        words = [Word(text) for text in texts]
        for word in words:
            word.check(loader.get_group_options(word.key))
    except ConfigError as error:
        raise ConfigError(f"{source}: {OVERRIDES} {error}; {REMEDY}") from error
    return name, words, adopted
