"""The denoiser x̂_0 = D(x_t, t, c): the only interface of samplers, guidance and likelihoods to a network."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.diffusion.parameterization import Parameterization
from lightning_diffusion.diffusion.process import expand
from lightning_diffusion.diffusion.schedule import NoiseSchedule


class Denoiser(nn.Module, ABC):
    """An estimate x̂_0 = D(x_t, t, c) of E[x_0 | x_t, c] under its schedule."""

    schedule: NoiseSchedule

    @property
    def no_class(self) -> int:
        """The label for "no class"; only a denoiser that was trained with and without classes has one."""
        raise ValueError("guidance: this model was trained without classes; choose guidance=none or guidance=clip")

    @property
    def condition_parts(self) -> Sequence[str]:
        """The parts of a condition that it takes."""
        return ("label",)

    def check_none(self, part: str) -> None:
        """Raise ValueError if it was not trained without this part of a condition too."""
        if part == "label":
            _ = self.no_class

    @property
    def learns_variance(self) -> bool:
        """Whether it was trained to predict the variance of the reverse step, which `with_share` returns."""
        return False

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """x_t (B, C, H, W), t () or (B,), condition of length B or None -> x̂_0 (B, C, H, W), float32."""

    def of(self, items: Tensor) -> "Denoiser":
        """The denoiser for a part of its batch, given the indices of the items, (b,)."""
        return self

    def with_share(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> tuple[Tensor, Tensor]:
        """x̂_0 and, by the same evaluation, the share v of log β in the reverse step's log-variance, (B, C, H, W)."""
        raise no_variance()


def no_variance() -> ValueError:
    """The error for a request of a learned variance from a denoiser without one."""
    return ValueError(
        "sampler.variance=learned: this model was not trained with learned variance; train with backbone.outputs=2 and "
        "objective.vlb_weight=0.001, or choose sampler.variance=posterior"
    )


class Prediction(NamedTuple):
    """The network's output at (x_t, t), which a parameterization interprets, and the share v or None."""

    output: Tensor
    share: Tensor | None


class NetworkDenoiser(Denoiser):
    """A backbone F whose output a parameterization converts to x̂_0.

    Args:
        backbone: network F(x_t, time, condition), with x_t (B, C, H, W) and time (B,). If its attribute `outputs` is 2,
            its output has 2C channels, and the last C determine the variance of the reverse step.
        schedule: α(t), σ(t).
        parameterization: what F predicts.
        label_dropout: fraction in [0, 1) of the labels that training replaces by "none", so that one network learns
            both the conditional and the unconditional estimate. Ref: Classifier-Free Diffusion Guidance Alg. 1
        image_dropout, attributes_dropout, tokens_dropout: the same for the other parts of a condition. Each part is
            dropped independently.

    Raises:
        ValueError: a parameterization that is singular on this schedule, a learned variance on a continuous schedule,
            or a value out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        schedule: NoiseSchedule,
        parameterization: Parameterization,
        label_dropout: float = 0.0,
        image_dropout: float = 0.0,
        attributes_dropout: float = 0.0,
        tokens_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        parameterization.check(schedule)
        self.dropout = {
            "label": label_dropout, "image": image_dropout, "attributes": attributes_dropout, "tokens": tokens_dropout,
        }  # fmt: skip
        for part, share in self.dropout.items():
            if not 0 <= share < 1:
                raise ValueError(f"denoiser.{part}_dropout={share}: choose 0 <= {part}_dropout < 1 (0.1 is usual)")
        self.backbone = backbone
        self.schedule = schedule
        self.parameterization = parameterization
        if self.learns_variance:
            schedule.chain("backbone.outputs=2", "backbone.outputs=1")

    @property
    def no_class(self) -> int:
        """The number of classes, one more than the last label."""
        num_classes = getattr(self.backbone, "num_classes", None)
        if num_classes is None:
            return super().no_class
        if self.dropout["label"] == 0:
            raise ValueError(
                "guidance: this model was trained with denoiser.label_dropout=0 and never saw an image without its "
                "class; train with denoiser.label_dropout=0.1, or choose guidance=none or guidance=clip"
            )
        return int(num_classes)

    @property
    def condition_parts(self) -> Sequence[str]:
        taken = {
            "label": getattr(self.backbone, "num_classes", None) is not None,
            "image": getattr(self.backbone, "condition_channels", 0) > 0,
            "attributes": getattr(self.backbone, "num_attributes", 0) > 0,
            "tokens": getattr(self.backbone, "num_words", 0) > 0,
        }
        return [name for name, takes in taken.items() if takes]

    def check_none(self, part: str) -> None:
        super().check_none(part)
        if part != "label" and self.dropout[part] == 0:
            raise ValueError(
                f"guidance: this model was trained with denoiser.{part}_dropout=0 and never saw an image without its "
                f"condition's {part}; train with denoiser.{part}_dropout=0.1, or choose guidance=none or guidance=clip"
            )

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
        """While training, the condition with the fractions `dropout` of its parts replaced by "none", independently."""
        if condition is None or not self.training:
            return condition
        for part, share in self.dropout.items():
            if share > 0 and part in condition.parts:
                dropped = draws.uniform(len(condition)) < share
                no_class = self.no_class if part == "label" else None
                condition = condition.without(part, no_class=no_class, where=dropped)
        return condition

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Prediction:
        """The network's prediction in the dtype of x_t; only the network itself uses reduced precision."""
        time = self.schedule.network_time(t).to(x_t).expand(len(x_t))
        scale = expand(self.parameterization.input_scale(self.schedule, t), x_t)
        output = self.backbone(scale * x_t, time, condition).to(x_t)
        if not self.learns_variance:
            return Prediction(output, None)
        output, raw = output.chunk(2, dim=1)
        return Prediction(output, (raw + 1) / 2)  # an initial output of 0 means halfway


Denoise = Callable[[Tensor, Tensor, Condition | None], Tensor]  # (x_t, t, condition) -> x̂_0


class DenoiserWrapper(Denoiser):
    """A denoiser that computes its estimate from those of an inner denoiser, on the same schedule."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    @abstractmethod
    def around(self, denoise: Denoise, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """x̂_0 (B, C, H, W), computed by calls of denoise(x_t, t, condition).

        The first call must be on x_t, or on a batch that begins with x_t.
        """

    @property
    def no_class(self) -> int:
        return self.denoiser.no_class

    @property
    def condition_parts(self) -> Sequence[str]:
        return self.denoiser.condition_parts

    def check_none(self, part: str) -> None:
        self.denoiser.check_none(part)

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
    """A denoiser with a fixed condition: D(·, ·, c)."""

    def __init__(self, denoiser: Denoiser, condition: Condition | None) -> None:
        super().__init__(denoiser)
        self.condition = condition

    def of(self, items: Tensor) -> "Conditioned":
        return Conditioned(self.denoiser, None if self.condition is None else self.condition[items])

    def around(self, denoise: Denoise, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        return denoise(x_t, t, self.condition)


class Counted(DenoiserWrapper):
    """A denoiser that counts the images it evaluates, in `items`; guidance can evaluate an image more than once."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        self.items = 0

    def around(self, denoise: Denoise, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        self.items += len(x_t)
        return denoise(x_t, t, condition)


def to_eps(x_0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise that x̂_0 implies, ε̂ = (x_t − α x̂_0)/σ. Ref: DDPM Eq. 9"""
    return (x_t - expand(alpha, x_t) * x_0) / expand(sigma, x_t)
