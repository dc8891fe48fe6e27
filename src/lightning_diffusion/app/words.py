"""The words of a command line before Hydra reads them: --flags and key=value."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from lightning_diffusion.app.help import families_with, groups, option_files
from lightning_diffusion.configuration.errors import ConfigError, dotted, likeness, nearest
from lightning_diffusion.configuration.trusted_targets import CONF
from lightning_diffusion.system.console import printable
from lightning_diffusion.system.quoting import quoted

FORM = "arguments have the form key=value, without spaces"
VERSION = "--version"
FLAGS = {name: action for action in get_args_parser()._actions for name in action.option_strings}  # Hydra's

CONFIG_DIR = ("--config-dir", "-cd")


class CommandLine(NamedTuple):
    """The flags of a command line, each with its value, and the other words."""

    flags: list[str]
    words: list[str]


def split(argv: Sequence[str]) -> CommandLine:
    """Separate flags from words. Hydra accepts flags before or after the words, but not between them."""
    flags: list[str] = []
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        name, _, value = word.partition("=")
        if name not in FLAGS:
            words.append(word)
        elif FLAGS[name].nargs == 0 or value:
            flags.append(word)
        elif FLAGS[name].nargs is None:
            flags.append(f"{name}={next(rest, '')}")
        else:  # --info, whose value is optional
            flags.append(f"{name}={FLAGS[name].const}")
    return CommandLine(flags, words)


def config_folders(argv: Sequence[str]) -> list[Path]:
    """The folders of options: conf/ and that of --config-dir. Raises ConfigError if the latter does not exist."""
    folders = [CONF]
    for flag in split(argv).flags:
        name, _, value = flag.partition("=")
        if name in CONFIG_DIR:
            folders[1:] = [Path(value).absolute()]  # the last one wins, as in Hydra
    for folder in folders[1:]:
        if not folder.is_dir():
            raise ConfigError(f"{CONFIG_DIR[0]}={printable(folder)}: no such folder; give one with the layout of conf/")
    return folders


def check_flags(argv: Sequence[str], config_name: str) -> None:
    """Raise ConfigError for an unknown --flag, with the most similar flag or key=value."""
    words = iter(enumerate(argv, start=1))
    for i, word in words:
        name, _, value = word.partition("=")
        following = "".join(argv[i : i + 1])
        if not re.match(r"--?[a-zA-Z]", word):
            continue
        if name not in FLAGS:
            value = value or (following if re.match(r"[^-=~][^=]*$", following) else "")
            raise ConfigError(f"{name}: no such flag{_suggestion(name, value, config_name, argv)}")
        flag = FLAGS[name]
        if flag.nargs is None and not value:
            value = following
            next(words, None)
            if not value:
                raise ConfigError(
                    f"{name}: missing value; give {' or '.join(flag.choices) if flag.choices else f'{name}=…'}"
                )
        if flag.choices is not None and value and value not in flag.choices:
            raise ConfigError(f"{name} {value}: choose {', '.join(flag.choices)}")


def check_form(argv: Sequence[str], config_name: str) -> None:
    """Raise ConfigError for a word that is neither flag nor key=value, with the most similar option or key."""
    folders = config_folders(argv)
    for word in split(argv).words:
        if "=" in word or word.startswith(("-", "~")):
            continue
        chosen = groups(CONF / f"{config_name}.yaml")
        options = [f"{group}={name}" for group in chosen for name in option_files(folders, group)]
        known = keys(config_name, argv)
        if word in known:
            raise ConfigError(f"{word}: {FORM}; did you mean {word}=…?")
        options.sort(key=lambda option: not option.startswith("experiment="))
        exact = [option for option in options if option.endswith(f"={word}")]
        near = nearest(word, [option.partition("=")[2] for option in options])
        meant = exact or [option for option in options if option.endswith(f"={near}")]
        raise ConfigError(f"{word}: {FORM}" + (f"; did you mean {meant[0]}?" if meant else "; --help shows the keys"))


def add_missing_keys(argv: Sequence[str], config_name: str, model_groups: Sequence[str]) -> list[str]:
    """The words, with ++ before a key that the default option of a group lacks but another option has.

    Args:
        model_groups: groups whose option comes from the model's file, read later, unless a word chooses one.
    """
    defaults = groups(CONF / f"{config_name}.yaml")

    def is_open(key: str) -> bool:
        group, _, rest = key.partition(".")
        if group not in model_groups or any(re.match(rf"[+]*{group}=", word) for word in argv):
            return False
        options = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / group).glob("*.yaml")}
        return rest not in dotted(options[str(defaults[group])]) and any(
            rest in dotted(node) for node in options.values()
        )

    return [f"++{word}" if "=" in word and is_open(word.partition("=")[0]) else word for word in argv]


def keys(config_name: str, argv: Sequence[str] = ()) -> list[str]:
    """All dotted keys of a program's configuration with the options that the command line chooses."""
    GlobalHydra.instance().clear()
    folders = config_folders(argv)
    pairs = [word.split("=") for word in argv if re.fullmatch(r"\w+=\w+", word)]
    chosen = [f"{group}={option}" for group, option in pairs if option in option_files(folders, group)]
    added = [f"hydra.searchpath=[{quoted(f'file://{folder}')}]" for folder in folders[1:]]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = hydra.compose(config_name, [*added, *chosen])
        except HydraException:  # options that conflict
            config = hydra.compose(config_name)
    plain = OmegaConf.to_container(config, resolve=False)
    names = [path.name for path in CONF.iterdir() if path.is_dir()]  # including groups without an option
    return names + [key for key in dotted(plain) if key not in names]


def no_such_key(key: str, config_name: str, argv: Sequence[str]) -> str:
    """The message about an unknown key: the families of models that use it, or the most similar known key."""
    own, known = CONF / f"{config_name}.yaml", keys(config_name, argv)
    users = families_with(key.partition(".")[0], own, config_folders(argv))
    words = [word for word in argv if word.startswith("model=")] or [f"model={groups(own).get('model')}"]
    others = [name for word in words for name in word.removeprefix("model=").split(",") if name not in users]
    if users and (others or key in known):
        family = f"model={others[-1]}" if others else "the chosen model"
        return f"{key}: not used by {family}; leave it out, or choose model={' or '.join(users)}"
    if key in known:
        return f"{key}: not used by this program; leave it out"
    close = nearest(key, known)
    return f"{key}: no such key" + (f"; did you mean {close}?" if close else "; --help shows the keys")


def _suggestion(flag: str, value: str, config_name: str, argv: Sequence[str]) -> str:
    word = flag.lstrip("-").replace("-", "_")
    key, other = (
        nearest(word, keys(config_name, argv)),
        nearest(flag, [name for name in FLAGS if name.startswith("--")]),
    )
    if key is not None and (other is None or likeness(word, key) >= likeness(flag, other)):
        return f"; did you mean {key}={value or '…'}? Keys have no leading dashes"
    return (
        f"; did you mean {other}?"
        if other is not None
        else "; --help shows the keys, which have no leading dashes: key=value"
    )
