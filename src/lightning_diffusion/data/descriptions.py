"""Attributes and captions as conditions, of data sets that offer them."""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.data.captions import CLASSES, Vocabulary
from lightning_diffusion.data.conditions import ConditionSource
from lightning_diffusion.data.dataset import Sample

NO_CAPTIONS: Final = "condition=caption: these images have no captions; choose data=scenes data.num_items=[2,2]"
MAX: Final = 1e6  # largest absolute value of an attribute on the command line


class Attributes(ConditionSource):
    """The attributes of an image: zeros and ones, or real numbers. A last number, 1, means that they are known.

    Args:
        num_attributes: K ≥ 1.

    Raises:
        ValueError: no attributes.
    """

    part = word = "attributes"

    def __init__(self, num_attributes: int) -> None:
        if num_attributes < 1:
            raise ValueError("condition=attributes: these images have no attributes; choose data=scenes")
        self.num_attributes = num_attributes

    def check(self, data: Any) -> None:
        if data.num_attributes != self.num_attributes:
            raise ValueError(
                f"condition.num_attributes={self.num_attributes}: these images have {data.num_attributes or 0} "
                "attributes; leave it out, or choose data=scenes"
            )

    def __call__(self, sample: Sample) -> Sample:
        assert sample.description is not None
        assert sample.description.attributes is not None
        return sample._replace(attributes=_known(sample.description.attributes))

    def read(self, words: Sequence[float]) -> Condition:
        K = self.num_attributes
        if len(words) != K or not all(abs(value) <= MAX for value in words):
            raise ValueError(f"attributes: this model takes {K} numbers, {K} × 0 or 1 for data=scenes")
        return Condition(attributes=_known(torch.tensor([list(words)], dtype=torch.float32)))

    def texts(self, condition: Condition) -> list[str]:
        assert condition.attributes is not None
        return [" ".join(f"{value:g}" for value in row[:-1].tolist()) for row in condition.attributes]


class Caption(ConditionSource):
    """The caption of an image, see `Vocabulary`.

    Args:
        items: the data set of the items that captions name.
        num_words: of the vocabulary, with the word 0.

    Raises:
        ValueError: no captions, or another number of words.
    """

    part, word = "tokens", "caption"

    def __init__(self, items: str | None, num_words: int) -> None:
        if items not in CLASSES:
            raise ValueError(NO_CAPTIONS)
        self.vocabulary = Vocabulary(CLASSES[items])
        if num_words != len(self.vocabulary):
            raise ValueError(f"condition.num_words={num_words}: there are {len(self.vocabulary)}; leave it out")
        self.num_words = num_words

    def check(self, data: Any) -> None:
        if data.vocabulary is None:
            raise ValueError(NO_CAPTIONS)
        if data.vocabulary != self.vocabulary:
            raise ValueError(
                f"condition.items and data.items: the captions of these data have other words than "
                f"{', '.join(self.vocabulary.classes)}; choose the same items for both"
            )
        if data.horizontal_flip:
            raise ValueError(
                "condition=caption and data.horizontal_flip=true: the mirror image of a scene has another caption; "
                "choose data.horizontal_flip=false"
            )

    def __call__(self, sample: Sample) -> Sample:
        assert sample.description is not None
        return sample._replace(tokens=sample.description.captions)

    def read(self, words: str) -> Condition:
        return Condition(tokens=self.vocabulary.encode(words)[None])

    def texts(self, condition: Condition) -> list[str]:
        assert condition.tokens is not None
        return [self.vocabulary.decode(caption) for caption in condition.tokens]


def _known(attributes: Tensor) -> Tensor:
    """(B, K) -> (B, K + 1)."""
    return torch.cat([attributes, torch.ones_like(attributes[:, :1])], dim=1)
