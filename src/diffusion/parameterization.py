"""What the network predicts: a target made of (x_0, ε), and the way back from a prediction to x_0."""

from abc import ABC, abstractmethod

from torch import Tensor

from src.diffusion.process import expand
from src.diffusion.schedule import NoiseSchedule


class Parameterization(ABC):
    """A prediction and its inverse. x_0, eps, x_t, output: (B, C, H, W); alpha, sigma: (B,) or ()."""

    @abstractmethod
    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What a perfect network outputs at x_t = α x_0 + σ ε."""

    @abstractmethod
    def to_x0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The estimate x̂_0 that an output at x_t stands for."""

    def check(self, schedule: NoiseSchedule) -> None:  # noqa: B027 - most predictions suit every schedule
        """Raises ValueError where the way back to x_0 is singular on this schedule."""


class Eps(Parameterization):
    """ε-prediction: x̂_0 = (x_t − σ ε̂)/α. Ref: DDPM Eqs. 11, 15"""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps

    def to_x0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - expand(sigma, x_t) * output) / expand(alpha, x_t)

    def check(self, schedule: NoiseSchedule) -> None:
        if schedule.terminal_snr() == 0:
            raise ValueError(
                "parameterization=eps and schedule: the schedule ends without signal, where ε tells nothing of x_0; "
                "choose parameterization=v or parameterization=x0"
            )


class X0(Parameterization):
    """x_0-prediction. Ref: DDPM §3.2"""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x_0

    def to_x0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output


class V(Parameterization):
    """v = α ε − σ x_0, so that x̂_0 = (α x_t − σ v̂)/(α² + σ²). Ref: Progressive Distillation, App. D"""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return expand(alpha, x_0) * eps - expand(sigma, x_0) * x_0

    def to_x0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        norm = alpha**2 + sigma**2
        return expand(alpha / norm, x_t) * x_t - expand(sigma / norm, x_t) * output
