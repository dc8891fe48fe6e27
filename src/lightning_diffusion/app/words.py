"""The words of a command line, before Hydra reads them: --flags, and key=value."""

import re
from collections.abc import Sequence

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from lightning_diffusion.app.help import groups
from lightning_diffusion.configuration.errors import ConfigError, dotted, likeness, nearest
from lightning_diffusion.configuration.trusted_targets import CONF

FORM = "a word is key=value, without spaces"
VERSION = "--version"
FLAGS = {name: action for action in get_args_parser()._actions for name in action.option_strings}  # Hydra's


def check_flags(argv: Sequence[str], config_name: str) -> None:
    """Raises ConfigError for a --flag that there is not, with the flag or the key=value that may be meant."""
    words = iter(enumerate(argv, start=1))
    for i, word in words:
        name, _, value = word.partition("=")
        following = "".join(argv[i : i + 1])
        if not re.match(r"--?[a-zA-Z]", word):
            continue
        if name not in FLAGS:
            value = value or (following if re.match(r"[^-=~][^=]*$", following) else "")
            raise ConfigError(f"{name}: no such flag{_meant(name, value, config_name, argv)}")
        flag = FLAGS[name]
        if flag.nargs is None and not value:
            value = following
            next(words, None)
            if not value:
                raise ConfigError(f"{name}: needs a value{', ' + ' or '.join(flag.choices) if flag.choices else ''}")
        if flag.choices is not None and value and value not in flag.choices:
            raise ConfigError(f"{name} {value}: choose {', '.join(flag.choices)}")


def check_form(argv: Sequence[str], config_name: str) -> None:
    """Raises ConfigError for a word that is neither flag nor key=value, with the option or key that may be meant."""
    for before, word in zip(["", *argv], argv, strict=False):
        if "=" in word or word.startswith(("-", "~")) or (before in FLAGS and FLAGS[before].nargs != 0):
            continue
        chosen = groups(CONF / f"{config_name}.yaml")
        options = [f"{group}={path.stem}" for group in chosen for path in sorted((CONF / group).glob("*.yaml"))]
        known = keys(config_name, argv)
        if word in known:
            raise ConfigError(f"{word}: {FORM}; did you mean {word}=…?")
        exact = [option for option in options if option.endswith(f"={word}")]
        exact.sort(key=lambda option: not option.startswith("experiment="))
        near = nearest(word, [option.partition("=")[2] for option in options])
        meant = exact or [option for option in options if option.endswith(f"={near}")]
        raise ConfigError(f"{word}: {FORM}" + (f"; did you mean {meant[0]}?" if meant else "; --help shows the keys"))


def opened(argv: Sequence[str], config_name: str, left_open: Sequence[str]) -> list[str]:
    """The words, with ++ before one whose key the default option of a group lacks and another option has.

    Args:
        left_open: groups of which a model's file chooses the option where no word does; it is read later.
    """
    defaults = groups(CONF / f"{config_name}.yaml")

    def is_open(key: str) -> bool:
        group, _, rest = key.partition(".")
        if group not in left_open or any(re.match(rf"[+]*{group}=", word) for word in argv):
            return False
        options = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / group).glob("*.yaml")}
        return rest not in dotted(options[str(defaults[group])]) and any(
            rest in dotted(node) for node in options.values()
        )

    return [f"++{word}" if "=" in word and is_open(word.partition("=")[0]) else word for word in argv]


def keys(config_name: str, argv: Sequence[str] = ()) -> list[str]:
    """All dotted keys of a program's configuration, under the options that the command line chooses."""
    GlobalHydra.instance().clear()
    chosen = [
        word for word in argv if re.fullmatch(r"\w+=\w+", word) and (CONF / f"{word.replace('=', '/')}.yaml").exists()
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = hydra.compose(config_name, chosen)
        except HydraException:  # options that do not go together
            config = hydra.compose(config_name)
    plain = OmegaConf.to_container(config, resolve=False)
    folders = [path.name for path in CONF.iterdir() if path.is_dir()]  # those without an option too
    return folders + [key for key in dotted(plain) if key not in folders]


def no_such_key(key: str, known: Sequence[str]) -> str:
    """The message, with the key that may be meant."""
    if key in known:  # a group
        return f"{key}: the chosen model does not read it; leave it out, or choose another model=…"
    close = nearest(key, known)
    return f"{key}: no such key" + (f"; did you mean {close}?" if close else "; --help shows the keys")


def _meant(flag: str, value: str, config_name: str, argv: Sequence[str]) -> str:
    word = flag.lstrip("-").replace("-", "_")
    key, other = (
        nearest(word, keys(config_name, argv)),
        nearest(flag, [name for name in FLAGS if name.startswith("--")]),
    )
    if key is not None and (other is None or likeness(word, key) >= likeness(flag, other)):
        return f"; did you mean {key}={value or '…'}? Keys have no dashes"
    return (
        f"; did you mean {other}?" if other is not None else "; --help shows the keys, which have no dashes: key=value"
    )
