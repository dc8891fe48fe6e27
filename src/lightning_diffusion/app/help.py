"""The text of --help: the program, its groups with their options, and its keys."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from lightning_diffusion.configuration.errors import ConfigError, did_you_mean

FLAGS = ("--help", "-h")
END = """\
--help GROUP         shows the files of a group, with their keys and comments: --help sampler schedule
--cfg job            prints the configuration that the other arguments compose
--multirun           or -m, with key=a,b: runs a sweep
--config-dir=FOLDER  adds your own options, from a folder with the layout of conf/
--hydra-help         shows Hydra's other flags
--version            prints the version"""


def asks_for_help(argv: list[str]) -> bool:
    return any(word in FLAGS for word in argv)


def help_text(usage: str, folders: Sequence[Path], config_name: str, words: list[str]) -> str:
    """The whole text, or only the files of the groups that follow --help.

    Args:
        usage: what the program does, and examples.
        folders: the folders of options, conf/ first.
        config_name: the program's own file, whose defaults list names its groups.
        words: the command line without its flags.

    Raises:
        ConfigError: a word after --help is not a group.
    """
    own = folders[0] / f"{config_name}.yaml"
    chosen = groups(own)
    asked = [word for word in words if not word.startswith("-") and "=" not in word]
    for word in asked:
        if word not in chosen:
            raise ConfigError(f"--help {word}: no such group{did_you_mean(word, chosen) or '; leave it out'}")
    if asked:
        return "\n".join(_files(group, option_files(folders, group)) for group in asked)
    what, _, examples = usage.strip().partition("\n\n")
    parts = [what, textwrap.indent(examples, "  ")]
    if chosen:
        width = max(map(len, chosen))
        where = " and ".join(f"{folder.name}/" for folder in folders)
        parts.append(f"Groups, with their options in {where} (* marks the default):")
        options = {group: option_files(folders, group) for group in sorted(chosen)}
        parts.append("\n".join(_options(group, options[group], chosen[group], width) for group in options))
    files = [own, *(folders[0] / group / f"{option}.yaml" for group, option in chosen.items())]
    keys = "\n".join(filter(None, (_keys(path) for path in files if path == own or _has_root_keys(path))))
    parts += ["Keys, with their defaults:", textwrap.indent(keys, "  "), END]
    return "\n\n".join(parts)


def groups(path: Path) -> dict[str, str | None]:
    """The groups of a defaults list, each with its default option, and the /groups that these options add.

    A family of models that is not the default adds its groups too.
    """
    entries = [entry for entry in yaml.safe_load(path.read_text()).get("defaults", []) if isinstance(entry, dict)]
    found: dict[str, str | None] = {}
    for group, option in ((group, option) for entry in entries for group, option in entry.items() if " " not in group):
        found[group.lstrip("/")] = option
        files = [] if group.startswith("/") else list((path.parent / group).glob("*.yaml"))
        for inner in sorted(files, key=lambda file: (file.stem == option, file.stem)):  # the default's own choices win
            if inner.stem == option or _has_root_keys(inner):
                found |= {name: choice for name, choice in groups(inner).items() if (path.parent / name).is_dir()}
    return found


def option_files(folders: Iterable[Path], group: str) -> dict[str, Path]:
    """The files of a group's options by name. If two folders have the same name, the first wins, as in Hydra."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in (folder / group).glob("*.yaml"):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def _options(group: str, options: Iterable[str], default: str | None, width: int) -> str:
    names = [f"{name}*" if name == default else name for name in options]
    room = min(shutil.get_terminal_size().columns, 120)
    indent = " " * (width + 4)
    text = textwrap.fill(", ".join(names), room, initial_indent=indent, subsequent_indent=indent)
    return f"  {group:<{width}}{text[width + 2 :]}"


def _has_root_keys(path: Path) -> bool:
    """Whether an option adds keys at the root of the configuration, as a family of models does."""
    return path.is_file() and path.read_text().startswith("# @package _global_")


def _keys(path: Path) -> str:
    """The lines of a file that give one value, unchanged."""
    return "\n".join(line for line in path.read_text().splitlines() if re.match(r"\w+: +[^#\s]", line))


def _files(group: str, options: dict[str, Path]) -> str:
    return "\n".join(
        f"{group}={name}\n{textwrap.indent(path.read_text().strip(), '    ')}\n" for name, path in options.items()
    )
