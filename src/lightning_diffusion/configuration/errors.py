"""Mistakes of the user's."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

LIKE, LIKE_OF_FEW = 0.6, 0.5  # the likeness from which on a spelling is taken for a slip, of many and of few words
MIN_LETTERS = 3  # letters of a word that is found in another
MAX_CHOICES = 40  # choices that a message lists


class ConfigError(Exception):
    """The user's, in one line that names the key and the remedy."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The part of a message that names the nearest spelling, or all that there is to choose from, if that is little."""
    known = list(known)
    if (close := nearest(word, known, LIKE_OF_FEW)) is not None:
        return f"; did you mean {close}?"
    return f"; choose among {', '.join(sorted(known))}" if 0 < len(known) <= MAX_CHOICES else ""


def nearest(word: str, known: Iterable[str], least: float = LIKE) -> str | None:
    """The known word that is most like this one, whole or in its last part after a dot; None if none is like it."""
    best = max(known, key=lambda each: (likeness(word, each), -each.count("."), -len(each)), default=None)
    return best if best is not None and likeness(word, best) >= least else None


def dotted(node: Any, path: str = "") -> Iterator[str]:
    """The keys of nested mappings, a.b.c, without those of the calls' names."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key not in ("_target_", "_partial_"):
            yield f"{path}{key}"
            yield from dotted(value, f"{path}{key}.")


def likeness(word: str, key: str) -> float:
    """Of two dotted words, in [0, 1], whatever their case; the last part counts for more than the path before it.

    A last part that is one of the words of the other's is like it: ema and ema_decay.
    """
    word, key = word.lower(), key.lower()
    end, other = word.rpartition(".")[2], key.rpartition(".")[2]
    whole, last = _ratio(word, key), _ratio(end, other)
    if len(end) >= MIN_LETTERS and end in other.split("_"):
        last = max(last, LIKE + last / 3)
    return max(whole, (2 * last + whole) / 3)


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
