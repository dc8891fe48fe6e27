"""What --help says: the program, its groups with their options, and where to read on."""

import re
import shutil
import textwrap
from pathlib import Path

import yaml

from lightning_diffusion.configuration.errors import ConfigError, did_you_mean

FLAGS = ("--help", "-h")
END = """\
--help GROUP  shows a group's files, with their keys and what they mean: --help sampler schedule
--cfg job     prints the whole configuration as the other words make it
--multirun    or -m, with key=a,b: a sweep
--hydra-help  shows what else Hydra can do
--version     prints the version"""


def asks_for_help(argv: list[str]) -> bool:
    return any(word in FLAGS for word in argv)


def help_text(usage: str, conf: Path, config_name: str, argv: list[str]) -> str:
    """All of it, or only the files of the groups that are named beside --help.

    Args:
        usage: what the program does, and examples.
        conf: the folder of configurations.
        config_name: the program's own, whose defaults list names its groups.

    Raises:
        ConfigError: another word beside --help, which is no group.
    """
    chosen = groups(conf / f"{config_name}.yaml")
    asked = [word for word in argv if not word.startswith("-") and "=" not in word]
    for word in asked:
        if word not in chosen:
            raise ConfigError(f"--help {word}: no such group{did_you_mean(word, chosen) or '; leave it out'}")
    if asked:
        return "\n".join(_files(conf / group) for group in asked)
    what, _, examples = usage.strip().partition("\n\n")
    parts = [what, textwrap.indent(examples, "  ")]
    if chosen:
        width = max(map(len, chosen))
        parts.append("Groups, each a choice among files in conf/ (the default is marked *):")
        parts.append("\n".join(_options(conf / group, chosen[group], width) for group in sorted(chosen)))
    parts += ["Keys, with their defaults:", textwrap.indent(_keys(conf / f"{config_name}.yaml"), "  "), END]
    return "\n\n".join(parts)


def groups(path: Path) -> dict[str, str | None]:
    """The groups of a defaults list, each with its default option; a group's own /groups follow it."""
    entries = [entry for entry in yaml.safe_load(path.read_text()).get("defaults", []) if isinstance(entry, dict)]
    found: dict[str, str | None] = {}
    for group, option in ((group, option) for entry in entries for group, option in entry.items() if " " not in group):
        found[group.lstrip("/")] = option
        inner = path.parent / group / f"{option}.yaml"
        if not group.startswith("/") and inner.is_file():
            found |= {name: choice for name, choice in groups(inner).items() if (path.parent / name).is_dir()}
    return found


def _options(folder: Path, default: str | None, width: int) -> str:
    names = [f"{name}*" if name == default else name for name in _names(folder)]
    room = min(shutil.get_terminal_size().columns, 120)
    indent = " " * (width + 4)
    text = textwrap.fill(", ".join(names), room, initial_indent=indent, subsequent_indent=indent)
    return f"  {folder.name:<{width}}{text[width + 2 :]}"


def _keys(path: Path) -> str:
    """The lines of a file that give a single value, as they stand there."""
    return "\n".join(line for line in path.read_text().splitlines() if re.match(r"\w+: +[^#\s]", line))


def _files(folder: Path) -> str:
    return "\n".join(
        f"{folder.name}={name}\n{textwrap.indent((folder / f'{name}.yaml').read_text().strip(), '    ')}\n"
        for name in _names(folder)
    )


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))
