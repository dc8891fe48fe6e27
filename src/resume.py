"""A run that goes on where it stopped: python -m src.train resume=RUN_DIR"""

from pathlib import Path

import yaml
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from src.checkpoints.folder import newest_intact
from src.cli import explain
from src.config import Mistake, quoted
from src.files import Unreadable, read_text, write_text
from src.runs import OVERRIDES
from src.targets import refuse_unknown
from src.training.ownership import own


def save_overrides(run_dir: Path, config: DictConfig) -> None:
    """Writes what the command line said, for `resumed` to say it again; a resumed run adds its own words."""
    if config.resume is None:
        given = list(HydraConfig.get().overrides.task)
        said = {"name": config.name, "overrides": given}
        write_text(run_dir / OVERRIDES, yaml.safe_dump(said, allow_unicode=True))


def resumed(config: DictConfig) -> DictConfig:
    """The configuration of the run in config.resume, composed anew, from its newest intact checkpoint.

    Words of the command line beside resume= change it: trainer.max_steps=2000 trains longer.

    Raises:
        Mistake: no run there, none of its checkpoints intact, or a configuration that calls what conf/ does not.
    """
    folder = Path(str(config.resume)).expanduser().resolve()
    try:
        saved = yaml.safe_load(read_text(folder / OVERRIDES))
        name, overrides = str(saved["name"]), [str(word) for word in saved["overrides"]]
    except (Unreadable, yaml.YAMLError, KeyError, TypeError) as error:
        raise Mistake(f"resume={config.resume}: no run to go on with ({OVERRIDES} is missing or unreadable)") from error
    own(folder)  # before its newest checkpoint is looked for
    checkpoint = newest_intact(folder / "checkpoints", f"resume={config.resume}")
    fixed = [
        f"name={quoted(name)}",
        f"run_dir={quoted(folder)}",
        f"ckpt_path={quoted(checkpoint)}",
        "pretrained=null",
    ]
    try:
        again: DictConfig = compose("train", [*overrides, *HydraConfig.get().overrides.task, *fixed])
    except HydraException as error:
        raise Mistake(explain(error, "train")) from error
    remedy = "if you trust it, give the run's own command with ckpt_path=RUN/checkpoints/last.ckpt"
    refuse_unknown(OmegaConf.to_container(again, resolve=False), f"resume={config.resume}", remedy)
    return again
