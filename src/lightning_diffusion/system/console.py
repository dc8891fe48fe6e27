"""Safe text on the terminal: text from files can neither style or control it nor stop the program."""

import io
import sys
import unicodedata
from typing import Any

from rich.console import Console

ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's control, format (bidi too), surrogate and separator characters


def console(**options: Any) -> Console:
    """A console that prints square brackets and colons unchanged, and never fails because of its file's encoding.

    Args:
        options: of rich's Console.
    """
    stream = options.get("file") or (sys.stderr if options.get("stderr") else sys.stdout)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return Console(**{"markup": False, "highlight": False, "emoji": False, **options})


def clock(seconds: float) -> str:
    """A duration in two units: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def printable(text: object, most: int = 500) -> str:
    """The text as one line of visible characters, all others as backslash escapes.

    Args:
        most: characters; a longer text is cut and ends with an ellipsis.
    """
    try:
        whole = str(text)
    except Exception:  # an integer of more than 4,300 digits, a list nested too deeply
        whole = f"<{type(text).__name__}>"
    start = whole[: most + 1]  # escapes only make it longer
    shown = "".join(_escaped(letter) for letter in start)
    return shown if len(shown) <= most else shown[: max(most - 1, 0)] + "…"


def _escaped(letter: str) -> str:
    if unicodedata.category(letter) not in ESCAPED:
        return letter
    return letter.encode("unicode_escape").decode()
