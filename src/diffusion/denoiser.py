"""The denoiser, the only thing that a sampler, a guidance, a likelihood or a test sees: x̂_0 = D(x_t, t, c)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from src.diffusion.parameterization import Parameterization
from src.diffusion.process import expand
from src.diffusion.schedule import NoiseSchedule


class Denoiser(nn.Module, ABC):
    """D(x_t, t, c) -> x̂_0, the estimate of E[x_0 | x_t, c] under the schedule that it carries."""

    schedule: NoiseSchedule

    @property
    def no_class(self) -> int:
        """The label that stands for "no class"; only a denoiser that was trained with and without classes has one."""
        raise ValueError("guidance: this model was trained without classes; choose guidance=none or guidance=clip")

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x_t (B, C, H, W), t () or (B,), cond (B,) class labels or None -> x̂_0 (B, C, H, W), float32."""


class NetworkDenoiser(Denoiser):
    """A backbone F whose output, under a parameterization, stands for x̂_0.

    Args:
        backbone: network F(x_t, time, cond), with x_t (B, C, H, W) and time (B,).
        schedule: α(t), σ(t).
        parameterization: what F predicts.
        label_dropout: share of labels replaced by "no class" while training, in [0, 1), so that one network learns
            the conditional and the unconditional estimate. Ref: Classifier-Free Diffusion Guidance Alg. 1

    Raises:
        ValueError: a parameterization that is singular on this schedule, or a value out of range.
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

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.parameterization.to_x0(self.schedule, self.predict(x_t, t, cond), x_t, t)

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's own output, in float32: reduced precision lives inside the network alone."""
        if cond is not None and self.training and self.label_dropout > 0:
            dropped = torch.rand(len(cond), device=cond.device) < self.label_dropout
            cond = torch.where(dropped, self.no_class, cond)
        time = self.schedule.network_time(t).to(x_t.device, torch.float32).expand(len(x_t))
        scale = expand(self.parameterization.input_scale(self.schedule, t), x_t)
        return self.backbone(scale * x_t, time, cond).float()


class Conditioned(Denoiser):
    """A denoiser with its condition filled in: D(·, ·, c)."""

    def __init__(self, denoiser: Denoiser, cond: Tensor | None) -> None:
        super().__init__()
        self.denoiser, self.cond, self.schedule = denoiser, cond, denoiser.schedule

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.denoiser(x_t, t, self.cond)


def to_eps(x_0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise that x̂_0 implies: ε̂ = (x_t − α x̂_0)/σ. Ref: DDPM Eq. 9"""
    return (x_t - expand(alpha, x_t) * x_0) / expand(sigma, x_t)
