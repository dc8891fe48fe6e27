"""An adaptive solver of the probability flow."""

import torch
from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.probability_flow import transport
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.time_grid import TimeGrid


class ODE(Sampler):
    """Dormand–Prince 5(4) along the flow. Each sample takes as many evaluations as the tolerance requires.

    The solver ends at the schedule's first time, t_min. The sample is x̂_0 there.

    Args:
        num_steps: segments of the flow; `walk` yields the state at the end of each.
        tolerance: of the local error, ≥ 1e-6.

    Raises:
        ValueError: a tolerance below the resolution of float32.

    Ref: score-SDE §4.3
    """

    order = 5
    adaptive = True

    def __init__(self, time_grid: TimeGrid, num_steps: int | None = 5, tolerance: float = 1e-4) -> None:
        super().__init__(time_grid, num_steps)
        if tolerance < 1e-6:
            raise ValueError(
                f"sampler.tolerance={tolerance}: choose tolerance >= 1e-6, the least that float32 resolves"
            )
        self.tolerance = tolerance

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        first = torch.full_like(t, denoiser.schedule.t_min)
        until = torch.maximum(s, first)
        if until < t:
            x_t = transport(denoiser, x_t, t, until, self.tolerance)
        return (denoiser(x_t, torch.minimum(first, t)) if s == 0 else x_t), None
