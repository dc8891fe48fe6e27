"""Words that were saved in a file. Composed again, they can choose options of conf/ and set plain values, nothing else.

The words of a command line can call anything and write anywhere. The words of a file can be written by anyone.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.configuration.trusted_targets import TARGET, Targets, require_plain

OF_THE_COMMAND_LINE = ("hydra", "trust", "resume", "run_dir", "ckpt_path", "pretrained")
PLACES = ("${run_dir}", "${oc.env:")  # in conf/, the default of a key that decides where files are written
INPUTS = ("data.root", "metrics.weights", "guidance.weak.ckpt_path")  # keys whose files are only read
NAMES = ("monitor",)  # last parts of keys whose text is a name, even with a slash: val/loss


class Word:
    """One word of a command line, key=value.

    Raises:
        ConfigError: the text is not such a word.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._parsed = OverridesParser.create().parse_override(text)
            self.key, self._value = self._parsed.key_or_group, self._parsed.value()
        except (HydraException, RecursionError, ValueError) as error:
            raise ConfigError(f"contains an argument that is not key=value, {text[:60]!r}") from error

    @property
    def is_choice(self) -> bool:
        """Whether the word chooses an option of a group. Known after `check`."""
        return self._is_choice

    def check(self, options: Sequence[str]) -> None:
        """Raise ConfigError if the word does more than choose an option or give a key a plain value.

        Args:
            options: the options of the group with the word's key; empty if there is no such group.
        """
        self._is_choice = bool(options) or "/" in self.key
        if self.key.split(".")[0] in OF_THE_COMMAND_LINE or self._parsed.is_sweep_override():
            raise ConfigError(f"sets {self.key}, which only a command line can set")
        require_plain(self._value)
        chosen = self._value if isinstance(self._value, list) else [self._value]
        if (
            self._is_choice
            and not self._parsed.is_delete()
            and any(option not in (*options, None) for option in chosen)
        ):
            raise ConfigError(f"chooses {self.key}={chosen[0]}, which is not an option of conf/ or --config-dir")

    def resolved(self, config: DictConfig) -> str:
        """The word, with the configuration's value if its own refers to another key."""
        if "${" not in self.text:
            return self.text
        value = OmegaConf.select(config, self.key)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
        return f"{self.text.partition('=')[0]}={literal(value)}"


def refuse_changes(chosen: Any, whole: Any) -> None:
    """Raise ConfigError if words change which call is made or where files are written.

    Args:
        chosen: the unresolved configuration with only the words that choose options.
        whole: the unresolved configuration with all words.
    """
    before = {leaf.path: leaf for leaf in _leaves(chosen)}
    own = Targets().own
    for leaf in _leaves(whole):
        old = before.pop(leaf.path, None)
        if old is not None and old.value == leaf.value:
            continue
        if leaf.path.endswith(f".{TARGET}") and leaf.value in own:
            raise ConfigError(f"sets {leaf.path} to {leaf.value}, which no option in conf/ does")
        if old is not None and isinstance(old.value, str) and any(place in old.value for place in PLACES):
            raise ConfigError(f"sets {leaf.path}, where files are written")
        if leaf.path in INPUTS or leaf.path.rpartition(".")[2] in NAMES:
            continue
        if isinstance(leaf.value, str) and _is_path(leaf.value) and leaf.caller in own:
            raise ConfigError(f"sets {leaf.path} to a path")


class _Leaf(NamedTuple):
    """A value of a configuration. path: a.b.c. caller: the target of the innermost call around it."""

    path: str
    value: Any
    caller: str | None


def _leaves(node: Any, path: str = "", caller: str | None = None) -> Iterator[_Leaf]:
    if isinstance(node, (dict, list)):
        if isinstance(node, dict) and isinstance(node.get(TARGET), str):
            caller = node[TARGET]
        items = node.items() if isinstance(node, dict) else zip(itertools.count(), node, strict=False)
        for key, child in items:
            yield from _leaves(child, f"{path}.{key}" if path else str(key), caller)
    else:
        yield _Leaf(path, node, caller)


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text or text in (".", "..") or text.startswith("~")


def literal(value: Any) -> str:
    """A value in the grammar of Hydra's command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{literal(child)}" for key, child in value.items()) + "}"  # keys take no quotes
    if isinstance(value, list):
        return "[" + ",".join(map(literal, value)) + "]"
    if isinstance(value, str):
        text = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{text}'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
