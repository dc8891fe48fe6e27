"""The size of an image: a whole number, the side of a square, or [height, width]."""

import reprlib
from collections.abc import Sequence
from typing import Any, TypeGuard

ImageSize = int | Sequence[int]


def height_width(image_size: ImageSize, key: str = "data.image_size") -> tuple[int, int]:
    """(H, W) in pixels: (n, n) for n, and (H, W) for [H, W].

    Args:
        key: configuration key named in error messages.

    Raises:
        ValueError: any other value, or a side below 1.
    """
    sides: Sequence[Any] = image_size if _is_list(image_size) else [image_size, image_size]
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(
            f"{key}={typed(image_size)}: choose a whole number of at least 1 for squares, or two of them, [H,W]"
        )
    return sides[0], sides[1]


def simplest(image_size: Any) -> Any:
    """n for [n, n], any other value unchanged: two sizes are the same if and only if these are equal."""
    is_square = _is_list(image_size) and len(image_size) == 2 and image_size[0] == image_size[1]
    return image_size[0] if is_square else image_size


def typed(image_size: Any) -> str:
    """A size as typed on a command line, without spaces. Any long value is shortened."""
    return reprlib.repr(list(image_size) if _is_list(image_size) else image_size).replace(" ", "")


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether the value is a list, a tuple or OmegaConf's list."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
