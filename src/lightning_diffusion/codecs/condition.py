"""What a sample is asked to be: a class, attributes, an image or tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Final, Self

import torch
from torch import Tensor

DIMENSIONS: Final = {"label": 1, "attributes": 2, "image": 4, "tokens": 2}
WHOLE: Final = ("label", "tokens")  # parts of whole numbers


@dataclass(frozen=True, eq=False)
class Condition:
    """What each of B samples is asked to be, by one part or several. Without any part there is no condition: None.

    Args:
        label: the class, int64 (B,).
        attributes: float (B, K).
        image: float (B, C, H, W).
        tokens: int64 (B, L).

    Raises:
        ValueError: no part, parts of different lengths, or a part of another shape or kind.
    """

    label: Tensor | None = None
    attributes: Tensor | None = None
    image: Tensor | None = None
    tokens: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("condition: has no part; give one, or None for no condition")
        for name, part in self.parts.items():
            whole = name in WHOLE
            fits = part.dtype == torch.int64 if whole else part.is_floating_point()
            if not fits or part.ndim != DIMENSIONS[name]:
                raise ValueError(
                    f"condition.{name}: must be {'int64' if whole else 'floating point'} with {DIMENSIONS[name]} "
                    f"dimensions, not {part.dtype} {tuple(part.shape)}"
                )
        lengths = {name: len(part) for name, part in self.parts.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"condition: its parts must have the same length, not {told}")

    @property
    def parts(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in found.items() if part is not None}

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def __getitem__(self, items: slice | range | Tensor) -> Self:
        """The condition of some samples: a slice or a range of them, or an index tensor, int64 (b,) or bool (B,)."""
        if isinstance(items, range):
            items = torch.tensor(list(items), dtype=torch.long)
        if isinstance(items, int) or (isinstance(items, Tensor) and items.ndim != 1):
            raise TypeError("condition: index it by a slice, a range or a tensor of one dimension")
        return self._each(lambda name, part: part[items])

    def to(self, device: torch.device | str) -> Self:
        """On another device. A copy to a GPU does not wait, as Lightning's copies of a batch's tensors do not."""
        to_gpu = torch.device(device).type == "cuda"
        return self._each(lambda name, part: part.to(device, non_blocking=to_gpu))

    def pin_memory(self) -> Self:
        """In memory that a GPU copies from by itself; torch's DataLoader calls it."""
        return self._each(lambda name, part: part.pin_memory())

    def none(self, no_class: int | None) -> Self:
        """What stands for no condition, as long as this one: this label, zeros for every other part.

        Raises:
            ValueError: a label without a class that stands for none.
        """
        if self.label is not None and no_class is None:
            raise ValueError("condition.label: there is no class that stands for none")
        values = {"label": no_class or 0}
        return self._each(lambda name, part: torch.full_like(part, values.get(name, 0)))

    def dropped(self, where: Tensor, none: "Condition | None" = None) -> Self:
        """This condition, with `none` in its place for some samples.

        Args:
            where: bool (B,).
            none: what stands for no condition, part by part, of length 1 or B. A part that it lacks is zeros; it must
                have a label where this one has.

        Raises:
            ValueError: a length that does not fit, or no label.
        """
        if where.shape != (len(self),):
            raise ValueError(f"condition: {len(self)} samples, and `where` has the shape {tuple(where.shape)}")
        if none is not None and len(none) not in (1, len(self)):
            raise ValueError(f"condition: {len(self)} samples, and {len(none)} that stand for none; give 1 or as many")

        def drop(name: str, part: Tensor) -> Tensor:
            instead = getattr(none, name, None)
            if instead is None and name == "label":
                raise ValueError("condition.label: there is no class that stands for none")
            instead = torch.zeros_like(part) if instead is None else instead.to(part)
            return torch.where(where.reshape(-1, *[1] * (part.ndim - 1)), instead, part)

        return self._each(drop)

    @classmethod
    def cat(cls, conditions: Sequence[Self]) -> Self:
        """One after the other.

        Raises:
            ValueError: conditions that do not have the same parts.
        """
        names = [tuple(condition.parts) for condition in conditions]
        if len(set(names)) > 1:
            told = " and ".join(" + ".join(each) for each in sorted(set(names)))
            raise ValueError(f"condition: only conditions of the same parts can be joined, not {told}")
        return cls(**{name: torch.cat([condition.parts[name] for condition in conditions]) for name in names[0]})

    def _each(self, change: Callable[[str, Tensor], Tensor]) -> Self:
        return type(self)(**{name: change(name, part) for name, part in self.parts.items()})


def by_label(label: Tensor | None) -> Condition | None:
    """The condition of these classes, int64 (B,); None without classes."""
    return None if label is None else Condition(label=label)
