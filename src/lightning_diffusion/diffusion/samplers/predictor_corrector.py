"""Predictor–corrector sampling."""

from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser, to_eps
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.samplers.ddpm import ancestral
from lightning_diffusion.diffusion.time_grid import TimeGrid


class PredictorCorrector(Sampler):
    """An ancestral step, then Langevin steps at the new noise level:

        x ← x + δ g + √(2δ) z ,   g = −ε̂/σ (the score),   δ = 2 (r σ)²

    The paper's step size is δ = 2 (r ‖z‖/‖g‖)². Here ‖z‖ and ‖g‖ are replaced by their expected values √D and √D/σ: a
    size computed from the sample's own score is biased, and one computed from the batch couples its samples.

    Args:
        num_corrections: Langevin steps after each ancestral step, ≥ 0.
        target_snr: r > 0.

    Ref: score-SDE Alg. 3–5
    """

    stochastic = True

    def __init__(
        self, time_grid: TimeGrid, num_steps: int | None = 500, num_corrections: int = 1, target_snr: float = 0.16
    ) -> None:
        super().__init__(time_grid, num_steps)
        if num_corrections < 0 or target_snr <= 0:
            raise ValueError(
                f"sampler.num_corrections={num_corrections}, target_snr={target_snr}: "
                "choose num_corrections >= 0 and target_snr > 0"
            )
        self.num_corrections, self.target_snr = num_corrections, target_snr
        self.evaluations = 1 + num_corrections

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        x = ancestral(denoiser, x_t, t, s, noise)
        if s == 0:  # no noise level to correct at
            return x, None
        alpha, sigma = denoiser.schedule.alpha(s), denoiser.schedule.sigma(s)
        delta = 2 * (self.target_snr * sigma) ** 2
        for _ in range(self.num_corrections):
            score = -to_eps(denoiser(x, s), x, alpha, sigma) / sigma
            x = x + delta * score + (2 * delta).sqrt() * noise()
        return x, None
