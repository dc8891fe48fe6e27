"""The denoiser, the only thing that a sampler, a guidance, a likelihood or a test sees: x̂_0 = D(x_t, t, c)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.diffusion.parameterization import Parameterization
from lightning_diffusion.diffusion.process import expand
from lightning_diffusion.diffusion.schedule import NoiseSchedule


class Denoiser(nn.Module, ABC):
    """D(x_t, t, c) -> x̂_0, the estimate of E[x_0 | x_t, c] under the schedule that it carries."""

    schedule: NoiseSchedule

    @property
    def no_class(self) -> int:
        """The label that stands for "no class"; only a denoiser that was trained with and without classes has one."""
        raise ValueError("guidance: this model was trained without classes; choose guidance=none or guidance=clip")

    @property
    def learns_variance(self) -> bool:
        """Whether `with_share` has an answer."""
        return False

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """x_t (B, C, H, W), t () or (B,), condition of length B or None -> x̂_0 (B, C, H, W), float32."""

    def of(self, items: Tensor) -> "Denoiser":
        """This denoiser for some items of the batch that it is meant for, (b,) of their numbers."""
        return self

    def with_share(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> tuple[Tensor, Tensor]:
        """x̂_0 and, from the same evaluation, the share v of β in the reverse step's variance, both (B, C, H, W)."""
        raise no_variance()


def no_variance() -> ValueError:
    """What to say where a learned variance is asked of a denoiser that has none."""
    return ValueError(
        "sampler.variance=learned: this model has learned no variance; train with backbone.outputs=2 and "
        "objective.vlb_weight=0.001, or choose sampler.variance=posterior"
    )


class Prediction(NamedTuple):
    """What a network says of (x_t, t): the output that its parameterization reads, and the share v, or None."""

    output: Tensor
    share: Tensor | None


class NetworkDenoiser(Denoiser):
    """A backbone F whose output, under a parameterization, stands for x̂_0.

    Args:
        backbone: network F(x_t, time, condition), with x_t (B, C, H, W) and time (B,). If its attribute `outputs` is 2,
            its output has 2C channels, and the second C say the reverse step's variance.
        schedule: α(t), σ(t).
        parameterization: what F predicts.
        label_dropout: share of conditions replaced by "none" while training, in [0, 1), so that one network learns
            the conditional and the unconditional estimate. Ref: Classifier-Free Diffusion Guidance Alg. 1

    Raises:
        ValueError: a parameterization that is singular on this schedule, a learned variance without a chain of steps,
            or a value out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        schedule: NoiseSchedule,
        parameterization: Parameterization,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        parameterization.check(schedule)
        if not 0 <= label_dropout < 1:
            raise ValueError(f"denoiser.label_dropout={label_dropout}: choose 0 <= label_dropout < 1 (0.1 is usual)")
        self.backbone = backbone
        self.schedule = schedule
        self.parameterization = parameterization
        self.label_dropout = label_dropout
        if self.learns_variance:
            schedule.chain("backbone.outputs=2", "backbone.outputs=1")

    @property
    def no_class(self) -> int:
        """One more than the last class."""
        num_classes = getattr(self.backbone, "num_classes", None)
        if num_classes is None:
            return super().no_class
        if self.label_dropout == 0:
            raise ValueError(
                "guidance: this model was trained with denoiser.label_dropout=0 and never saw an image without its "
                "class; train with denoiser.label_dropout=0.1, or choose guidance=none or guidance=clip"
            )
        return int(num_classes)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        return self.parameterization.to_x0(self.schedule, self.predict(x_t, t, condition).output, x_t, t)

    @property
    def learns_variance(self) -> bool:
        return getattr(self.backbone, "outputs", 1) == 2

    def with_share(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> tuple[Tensor, Tensor]:
        output, share = self.predict(x_t, t, condition)
        if share is None:
            return super().with_share(x_t, t, condition)
        return self.parameterization.to_x0(self.schedule, output, x_t, t), share

    def drop_condition(self, condition: Condition | None, draws: BatchRNG) -> Condition | None:
        """The condition as training shows it: for a share of the samples, label_dropout, none."""
        if condition is None or not self.training or self.label_dropout == 0:
            return condition
        none = condition.none(None if condition.label is None else self.no_class)
        return condition.dropped(draws.uniform(len(condition)) < self.label_dropout, none)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Prediction:
        """The network's own words, in the precision of x_t: a reduced one lives inside the network alone."""
        time = self.schedule.network_time(t).to(x_t).expand(len(x_t))
        scale = expand(self.parameterization.input_scale(self.schedule, t), x_t)
        output = self.backbone(scale * x_t, time, condition).to(x_t)
        if not self.learns_variance:
            return Prediction(output, None)
        output, raw = output.chunk(2, dim=1)
        return Prediction(output, (raw + 1) / 2)  # a network that starts at 0 starts halfway


Denoise = Callable[[Tensor, Tensor, Condition | None], Tensor]  # (x_t, t, condition) -> x̂_0


class DenoiserWrapper(Denoiser):
    """A denoiser around a denoiser, on the same schedule: a function of the estimates of the one inside."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    @abstractmethod
    def around(self, denoise: Denoise, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """x̂_0 (B, C, H, W) from calls of denoise(x_t, t, condition), the first of them on x_t or on a batch that begins
        with it."""

    @property
    def no_class(self) -> int:
        return self.denoiser.no_class

    @property
    def learns_variance(self) -> bool:
        return self.denoiser.learns_variance

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        return self.around(self.denoiser, x_t, t, condition)

    def with_share(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> tuple[Tensor, Tensor]:
        shares = []

        def denoise(x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
            x_0, share = self.denoiser.with_share(x_t, t, condition)
            shares.append(share)
            return x_0

        return self.around(denoise, x_t, t, condition), shares[0][: len(x_t)]


class Conditioned(DenoiserWrapper):
    """A denoiser with its condition filled in: D(·, ·, c)."""

    def __init__(self, denoiser: Denoiser, condition: Condition | None) -> None:
        super().__init__(denoiser)
        self.condition = condition

    def of(self, items: Tensor) -> "Conditioned":
        return Conditioned(self.denoiser, None if self.condition is None else self.condition[items])

    def around(self, denoise: Denoise, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        return denoise(x_t, t, self.condition)


class Counted(DenoiserWrapper):
    """A denoiser that counts its evaluations: `items` images so far, each guided one as often as it was evaluated."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self.items = 0

    def around(self, denoise: Denoise, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        self.items += len(x_t)
        return denoise(x_t, t, condition)


def to_eps(x_0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise that x̂_0 implies: ε̂ = (x_t − α x̂_0)/σ. Ref: DDPM Eq. 9"""
    return (x_t - expand(alpha, x_t) * x_0) / expand(sigma, x_t)
