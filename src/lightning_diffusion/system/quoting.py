"""Words of a command line, with the quotes that Hydra and the shell need."""

import re
import shlex

PLAIN = r"[\w./:@%+-]+"  # a value that Hydra and a shell read as it stands


def quoted(value: object) -> str:
    """As Hydra's command line reads it literally."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def pasted(key: str, value: object) -> str:
    """key=value as it can be typed into a shell, with the quotes that it and Hydra need."""
    text = str(value)
    return for_shell(f"{key}={text if re.fullmatch(PLAIN, text) else quoted(text)}")


def for_shell(word: str) -> str:
    """A word with the quotes that a shell needs, if it needs any; double ones around single ones."""
    if "'" not in word or re.search(r'[!"$`\\]', word):
        return shlex.quote(word)
    return f'"{word}"'
