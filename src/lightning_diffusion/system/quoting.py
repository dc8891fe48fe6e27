"""Quotes for the words of a command line, as Hydra and the shell need them."""

import re
import shlex

PLAIN = r"[\w./:@%+-]+"  # a value that needs no quotes, neither for Hydra nor for a shell


def quoted(value: object) -> str:
    """A value in quotes that Hydra's command line reads literally."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def pasted(key: str, value: object) -> str:
    """key=value for a shell, with the quotes that the shell and Hydra need."""
    text = str(value)
    return for_shell(f"{key}={text if re.fullmatch(PLAIN, text) else quoted(text)}")


def for_shell(word: str) -> str:
    """A word with the quotes that a shell needs, if any; double quotes around single ones."""
    if "'" not in word or re.search(r'[!"$`\\]', word):
        return shlex.quote(word)
    return f'"{word}"'
