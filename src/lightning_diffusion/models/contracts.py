"""The contracts of models. Trainer, callbacks, programs, metrics and report use only these and name no family.

A family is a `Model`, which can also be a `Generator`, a `Likelihood`, an `Editor` or a `Predictor`, and an `Objective`
that trains it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition, by_label
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.data.conditions import ConditionSource
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.diffusion.noise import BatchRNG

GRAPHS: Final = "reduce-overhead"  # torch.compile's mode for CUDA graphs
Compile = bool | Literal["reduce-overhead"]
OnStep = Callable[[], None]
AnyModel = TypeVar("AnyModel", bound="Model")


def no_report() -> None:
    """Ignore the steps: the default for `on_step`."""


class Model(nn.Module, ABC):
    """The module that is trained, averaged and saved. Its state dict is the model.

    shape: (C, H, W) of an image. num_classes: K, or None without classes. condition_source: makes its conditions
    from a data set, or None.
    """

    shape: tuple[int, int, int]
    num_classes: int | None
    condition_source: ConditionSource | None = None

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network that takes most of the time. Only this part is compiled, converted to bfloat16 and sharded."""

    @property
    def shared(self) -> Sequence[object]:
        """Parts without weights, which copies of the model share."""
        return ()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Number of weights, without those of the objective."""
        return sum(p.numel() for p in self.parameters())

    def example(self, count: int, device: str) -> Sequence[Tensor | Condition | None] | None:
        """Inputs of `network` for `count` images on a device, to measure its cost; None if it cannot be measured."""
        return None

    parts: Sequence[str] = ()  # names that `with_parts` accepts

    def with_parts(self, **parts: Any) -> Self:
        """A model with the same weights and other parts, such as another sampler.

        Raises:
            ValueError: parts that do not fit this model.
        """
        if parts:
            raise ValueError(f"{next(iter(parts))}: this model has no such part; leave it out")
        return self

    def check(self) -> None:
        """Raise ValueError if parts that are valid individually do not fit together."""

    def describe(self, options: Mapping[str, str]) -> dict[str, str]:
        """Lines about the model for the start of a run, by title.

        Args:
            options: the chosen option of each group: {"schedule": "cosine"}.
        """
        return {}

    def facts(self) -> dict[str, Any]:
        """Properties of the model for metrics.json, in addition to the measured figures."""
        return {}

    def pictures_of(self, images: Tensor, condition: Condition | None) -> dict[str, Tensor]:
        """Pictures that the model makes of given images, such as reconstructions, by name.

        At the end of a run, samples/NAME.png shows held-out images, each above its picture.

        Args:
            images: uint8 (B, C, H, W). condition: of length B, or None.

        Returns:
            uint8 (B, C, H, W) each; empty by default.
        """
        return {}

    def compile_network(self, how: Compile) -> None:
        """Compile the network in place, which keeps weights and their names.

        With "reduce-overhead" a GPU replays the network's kernels as one graph. Launching them one by one often takes
        longer than their execution.
        """
        if how:
            self.network.compile(mode=how if isinstance(how, str) else None)


class Drawn(NamedTuple):
    """images: uint8 (B, C, H, W) on the CPU. cost: network evaluations, summed over the images."""

    images: Tensor
    cost: int


class Generator(ABC):
    """A model that draws images. Sample i depends only on (weights, seed, i, its condition), up to float rounding."""

    num_classes: int | None
    condition_source: ConditionSource | None = None  # see `Model`

    @abstractmethod
    def draw(
        self, indices: Sequence[int], condition: Condition | None, seed: int, on_step: OnStep = no_report
    ) -> Drawn:
        """Draw the samples with numbers `indices` as one batch.

        Args:
            condition: of length B, or None.
            on_step: called `num_steps` times.
        """

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Number of calls of `on_step` per batch."""

    def trajectory(self, indices: Sequence[int], condition: Condition | None, seed: int) -> Iterator[Tensor]:
        """The states that lead to these samples, at least `num_steps`, each uint8 (B, C, H, W) on the CPU."""
        yield self.draw(indices, condition, seed).images

    def how(self) -> dict[str, Any]:
        """The sampling method, for metrics.json."""
        return {}

    @property
    def needs_labels(self) -> bool:
        """Whether it can only draw images of a given class."""
        return self.num_classes is not None

    @property
    def needs_part(self) -> str | None:
        """The part of a condition from a data set without which it cannot draw; None if there is no such part."""
        return None if self.condition_source is None else self.condition_source.part

    def conditions_in_turn(self, indices: Sequence[int], held_out: ImageDataset | None = None) -> Condition | None:
        """The condition of held-out image i mod N for sample i, if a data set makes it; else class i mod K, or None.

        Args:
            held_out: N images with their conditions; needed only by a model with a `condition_source`.
        """
        numbers, K = torch.tensor(list(indices), dtype=torch.long), self.num_classes
        if self.condition_source is None:
            return by_label(None if K is None else numbers % K)
        if held_out is None:
            raise ValueError("data: missing; the conditions of this model come from a data set, give data=NAME")
        return held_out.sample(numbers % len(held_out)).condition(K)


