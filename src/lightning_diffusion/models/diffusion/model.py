"""The family of diffusion models: a denoiser with a sampler and a guidance."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize, height_width
from lightning_diffusion.codecs.pixels import Codec, Pixels
from lightning_diffusion.data.conditions import ConditionSource
from lightning_diffusion.diffusion.continuous_bound import continuous_bound, span
from lightning_diffusion.diffusion.denoiser import Counted, Denoiser, NetworkDenoiser
from lightning_diffusion.diffusion.editing.base import Editing, EditInputs
from lightning_diffusion.diffusion.guidance import Clip
from lightning_diffusion.diffusion.noise import IndexedNoise, spread
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.time_grid import Trailing
from lightning_diffusion.models.contracts import Drawn, Editor, Generator, Likelihood, Model, OnStep, no_report
from lightning_diffusion.models.diffusion.likelihood import FlowAndBound
from lightning_diffusion.networks.summary import Inputs, noisy_images

Guidance = Callable[[Denoiser], Denoiser]
TAKEN = {"condition_channels": "channels", "num_attributes": "num_attributes", "num_words": "num_words"}


class DiffusionModel(Model, Generator, Likelihood, Editor):
    """A denoiser with a sampler, a guidance and a codec.

    Args:
        denoiser: holds the weights.
        channels, num_classes: of the images.
        image_size: n for squares, or [H, W].
        sampler: of the reverse process; None means DDIM with 50 steps.
        guidance: denoiser -> denoiser; None means clipping x̂_0 to [−1, 1].
        condition: makes the conditions from a data set; None means that there are none but labels.
        codec: converts between images and the denoiser's space; None means pixels.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        channels: int,
        image_size: ImageSize,
        num_classes: int | None = None,
        sampler: Sampler | None = None,
        guidance: Callable[..., Denoiser] | None = None,
        codec: Codec | None = None,
        condition: ConditionSource | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.shape = denoiser, (channels, *height_width(image_size))
        self.num_classes, self.condition_source = num_classes, condition
        self.sampler: Sampler = DDIM(Trailing(), 50) if sampler is None else sampler
        self.guidance: Guidance = Clip if guidance is None else guidance
        self.codec = codec or Pixels()

    @property
    def network(self) -> nn.Module:
        return self.denoiser.backbone

    def example(self, count: int, device: str) -> Inputs:
        source, shape = self.condition_source, self.codec.shape(self.shape)
        given = (0, 0, False) if source is None else (source.channels, source.num_attributes, source.num_words > 0)
        return noisy_images(shape, self.num_classes, *given)(count, device)

    @property
    def shared(self) -> Sequence[object]:
        return self.sampler, self.guidance, self.codec, self.condition_source

    parts = ("sampler", "guidance")

    def with_parts(self, **parts: Any) -> Self:
        other = copy.copy(self)
        other.sampler, other.guidance = parts.get("sampler", self.sampler), parts.get("guidance", self.guidance)
        if not isinstance(other.sampler, Sampler) or not callable(other.guidance):
            raise ValueError("sampler, guidance: give a Sampler, and a function of a denoiser")
        return other

    @property
    def needs_labels(self) -> bool:
        return self.num_classes is not None and self.denoiser.dropout["label"] == 0

    @property
    def needs_part(self) -> str | None:
        part = super().needs_part
        return None if part is None or self.denoiser.dropout[part] > 0 else part

    def check(self) -> None:
        """Raise ValueError if the guidance, the sampler or the condition does not fit the denoiser."""
        for key, ours in TAKEN.items():
            given = 0 if self.condition_source is None else getattr(self.condition_source, ours)
            if (taken := getattr(self.network, key, 0)) != given:
                raise ValueError(
                    f"condition, backbone.{key}={taken}: the condition has {given}; choose a network of this "
                    f"project and leave out backbone.{key}"
                )
        self.sampler.check(self.guidance(self.denoiser))

    def describe(self, options: Mapping[str, str]) -> dict[str, str]:
        schedule = self.denoiser.schedule
        name = options.get("schedule", type(schedule).__name__)
        predicts = type(self.denoiser.parameterization).__name__.lower()
        ends = f"T = {schedule.T:g}, terminal SNR {schedule.terminal_snr():.1e}"
        return {"process": f"{name} schedule, {ends}, predicts {predicts}"}

    def facts(self) -> dict[str, Any]:
        bound = span(self.denoiser.schedule)
        return {
            "bound": {**bound._asdict(), "whole": bound.whole},
            "terminal_snr": self.denoiser.schedule.terminal_snr(),
        }

    def how(self) -> dict[str, Any]:
        return {"sampler": type(self.sampler).__name__}

    @property
    def num_steps(self) -> int:
        return len(self.sampler.times(self.denoiser.schedule))

    def draw(
        self, indices: Sequence[int], condition: Condition | None, seed: int, on_step: OnStep = no_report
    ) -> Drawn:
        counted, device = Counted(self.denoiser), self.device
        guided = self.guidance(counted).to(device)  # a guidance can contain a network
        shape = self.codec.shape(self.shape)
        condition = self.noised(condition, indices, seed)
        code = self.sampler.sample(guided, indices, shape, seed, condition, len(indices), device, on_step)
        return Drawn(self.codec.decode(code), counted.items)

    def noised(self, condition: Condition | None, indices: Sequence[int], seed: int) -> Condition | None:
        """The condition with noise of the source's level on its image, the same for item i in every call."""
        level = 0.0 if self.condition_source is None else self.condition_source.noise
        if condition is None or condition.image is None or level == 0:
            return condition
        shape, device = condition.image[0, :-1].shape, condition.image.device
        eps = IndexedNoise(seed, indices, shape, device, stream="condition")()
        return condition.noised(torch.full((len(condition),), level, device=device), eps)

    @torch.inference_mode()
    def trajectory(self, indices: Sequence[int], condition: Condition | None, seed: int) -> Iterator[Tensor]:
        device = self.device
        noise = IndexedNoise(seed, indices, self.codec.shape(self.shape), device)
        condition = self.noised(None if condition is None else condition.to(device), indices, seed)
        for x in self.sampler.walk(self.guidance(self.denoiser).to(device), noise, condition):
            yield self.codec.decode(x).cpu()

    def check_edit(self, editing: Editing, num_pictures: int) -> None:
        editing.check(self.sampler, num_pictures)

    @torch.inference_mode()
    def edit(
        self,
        editing: Editing,
        pictures: Tensor,
        condition: Condition | None,
        mask: Tensor | None,
        seed: int,
        on_step: OnStep,
    ) -> dict[str, Tensor]:
        x_0 = self.codec.encode(pictures.to(self.device))
        condition = None if condition is None else condition.to(self.device)
        condition = self.noised(condition, range(len(pictures)), seed)
        mask = None if mask is None else mask.to(self.device)
        noise = IndexedNoise(seed, range(len(x_0)), x_0.shape[1:], self.device)
        guided = self.guidance(self.denoiser).to(self.device)
        columns = editing(guided, self.sampler, EditInputs(x_0, condition, mask, noise), on_step)
        return {name: self.codec.decode(x).cpu() for name, x in columns.items()}

    def bits_per_dim(self, images: Tensor, condition: Condition | None, indices: range, seed: int) -> Tensor:
        """The continuous-time bound, which is comparable between schedules and predictions."""
        x_0 = self.codec.encode(images)
        noise = IndexedNoise(seed, indices, x_0.shape[1:], x_0.device, stream="bound")
        condition = self.noised(condition, indices, seed)
        return continuous_bound(Clip(self.denoiser), x_0, noise, spread(indices), condition).total

    def check_likelihood(self, **options: Any) -> None:
        FlowAndBound(**options).check(self.denoiser)

    def likelihood_steps(self, **options: Any) -> int:
        return FlowAndBound(**options).steps(self.denoiser)

    def likelihoods(
        self,
        images: Tensor,
        condition: Condition | None,
        indices: range,
        seed: int,
        on_step: OnStep = no_report,
        **options: Any,
    ) -> dict[str, Tensor]:
        condition = self.noised(condition, indices, seed)
        return FlowAndBound(**options)(self.denoiser, self.codec.encode(images), condition, indices, seed, on_step)
