"""A program's configuration for a caller in Python: composed from words as its command line is, with its messages."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write

from lightning_diffusion.app.cli import explain
from lightning_diffusion.app.saved_words import literal
from lightning_diffusion.configuration.errors import ConfigError, did_you_mean
from lightning_diffusion.configuration.signatures import signature_of
from lightning_diffusion.configuration.trusted_targets import CONF, TARGET, Targets

NONE: Mapping[str, Any] = {}
PLAIN = (str, int, float, type(None))  # bool is an int
GIVEN_INSIDE = ("_target_", "_partial_", "time_grid", "denoiser")  # arguments that are no options of a call


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
        yield config
    finally:
        here.hydra, there.cfg = before


def word(key: str, value: Any) -> list[str]:
    """The words that give a key this value; a mapping gives each of its own keys one.

    Raises:
        ConfigError: an object that is no plain data.
    """
    if isinstance(value, Mapping):
        return [text for name, child in value.items() for text in word(f"{key}.{name}", child)]
    if isinstance(value, str) and re.fullmatch(r"\w+", value, re.ASCII):
        return [f"{key}={value}"]
    return [f"{key}={literal(_plain(key, value))}"]


def option_words(
    options: Mapping[str, Any],
    nodes: Mapping[str, Mapping[str, Any]],
    trust: Any = (),
    defaults: Mapping[str, Any] = NONE,
) -> list[str]:
    """The words for options, each of the first call that takes it: num_steps of the sampler, scale of the guidance.

    Args:
        nodes: the calls by key, {"sampler": {"_target_": …}}.
        defaults: options that are given where a call takes them and none is given.

    Raises:
        ConfigError: an option that none of them takes.
    """
    taken = {key: _options_of(node, trust) for key, node in nodes.items()}
    words = []
    possible = {name: value for name, value in defaults.items() if any(name in names for names in taken.values())}
    for name, value in (possible | dict(options)).items():
        key = next((key for key, names in taken.items() if name in names), None)
        if key is None:
            known = sorted({each for names in taken.values() for each in names})
            raise ConfigError(f"{name}: no such option{did_you_mean(name, known)}")
        words += word(f"++{key}.{name}", value)
    return words


def _options_of(node: Mapping[str, Any], trust: Any) -> list[str]:
    parameters = signature_of(Targets(trust=trust).find(node[TARGET])).parameters
    return [name for name in dict.fromkeys([*parameters, *node]) if name not in GIVEN_INSIDE]


def _plain(key: str, value: Any) -> Any:
    """Without NumPy's numbers, paths and tuples."""
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, (list, tuple)):
        return [_plain(key, child) for child in value]
    found = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
    if not isinstance(found, PLAIN):
        raise ConfigError(f"{key.lstrip('+')}: a {type(value).__name__} is no plain value; give a number, text or list")
    return found
