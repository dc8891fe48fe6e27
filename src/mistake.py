"""Mistakes of the user's."""

import difflib
from collections.abc import Iterable


class Mistake(Exception):
    """The user's, in one line that names the key and the remedy."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The part of a message that names the nearest spelling, or all that there is to choose from."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; choose among {', '.join(sorted(known))}" if known else ""