class Likelihood(ABC):
    """A model that measures how probable images are."""

    exact: bool = False  # whether `bits_per_dim` is exact, not a bound

    @property
    def kind(self) -> Literal["exact", "bound"]:
        return "exact" if self.exact else "bound"

    @abstractmethod
    def bits_per_dim(self, images: Tensor, condition: Condition | None, indices: range, seed: int) -> Tensor:
        """Bits per dimension of each image, (B,); lower is better.

        Args:
            images: uint8 (B, C, H, W), numbers `indices` of the data. The noise of image i is the same in every call.
            condition: of length B, or None.
        """

    def check_likelihood(self, **options: Any) -> None:
        """Raise ValueError for options of `likelihoods` that this model does not have."""
        if options:
            raise ValueError(f"metrics.{next(iter(options))}: this model's likelihood has no such option; leave it out")

    def likelihood_steps(self, **options: Any) -> int:
        """Number of calls of `on_step` per call of `likelihoods`."""
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
        """All likelihood figures of these images by name, each (B,) in bits per dimension."""
        bits = self.bits_per_dim(images, condition, indices, seed)
        on_step()
        return {self.kind: bits}


class Editor(ABC):
    """A model that edits given pictures."""

    @abstractmethod
    def check_edit(self, editing: Any, num_pictures: int) -> None:
        """Raise ValueError if this model does not support the edit."""

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
        """The columns of a strip, from inputs to results, each uint8 (B, C, H, W) on the CPU.

        Args:
            editing: an option of conf/edit.
            pictures: uint8 (B, C, H, W). condition: of length B, or None. mask: (H, W), 1 where to fill in, or None.
        """


class Instances(NamedTuple):
    """The instances in B images, such as the items of a scene.

    numbers: the instance of each pixel, uint8 (B, H, W); 0 is none. classes: class of instance i + 1 of an image, int64
    (B, M), or 0 if there is no such instance. scores: how certain each is, (B, M), from 0 to 1.
    """

    numbers: Tensor
    classes: Tensor
    scores: Tensor


class Predictor(ABC):
    """A model that predicts targets, such as masks, from images.

    mask_classes: K, if its targets are masks; these are scored, and shown at the end of a run. None otherwise.
    has_instances: whether it also separates the instances of a class; they are scored and shown in the same way.
    """

    mask_classes: int | None = None
    has_instances: bool = False

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> targets (B, …); masks are uint8 (B, H, W) of class numbers 0 … K − 1."""

    def instances(self, images: Tensor) -> Instances:
        """The instances in images uint8 (B, C, H, W), if the model has them."""
        raise NotImplementedError


class Training(NamedTuple):
    """The state of a run for its objective: progress in [0, 1), and the model with averaged weights."""

    progress: float
    averaged: Model


class Losses(NamedTuple):
    """values: the loss of each image, (B,), whose mean is minimized. drawn: random quantities of each image, (B,) by
    name, which the error message for a non-finite loss includes. figures: other quantities of the batch by name,
    detached (B,), whose means are logged as train/NAME."""

    values: Tensor
    drawn: Mapping[str, Tensor] = {}
    figures: Mapping[str, Tensor] = {}


class HeldOut(NamedTuple):
    """figures: measurements of each held-out image, (B,) by name, including "loss"; logged as val/NAME. time, error:
    for a family with a clock, the time in (0, 1] at which each image was evaluated, and its error there."""

    figures: Mapping[str, Tensor]
    time: Tensor | None = None
    error: Tensor | None = None


class Teacher(Generic[AnyModel]):
    """A trained model that an objective learns from. It is not a submodule of the objective, so it is not trained,
    averaged or saved with the run."""

    def __init__(self, model: AnyModel) -> None:
        self._model = model.requires_grad_(False).eval()

    def on(self, device: torch.device) -> AnyModel:
        """The model, moved to the device."""
        self._model.to(device)
        return self._model

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class Objective(nn.Module, ABC):
    """A training objective. Its own parameters, if any, are trained with those of the model, but neither averaged nor
    saved as part of the model.

    figures: names of the figures of `held_out`, "loss" first. needs_masks: whether it needs batches with masks.
    """

    figures: Sequence[str] = ("loss",)
    needs_masks: bool = False

    @abstractmethod
    def check(self, model: Any) -> None:
        """Raise ValueError for a model that this objective cannot train."""

    @abstractmethod
    def loss(self, model: Any, batch: Batch, rng: BatchRNG, training: Training) -> Losses:
        """A random draw of the loss of each image."""

    @abstractmethod
    def held_out(self, model: Any, batch: Batch, indices: range, seed: int) -> HeldOut:
        """Figures of the held-out images `indices`. The randomness of image i is the same in every call."""

    def at_times(self, model: Any, times: Tensor) -> dict[str, list[float]]:
        """Additional quantities to report at these times in (0, 1], by name."""
        return {}
