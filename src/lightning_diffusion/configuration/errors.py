"""User errors, and the words that the user probably meant."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

LIKE, LIKE_OF_FEW = 0.6, 0.5  # the least likeness of a misspelt word, among many and among few choices
MIN_LETTERS = 3  # of a word that counts as a part of another
MAX_CHOICES = 40  # listed in a message


class ConfigError(Exception):
    """An error of the user, as one line with the key and the remedy."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message: the most similar word, or all choices if they are few."""
    known = list(known)
    if (close := nearest(word, known, LIKE_OF_FEW)) is not None:
        return f"; did you mean {close}?"
    return f"; choose among {', '.join(sorted(known))}" if 0 < len(known) <= MAX_CHOICES else ""


def nearest(word: str, known: Iterable[str], least: float = LIKE) -> str | None:
    """The known word most similar to this one, as a whole or in the part after its last dot, or None."""
    best = max(known, key=lambda each: (likeness(word, each), -each.count("."), -len(each)), default=None)
    return best if best is not None and likeness(word, best) >= least else None


def dotted(node: Any, path: str = "") -> Iterator[str]:
    """The keys of nested mappings, a.b.c, without `_target_` and `_partial_`."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key not in ("_target_", "_partial_"):
            yield f"{path}{key}"
            yield from dotted(value, f"{path}{key}.")


def likeness(word: str, key: str) -> float:
    """The likeness of two dotted words in [0, 1], ignoring case. The last part weighs more than the path before it.

    A last part that is one of the other's words is similar to it: ema and ema_decay.
    """
    word, key = word.lower(), key.lower()
    end, other = word.rpartition(".")[2], key.rpartition(".")[2]
    whole, last = _ratio(word, key), _ratio(end, other)
    if len(end) >= MIN_LETTERS and end in other.split("_"):
        last = max(last, LIKE + last / 3)
    return max(whole, (2 * last + whole) / 3)


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
