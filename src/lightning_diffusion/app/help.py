"""The text of --help: the program, its groups with their options, and its keys."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning_diffusion.configuration.defaults_lists import groups_in, overrides_in
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
        return "\n".join(_files(folders, group) for group in asked)
    what, _, examples = usage.strip().partition("\n\n")
    parts = [what, textwrap.indent(examples, "  ")]
    paths = (folders[0] / group / f"{option}.yaml" for group, option in chosen.items())
    files = [own, *(path for path in paths if path.is_file())]
    if chosen:
        width = max(map(len, chosen))
        where = " and ".join(f"{folder.name}/" for folder in folders)
        parts.append(f"Groups, with their options in {where} (* marks the default):")
        options = {group: option_files(folders, group) for group in sorted(chosen)}
        marked = chosen | {group: option for path in files for group, option in overrides_in(path).items()}
        parts.append("\n".join(_options(group, options[group], marked[group], width) for group in options))
    keys = "\n".join(filter(None, (_keys(path) for path in files if path == own or _has_root_keys(path))))
    parts += ["Keys, with their defaults:", textwrap.indent(keys, "  "), END]
    return "\n\n".join(parts)


def groups(path: Path) -> dict[str, str | None]:
    """The groups of a program, each with its default option: those of its defaults list, and those that options add.

    Every family of models adds its groups, also a family that is not the default.
    """
    listed, found = dict(groups_in(path)), dict[str, str | None]()
    for group, option in listed.items():
        found[group] = option
        files = option_files([path.parent], group).values()
        for inner in sorted(files, key=lambda file: (file.stem == option, file.stem)):  # the default's own choices win
            if inner.stem == option or _has_root_keys(inner):
                found |= _added_groups(inner, path.parent, listed)
    return found


def families_with(group: str, path: Path, folders: Sequence[Path]) -> list[str]:
    """The families of models that add a group to a program.

    Args:
        path: the program's own file.
        folders: the folders of options, conf/ first.
    """
    listed = dict(groups_in(path))
    files = option_files(folders, "model") if "model" in listed else {}
    return [name for name, file in files.items() if group in _added_groups(file, path.parent, listed)]


def _added_groups(path: Path, folder: Path, listed: Mapping[str, str | None]) -> dict[str, str | None]:
    """The groups that an option's file adds, with those of the files behind an interpolation such as ${recipe}."""
    found: dict[str, str | None] = {}
    for group, option in groups_in(path):
        if (match := re.fullmatch(r"\$\{(\w+)\}", str(option))) is None:
            found[group] = option
        elif (inner := folder / group / f"{listed.get(match[1])}.yaml").is_file():
            found |= _added_groups(inner, folder, listed)
    return {group: option for group, option in found.items() if (folder / group).is_dir()}


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


def _files(folders: Sequence[Path], group: str) -> str:
    """The files of a group, each followed by the files with its name in the group's subfolders."""
    subgroups = sorted({path.name for folder in folders for path in (folder / group).glob("*/") if path.is_dir()})
    names = [group, *(f"{group}/{name}" for name in subgroups)]
    files = {name: option_files(folders, name) for name in names}
    found = [(name, option, files[name][option]) for option in files[group] for name in names if option in files[name]]
    return "\n".join(
        f"{name}={option}\n{textwrap.indent(path.read_text().strip(), '    ')}\n" for name, option, path in found
    )
