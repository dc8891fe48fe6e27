"""A program's configuration for the Python API: keyword arguments become words of a command line."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from lightning_diffusion.app.cli import explain
from lightning_diffusion.app.drawing import NONE, Drawing, fill_drawing
from lightning_diffusion.app.saved_words import literal
from lightning_diffusion.checkpoints.loading import TrainedModel
from lightning_diffusion.configuration.arguments import keys_of
from lightning_diffusion.configuration.errors import ConfigError, did_you_mean
from lightning_diffusion.configuration.signatures import signature_of
from lightning_diffusion.configuration.trusted_targets import CONF, DRAWING, TARGET, Targets
from lightning_diffusion.models.contracts import Model

PARTS = ("edit", *DRAWING, "metrics", "data")  # the parts with options; the first that has an option receives it
PLAIN = (str, int, float, type(None))  # bool is an int
NO_OPTIONS = ("_target_", "_partial_", "time_grid", "denoiser")  # arguments of the parts that are filled in elsewhere


@contextlib.contextmanager
def configured(
    trained: TrainedModel,
    trust: list[str],
    program: str,
    keys: Mapping[str, Any],
    parts: Mapping[str, Any],
    options: Mapping[str, Any],
    defaults: Mapping[str, Any] = NONE,
) -> Iterator[tuple[DictConfig, dict[str, Any]]]:
    """A program's configuration for a model, and the parts that are given as objects.

    Args:
        keys: keys of the configuration with their values; None leaves one out.
        parts: for each of PARTS an option's name, an object, or None.
        options: arguments of the parts, such as num_steps of the sampler or scale of the guidance.
        defaults: used for arguments that a part has and `options` does not give.

    Raises:
        ConfigError: no part has such an argument, an object is of another kind, or the words do not compose.
    """
    objects = {key: part for key, part in parts.items() if part is not None and not isinstance(part, str)}
    for key, part in objects.items():
        _check_kind(key, part)
    names = {key: part for key, part in parts.items() if isinstance(part, str)}
    plain = {**keys, **names, "trust": trust or None}
    words = [text for key, value in plain.items() if value is not None for text in word(key, value)]
    if options or defaults:
        with composed(program, words) as config:
            own = _options(fill_drawing(config, trained.file, without=objects), trained.model, objects, trust)
        words += _option_words(options, defaults, own)
    with composed(program, words) as config:
        yield config, objects


@contextlib.contextmanager
def composed(config_name: str, words: Sequence[str]) -> Iterator[DictConfig]:
    """The configuration of `python -m src.<config_name> WORDS`. Inside, Hydra's globals are those of that program.

    Raises:
        ConfigError: the words do not compose.
    """
    here, there = GlobalHydra.instance(), HydraConfig.instance()
    before = here.hydra, there.cfg
    try:
        here.clear()
        try:
            hydra.initialize_config_dir(str(CONF), version_base="1.3")
            config = hydra.compose(config_name, list(words), return_hydra_config=True)
        except Exception as error:  # any error of Hydra's about the words
            raise ConfigError(explain(error, config_name, words)) from error
        there.set_config(config)
        with read_write(config), open_dict(config):
            del config["hydra"]
        try:
            yield config
        except OmegaConfBaseException as error:  # a missing value, or a reference to a missing key
            raise ConfigError(explain(error, config_name, words)) from error
    finally:
        here.hydra, there.cfg = before


def word(key: str, value: Any) -> list[str]:
    """The words that give a key this value, one for each leaf of a mapping.

    Raises:
        ConfigError: the value is not plain data.
    """
    if isinstance(value, Mapping):
        return [text for name, child in value.items() for text in word(f"{key}.{name}", child)]
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII):
        return [f"{key}={value}"]
    return [f"{key}={literal(_plain(key, value))}"]


def _option_words(
    options: Mapping[str, Any], defaults: Mapping[str, Any], own: Mapping[str, list[str]]
) -> Iterator[str]:
    """The words for options; `own` lists the options of each part."""
    known = sorted({each for names in own.values() for each in names})
    possible = {name: value for name, value in defaults.items() if name in known}
    for name, value in {**possible, **options}.items():
        if name not in known:
            raise ConfigError(f"{name}: no such option{did_you_mean(name, known)}")
        key = next(key for key, names in own.items() if name in names)
        yield from word(f"++{key}.{name}", value)


def _options(config: DictConfig, model: Model, objects: Mapping[str, Any], trust: Any) -> dict[str, list[str]]:
    """The options of the chosen parts, by key."""
    own = {*model.parts, *(["time_grid"] if "sampler" in model.parts else [])}
    gone = {*(key for key in DRAWING if key not in own), *objects, *(["time_grid"] if "sampler" in objects else [])}
    found = {}
    for key in PARTS:
        if key not in gone and config.get(key) is not None:
            node: Any = OmegaConf.to_container(config[key], resolve=False)
            parameters = signature_of(Targets(trust=trust).find(node[TARGET])).parameters
            found[key] = [name for name in dict.fromkeys([*parameters, *node]) if name not in NO_OPTIONS]
    return found


def _check_kind(key: str, part: object) -> None:
    """Raise ConfigError unless an object is of the kind of its part."""
    kind = keys_of(Drawing).get(key)
    if kind is None:
        raise ConfigError(f"{key}: give the name of an option, not {type(part).__name__}")
    if not (isinstance(part, kind) if isinstance(kind, type) else callable(part)):
        what = f"a {kind.__name__}" if isinstance(kind, type) else "a callable of a denoiser"
        raise ConfigError(f"{key}: give the name of an option or {what}, not {type(part).__name__}")


def _plain(key: str, value: Any) -> Any:
    """The value without NumPy's numbers, paths and tuples."""
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, (list, tuple)):
        return [_plain(key, child) for child in value]
    found = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
    if not isinstance(found, PLAIN):
        raise ConfigError(f"{key.lstrip('+')}: a {type(value).__name__} is not plain data; give a number, text or list")
    return found
