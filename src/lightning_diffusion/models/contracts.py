"""What a model can do. Trainer, callbacks, programs, metrics and report use these contracts and name no family.

A family is a `Model`, which draws (`Generator`), measures how probable images are (`Likelihood`) or predicts targets
(`Predictor`), and an `Objective`, by which it learns.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition, by_label
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion.noise import BatchRNG

GRAPHS: Final = "reduce-overhead"  # torch's word for CUDA graphs
Compile = bool | Literal["reduce-overhead"]
OnStep = Callable[[], None]
AnyModel = TypeVar("AnyModel", bound="Model")


def no_report() -> None:
    """For a caller that does not follow the steps."""


class Model(nn.Module, ABC):
    """What is trained, averaged and saved: an nn.Module whose state dict is the model.

    shape: (C, H, W) of a picture. num_classes: K, or None without classes.
    """

    shape: tuple[int, int, int]
    num_classes: int | None

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network that takes most of the time. It alone is compiled, rounded to bfloat16 and sharded."""

    @property
    def shared(self) -> Sequence[object]:
        """Parts without weights of their own, which a copy of the model shares."""
        return ()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    parts: Sequence[str] = ()  # the names of what `with_parts` replaces

    def with_parts(self, **parts: Any) -> Self:
        """The same weights, drawn from in another way: by another sampler, say.

        Raises:
            ValueError: parts that do not fit this model.
        """
        if parts:
            raise ValueError(f"{next(iter(parts))}: this model has none; leave it out")
        return self

    def check(self) -> None:
        """Raises ValueError where parts that are each in order do not fit each other."""

    def describe(self, options: Mapping[str, str]) -> dict[str, str]:
        """Lines about the model, by title, at the start of a run.

        Args:
            options: what the configuration calls under each of its keys: {"schedule": "cosine"}.
        """
        return {}

    def facts(self) -> dict[str, Any]:
        """What metrics.json holds about the model beside what was measured."""
        return {}

    def compile_network(self, how: Compile) -> None:
        """In place, if at all: weights and their names stay. "reduce-overhead" has a GPU replay the network's kernels
        as one graph: a host that starts each of them by itself is often slower than the kernels are."""
        if how:
            self.network.compile(mode=how if isinstance(how, str) else None)


class Drawn(NamedTuple):
    """images: uint8 (B, C, H, W) on the CPU. cost: evaluations of the network for them, each image counted."""

    images: Tensor
    cost: int


