"""The training loss: how far the network's output is from its target at a random time."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from src.diffusion.denoiser import NetworkDenoiser
from src.diffusion.noise import IndexedNoise
from src.diffusion.process import marginal
from src.diffusion.time_sampler import TimeSampler
from src.diffusion.weighting import Weighting

GOLDEN_RATIO = (5**0.5 - 1) / 2
Distance = Literal["squared", "absolute", "huber"]


class Objective:
    """L = E_{t, x_0, ε} w(t) ‖F(α_t x_0 + σ_t ε, t) − target(x_0, ε)‖², a mean over pixels and batch.

    With uniform times, simple weighting and ε-prediction this is L_simple. Ref: DDPM Eq. 14, Alg. 1

    Args:
        time_sampler: the distribution of t.
        weighting: w(t).
        distance: "squared" error, "absolute", or "huber" (quadratic up to 1, ½ at 1, then linear).
    """

    def __init__(
        self,
        time_sampler: TimeSampler,
        weighting: Weighting,
        distance: Distance = "squared",
    ) -> None:
        self.time_sampler, self.weighting, self.distance = time_sampler, weighting, distance

    def __call__(self, denoiser: NetworkDenoiser, x_0: Tensor, cond: Tensor | None = None) -> Tensor:
        """One draw of the loss for a batch x_0 (B, C, H, W) in [−1, 1] with labels cond (B,) or None -> ()."""
        t = self.time_sampler(len(x_0), denoiser.schedule, x_0.device)
        losses = self.at(denoiser, x_0, torch.randn_like(x_0), t, cond)
        return (self.weighting.of_output(denoiser.schedule, denoiser.parameterization, t) * losses).mean()

    def on_fixed_noise(
        self,
        denoiser: NetworkDenoiser,
        x_0: Tensor,
        indices: Sequence[int],
        seed: int,
        cond: Tensor | None = None,
    ) -> Tensor:
        """The unweighted loss of each item, (B,), at its own ε and t: item i meets the same ones in every call.

        Times are spread evenly over the clock for any set of consecutive items (the golden ratio's multiples, mod 1),
        whatever times the training prefers, so that losses compare between epochs, runs and time samplers.
        """
        eps = IndexedNoise(seed, indices, x_0.shape[1:], x_0.device, stream="validation")()
        u = torch.tensor([i * GOLDEN_RATIO % 1 for i in indices], device=x_0.device)
        return self.at(denoiser, x_0, eps, denoiser.schedule.quantile(u), cond)

    def at(self, denoiser: NetworkDenoiser, x_0: Tensor, eps: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The unweighted loss of each item at given ε (B, C, H, W) and t (B,) -> (B,)."""
        schedule = denoiser.schedule
        output = denoiser.predict(marginal(x_0, eps, schedule.alpha(t), schedule.sigma(t)), t, cond)
        target = denoiser.parameterization.target(schedule, x_0, eps, t)
        return self._error(output, target).flatten(1).mean(dim=1)

    def _error(self, output: Tensor, target: Tensor) -> Tensor:
        if self.distance == "squared":
            return (output - target).square()
        if self.distance == "absolute":
            return (output - target).abs()
        return F.huber_loss(output, target, reduction="none")
