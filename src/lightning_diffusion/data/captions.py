"""Captions of two items in a closed language, "a bag left of a sandal", and their words as numbers."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

RELATIONS: Final = ("left of", "right of", "above", "below")
ARTICLES: Final = ("a", "an")
LENGTH: Final = 3  # words of a caption: a class, a relation and a class
STRIDE: Final = 3  # between the numbers of two classes that are held out as a pair
CLASSES: Final = {
    "digits": tuple("0123456789"),
    "fashion_mnist": (
        "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
}  # fmt: skip


class Description(NamedTuple):
    """What a data set offers as conditions of its images.

    attributes: float (B, K) or None. captions: words, int64 (B, L), or None; see `Vocabulary`.
    """

    attributes: Tensor | None
    captions: Tensor | None


class Vocabulary:
    """The words of captions "a CLASS RELATION a CLASS". Each class and each relation is one word; articles are none.

    0 means "no word". The classes follow from 1, then the relations.

    Args:
        classes: their names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.words = ("", *self.classes, *RELATIONS)

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)

    def of(self, subjects: Tensor, relations: Tensor, objects: Tensor) -> Tensor:
        """The captions of class numbers and relation numbers, (B,) each -> int64 (B, LENGTH)."""
        return torch.stack([1 + subjects, 1 + len(self.classes) + relations, 1 + objects], dim=1)

    def parts(self, captions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inverse of `of`."""
        subjects, relations, objects = captions.unbind(1)
        return subjects - 1, relations - 1 - len(self.classes), objects - 1

    def encode(self, text: str) -> Tensor:
        """The words of a caption, int64 (LENGTH,).

        Raises:
            ValueError: another sentence, or an unknown word.
        """
        sentence = " ".join(text.split())
        for number, relation in enumerate(RELATIONS):
            before, found, after = f" {sentence} ".partition(f" {relation} ")
            if found:
                subject, other = (self._class(text, phrase) for phrase in (before, after))
                return torch.tensor([1 + subject, 1 + len(self.classes) + number, 1 + other])
        example = f"a {self.classes[0]} {RELATIONS[0]} a {self.classes[-1]}"
        raise ValueError(f"caption={_short(text)}: it has no relation, {_listed(RELATIONS)}; write '{example}'")

    def decode(self, caption: Tensor) -> str:
        """The text of a caption (L,); empty without words."""
        words = [self.words[number] for number in caption.tolist() if number]
        return " ".join(word if word in RELATIONS else f"{_article(word)} {word}" for word in words)

    def _class(self, text: str, phrase: str) -> int:
        words = phrase.split()
        name = " ".join(words[1:] if words and words[0].lower() in ARTICLES else words)
        known = {each.lower(): number for number, each in enumerate(self.classes)}
        if name.lower() not in known:
            raise ValueError(f"caption={_short(text)}: '{_short(name)}' is no class; choose {_listed(self.classes)}")
        return known[name.lower()]


def relation(dx: Tensor, dy: Tensor) -> Tensor:
    """The relation of an item to another one whose centre is at (dx, dy) from its own, x to the right and y down.

    The larger offset decides, and the horizontal one if both are equal. A number of RELATIONS, int64 (B,).
    """
    horizontal, vertical = torch.where(dx > 0, 0, 1), torch.where(dy > 0, 2, 3)
    return torch.where(dx.abs() >= dy.abs(), horizontal, vertical)


def is_held_out_pair(one: Tensor, other: Tensor) -> Tensor:
    """Whether two classes of ten are a pair that is held out: k and k + 3, modulo 10. Each class is in two of the ten
    pairs. Bool, of the shape that the arguments broadcast to."""
    difference = (one - other) % 10
    return (difference == STRIDE) | (difference == 10 - STRIDE)


def _article(word: str) -> str:
    return "an" if word[0].lower() in "aeiou8" else "a"


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _short(text: str) -> str:
    return ascii(text)[1:-1][:60]
