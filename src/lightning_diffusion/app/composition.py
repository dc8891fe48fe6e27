"""A program's configuration for a caller in Python: composed from words as its command line is, with its messages."""

import contextlib
from collections.abc import Iterator, Sequence

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from lightning_diffusion.app.cli import explain
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.configuration.trusted_targets import CONF


@contextlib.contextmanager
def composed(config_name: str, words: Sequence[str]) -> Iterator[DictConfig]:
    """The configuration of `python -m src.<config_name> WORDS`. Within, Hydra's globals are those of that program.

    Raises:
        ConfigError: words that do not compose.
    """
    here, there = GlobalHydra.instance(), HydraConfig.instance()
    before = here.hydra, there.cfg
    try:
        here.clear()
        try:
            hydra.initialize_config_dir(str(CONF), version_base="1.3")
            config = hydra.compose(config_name, list(words), return_hydra_config=True)
        except Exception as error:  # whatever Hydra makes of the words
            raise ConfigError(explain(error, config_name, words)) from error
        there.set_config(config)
        with read_write(config), open_dict(config):
            del config["hydra"]
        try:
            yield config
        except OmegaConfBaseException as error:  # a value that is missing, or refers to none
            raise ConfigError(explain(error, config_name, words)) from error
    finally:
        here.hydra, there.cfg = before
