"""Edits: operations on given pictures with a trained denoiser."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.samplers.base import Sampler


class EditInputs(NamedTuple):
    """Pictures x_0 (B, C, H, W) in [−1, 1], their condition or None, a mask (H, W) or None, and noise."""

    x_0: Tensor
    condition: Condition | None
    mask: Tensor | None
    noise: Noise


class Editing(ABC):
    """An operation on given pictures."""

    num_variants: int = 1  # results per picture
    least_pictures: int = 1
    inputs: tuple[str, ...] = ("picture",)  # the columns that show the input
    needs_mask: bool = False
    needs_latents: bool = False
    takes_sampler: bool = True  # False if it has a sampler of its own

    def check(self, sampler: Sampler, num_pictures: int) -> None:
        """Raise ValueError if the edit cannot use this sampler or so few pictures."""
        if num_pictures < self.least_pictures:
            raise ValueError(f"images: give at least {self.least_pictures}, such as images=[a.png,b.png]")
        if self.needs_latents and sampler.stochastic:
            raise ValueError(
                "edit: a latent determines its picture only with a deterministic sampler; "
                "choose sampler=ddim sampler.eta=0, sampler=unipc or sampler=ode"
            )

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, sampler: Sampler, given: EditInputs, on_step: Callable[[], None] = lambda: None
    ) -> dict[str, Tensor]:
        """Return the columns of a strip, from the input to the result, each (B, C, H, W)."""


def last_of(states: Iterator[Tensor], on_step: Callable[[], None]) -> Tensor:
    """Return the last state of a walk, and call on_step after each step."""
    x = next(states)
    for x in states:  # noqa: B007 - the last one is the result
        on_step()
    return x
