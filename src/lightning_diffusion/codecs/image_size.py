"""The size of an image: a whole number, the side of a square, or [height, width]."""

import reprlib
from collections.abc import Sequence
from typing import Any, TypeGuard

ImageSize = int | Sequence[int]


def height_width(image_size: ImageSize, key: str = "data.image_size") -> tuple[int, int]:
    """(H, W) in pixels: (n, n) of n, and (H, W) of [H, W].

    Args:
        key: of the configuration, for messages.

    Raises:
        ValueError: anything else, or a side below 1.
    """
    sides: Sequence[Any] = image_size if _is_list(image_size) else [image_size, image_size]
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(
            f"{key}={typed(image_size)}: choose a whole number of at least 1 for squares, or [H,W], two of them"
        )
    return sides[0], sides[1]


def simplest(image_size: Any) -> Any:
    """n of [n, n], anything else as it is: two sizes are the same where these are equal."""
    is_square = _is_list(image_size) and len(image_size) == 2 and image_size[0] == image_size[1]
    return image_size[0] if is_square else image_size


def typed(image_size: Any) -> str:
    """A size as a command line takes it, without spaces; of anything else the beginning."""
    return reprlib.repr(list(image_size) if _is_list(image_size) else image_size).replace(" ", "")


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether it is a list, a tuple or OmegaConf's list."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
