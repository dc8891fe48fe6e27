"""Linear multistep methods on the probability flow."""

import torch
from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser, to_eps
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.samplers.dpm_solver import single_step
from lightning_diffusion.diffusion.samplers.euler import slope_weight
from lightning_diffusion.diffusion.time_grid import TimeGrid

State = list[tuple[Tensor, Tensor]]  # (σ/α, ε̂) of the last steps, newest first


class AdamsBashforth(Sampler):
    """Integrates d(x/α)/d(σ/α) = ε̂ with the polynomial through the last values of ε̂; one evaluation per step.

    For equal steps in σ/α the weights are the classical (55, −59, 37, −9)/24 of PLMS. Here they are computed from the
    actual steps, so the order holds on any time grid.

    Starting with Euler steps would leave a second-order error. Order 3 therefore starts with one step of
    DPM-Solver++(2S), which costs one extra evaluation. Order 4 starts with two steps of (3S), which cost two extra
    evaluations each.

    Args:
        order: 1 … 4.

    Ref: PLMS §3.2 (pseudo numerical methods), with variable steps
    """

    def __init__(self, time_grid: TimeGrid, num_steps: int | None = 20, order: int = 4) -> None:
        super().__init__(time_grid, num_steps)
        if order not in (1, 2, 3, 4):
            raise ValueError(f"sampler.order={order}: choose 1, 2, 3 or 4")
        self.order, self.start_evaluations = order, {3: 1, 4: 4}.get(order, 0)

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: State | None
    ) -> tuple[Tensor, State]:
        schedule = denoiser.schedule
        alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
        x_0 = denoiser(x_t, t)
        eps = to_eps(x_0, x_t, alpha_t, schedule.sigma(t))
        if alpha_t == 0:  # σ/α is infinite: an Euler step, and no slope is stored
            return alpha_s * x_0 + schedule.sigma(s) * eps, []
        slopes = [(schedule.sigma(t) / alpha_t, eps), *(state or [])][: self.order]
        if len(slopes) < self.order - 1:
            return single_step(denoiser, x_t, x_0, t, s, self.order - 1), slopes
        weights = extrapolation_weights([level for level, _ in slopes], schedule.sigma(s) / alpha_s)
        total = sum(weight * slope for weight, (_, slope) in zip(weights, slopes, strict=True))
        return alpha_s / alpha_t * x_t + slope_weight(schedule, t, s) * total, slopes


def extrapolation_weights(nodes: list[Tensor], end: Tensor) -> list[Tensor]:
    """Return the mean of each Lagrange polynomial of the nodes over [nodes[0], end]. The means sum to 1.

    Solves Σ_j w_j u_jᵏ = 1/(k + 1), k = 0 … n − 1, at u_j = (node_j − node_0)/(end − node_0).
    """
    u = torch.stack([(node - nodes[0]) / (end - nodes[0]) for node in nodes])
    powers = torch.arange(len(nodes), dtype=u.dtype)
    return list(torch.linalg.solve(u[None, :] ** powers[:, None], 1 / (powers + 1)))