class Generator(ABC):
    """Draws images. Sample i is a function of (weights, seed, i, its condition) alone, up to float rounding."""

    num_classes: int | None

    @abstractmethod
    def draw(
        self, indices: Sequence[int], condition: Condition | None, seed: int, on_step: OnStep = no_report
    ) -> Drawn:
        """Samples number `indices`, all at once.

        Args:
            condition: what each is asked to be, of length B, or None.
            on_step: called `num_steps` times.
        """

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Calls of `on_step` for one batch."""

    def trajectory(self, indices: Sequence[int], condition: Condition | None, seed: int) -> Iterator[Tensor]:
        """The states on the way to these samples, `num_steps` or more, each uint8 (B, C, H, W) on the CPU."""
        yield self.draw(indices, condition, seed).images

    def how(self) -> dict[str, Any]:
        """How it draws, for metrics.json."""
        return {}

    @property
    def needs_labels(self) -> bool:
        """Whether it cannot draw an image without a class."""
        return self.num_classes is not None

    def conditions_in_turn(self, indices: Sequence[int]) -> Condition | None:
        """Sample i is of class i mod K; None without classes."""
        K = self.num_classes
        return by_label(None if K is None else torch.tensor(list(indices), dtype=torch.long) % K)


class Likelihood(ABC):
    """Measures how probable images are."""

    exact: bool = False  # or a bound

    @abstractmethod
    def bits_per_dim(self, images: Tensor, condition: Condition | None, indices: range, seed: int) -> Tensor:
        """Of each image, (B,): lower is better.

        Args:
            images: uint8 (B, C, H, W), numbers `indices` of the data; image i meets the same noise in every call.
            condition: of length B, or None.
        """

    def check_likelihood(self, **options: Any) -> None:
        """Raises ValueError for options of `likelihoods` that this model does not have."""
        if options:
            raise ValueError(f"metrics.{next(iter(options))}: this model's likelihood has no such option; leave it out")

    def likelihood_steps(self, **options: Any) -> int:
        """Calls of `on_step` for one batch of `likelihoods`."""
        return 1

    def likelihoods(
        self,
        images: Tensor,
        condition: Condition | None,
        indices: range,
        seed: int,
        on_step: OnStep = no_report,
        **options: Any,
    ) -> dict[str, Tensor]:
        """All that can be said of these images, each (B,) in bits per dimension, by name."""
        found = {"exact" if self.exact else "bound": self.bits_per_dim(images, condition, indices, seed)}
        on_step()
        return found


class Editor(ABC):
    """Changes pictures that a person gives."""

    @abstractmethod
    def check_edit(self, editing: Any, num_pictures: int) -> None:
        """Raises ValueError where this model cannot edit so."""

    @abstractmethod
    def edit(
        self,
        editing: Any,
        pictures: Tensor,
        condition: Condition | None,
        mask: Tensor | None,
        seed: int,
        on_step: OnStep,
    ) -> dict[str, Tensor]:
        """Columns of a strip, from what was given to what came of it, each uint8 (B, C, H, W) on the CPU.

        Args:
            editing: an option of conf/edit.
            pictures: uint8 (B, C, H, W). condition: of length B, or None. mask: (H, W), 1 where to fill in, or None.
        """


class Predictor(ABC):
    """Predicts a target, such as a mask, from an image."""

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> targets (B, …)."""


class Training(NamedTuple):
    """What an objective may see of the run: its progress in [0, 1), and the model with its averaged weights."""

    progress: float
    averaged: Model


class Losses(NamedTuple):
    """values: the loss of each image, (B,), whose mean is minimized. drawn: what chance decided for each image, (B,) by
    name, which a message about one that is not finite tells."""

    values: Tensor
    drawn: Mapping[str, Tensor] = {}


class HeldOut(NamedTuple):
    """figures: of each held-out image, (B,) by name; "loss" is one, and all are logged as val/NAME. time, error: the
    share of a clock in (0, 1] at which each image was met, and its error there, for a family that has a clock."""

    figures: Mapping[str, Tensor]
    time: Tensor | None = None
    error: Tensor | None = None


class Teacher(Generic[AnyModel]):
    """A trained model that an objective learns from. As it is no part of the objective's modules, it is neither
    trained, averaged, nor saved with the run."""

    def __init__(self, model: AnyModel) -> None:
        self._model = model.requires_grad_(False).eval()

    def on(self, device: torch.device) -> AnyModel:
        """The model, on the device of the one that learns."""
        self._model.to(device)
        return self._model

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class Objective(nn.Module, ABC):
    """How a model learns. Its own parameters, if any, are trained with the model's, but neither averaged nor saved as a
    part of the model.

    figures: the names of what `held_out` measures, "loss" first.
    """

    figures: Sequence[str] = ("loss",)

    @abstractmethod
    def check(self, model: Any) -> None:
        """Raises ValueError for a model that cannot learn so."""

    @abstractmethod
    def loss(self, model: Any, batch: Batch, rng: BatchRNG, training: Training) -> Losses:
        """One draw of the loss of each image."""

    @abstractmethod
    def held_out(self, model: Any, batch: Batch, indices: range, seed: int) -> HeldOut:
        """What held-out images number `indices` lose: image i meets the same chance in every call."""

    def at_times(self, model: Any, times: Tensor) -> dict[str, list[float]]:
        """What else to report about these shares of the clock, by name."""
        return {}
