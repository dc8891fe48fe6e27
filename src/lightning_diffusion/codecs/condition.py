"""The condition of a sample: a class, attributes, an image or tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Final, Self

import torch
from torch import Tensor

DIMENSIONS: Final = {"label": 1, "attributes": 2, "image": 4, "tokens": 2}
WHOLE: Final = ("label", "tokens")  # integer parts


@dataclass(frozen=True, eq=False)
class Condition:
    """The condition of B samples, in one part or several. None replaces a condition without parts.

    Args:
        label: the class, int64 (B,).
        attributes: float (B, K). For the networks of this project the last number is 1, which means that the others
            are known. Zeros therefore mean "no attributes"; they differ from known attributes that are all 0.
        image: float (B, C, H, W). For the networks of this project its last channel is the share of the picture that is
            known, from 0 (nothing) to 1, and the other channels are the picture in [−1, 1] times this share. Zeros
            therefore mean "no image"; they differ from a black image and from a grey one.
        tokens: int64 (B, L), words of a vocabulary; 0 means "no word".

    Raises:
        ValueError: no part, parts of different lengths, or a part with a wrong shape or dtype.
    """

    label: Tensor | None = None
    attributes: Tensor | None = None
    image: Tensor | None = None
    tokens: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("condition: no part is given; give one, or None for no condition")
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
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"condition: its parts must have the same length, not {listed}")

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parts that are given, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in found.items() if part is not None}

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def __getitem__(self, items: slice | range | Tensor) -> Self:
        """The condition of the samples in a slice, a range or an index tensor, int64 (b,) or bool (B,)."""
        if isinstance(items, range):
            items = torch.tensor(list(items), dtype=torch.long)
        if isinstance(items, int) or (isinstance(items, Tensor) and items.ndim != 1):
            raise TypeError("condition: index it by a slice, a range or a tensor of one dimension")
        return self._each(lambda name, part: part[items])

    def to(self, device: torch.device | str) -> Self:
        """The condition on another device. A copy to a GPU does not block the host, as for a batch's tensors."""
        to_gpu = torch.device(device).type == "cuda"
        return self._each(lambda name, part: part.to(device, non_blocking=to_gpu))

    def pin_memory(self) -> Self:
        """The condition in pinned memory; torch's DataLoader calls this method."""
        return self._each(lambda name, part: part.pin_memory())

    def none(self, no_class: int | None) -> Self:
        """The "no condition" of the same length: `no_class` as the label, zeros for every other part.

        Raises:
            ValueError: this condition has a label, and there is no class for "none".
        """
        if self.label is not None and no_class is None:
            raise ValueError("condition.label: there is no class that stands for none")
        values = {"label": no_class or 0}
        return self._each(lambda name, part: torch.full_like(part, values.get(name, 0)))

    def dropped(self, where: Tensor, none: "Condition | None" = None) -> Self:
        """This condition with that of some samples replaced by `none`.

        Args:
            where: bool (B,).
            none: the "no condition", of length 1 or B. A missing part is zeros, except the label: if this condition
                has one, `none` needs one too.

        Raises:
            ValueError: a wrong length, or a missing label.
        """
        if where.shape != (len(self),):
            raise ValueError(f"condition: {len(self)} samples, but `where` has the shape {tuple(where.shape)}")
        if none is not None and len(none) not in (1, len(self)):
            raise ValueError(f"condition: {len(self)} samples, but {len(none)} in `none`; give 1 or {len(self)}")

        def drop(name: str, part: Tensor) -> Tensor:
            instead = getattr(none, name, None)
            if instead is None and name == "label":
                raise ValueError("condition.label: there is no class that stands for none")
            instead = torch.zeros_like(part) if instead is None else instead.to(part)
            return torch.where(where.reshape(-1, *[1] * (part.ndim - 1)), instead, part)

        return self._each(drop)

    def without(self, *names: str, no_class: int | None = None, where: Tensor | None = None) -> Self:
        """This condition with the parts `names` replaced by their "none", for all samples or for those of a mask.

        Args:
            no_class: the label that means "none"; needed only if the label is replaced.
            where: bool (B,).

        Raises:
            ValueError: the label is replaced, and there is no class for "none".
        """
        named = {name: part for name, part in self.parts.items() if name in names}
        if not named:
            return self
        none = type(self)(**named).none(no_class).parts
        if where is not None:
            none = {
                name: torch.where(where.reshape(-1, *[1] * (part.ndim - 1)), part, named[name])
                for name, part in none.items()
            }
        return type(self)(**self.parts | none)

    def noised(self, level: Tensor, eps: Tensor) -> Self:
        """This condition with noise on its image: √(1 − s²) z + s q ε for the picture z, and √(1 − s²) q for the known
        share q. s = 0 changes nothing; the limit s = 1 leaves noise that says nothing, of which nothing is known.

        Args:
            level: s in [0, 1), (B,).
            eps: ε ~ N(0, I), (B, C − 1, H, W) for an image (B, C, H, W).

        Ref: Cascaded Diffusion Models §4.2
        """
        if self.image is None:
            return self
        s = level[:, None, None, None]
        share = self.image[:, -1:]
        noise = torch.cat([share * eps, torch.zeros_like(share)], dim=1)
        return type(self)(**self.parts | {"image": (1 - s**2).sqrt() * self.image + s * noise})

    @classmethod
    def cat(cls, conditions: Sequence[Self]) -> Self:
        """Concatenate conditions.

        Raises:
            ValueError: conditions with different parts.
        """
        names = [tuple(condition.parts) for condition in conditions]
        if len(set(names)) > 1:
            listed = " and ".join(" + ".join(each) for each in sorted(set(names)))
            raise ValueError(f"condition: only conditions with the same parts can be joined, not {listed}")
        return cls(**{name: torch.cat([condition.parts[name] for condition in conditions]) for name in names[0]})

    def _each(self, change: Callable[[str, Tensor], Tensor]) -> Self:
        return type(self)(**{name: change(name, part) for name, part in self.parts.items()})


def by_label(label: Tensor | None) -> Condition | None:
    """The condition with these labels, int64 (B,), or None without labels."""
    return None if label is None else Condition(label=label)
