"""Exact denoisers of data whose distribution is known: the ground truth of the tests."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.schedule import NoiseSchedule


class Exact(Denoiser):
    """The posterior mean E[x_0 | x_t] and the log-density log p(x_t) of known data, for any schedule.

    Images are treated as vectors of D = C·H·W numbers. t is one time for the batch, (), or one per item, (B,).
    """

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        return self._posterior_mean(x_t.flatten(1), *self._scales(x_t, t)).reshape(x_t.shape)

    def log_density(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(x_t) in nats, (B,)."""
        return self._log_density(x_t.flatten(1), *self._scales(x_t, t))

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """∇ log p(x_t) = (α E[x_0 | x_t] − x_t)/σ². Ref: Tweedie's formula; DPS Eq. 10"""
        shape = (-1, *[1] * (x_t.ndim - 1))
        alpha, sigma = (scale.reshape(shape) for scale in self._scales(x_t, t))
        return (alpha * self(x_t, t) - x_t) / sigma**2

    def _scales(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and σ as columns, (1 or B, 1)."""
        return tuple(scale.to(x_t.dtype).reshape(-1, 1) for scale in (self.schedule.alpha(t), self.schedule.sigma(t)))  # type: ignore[return-value]

    @abstractmethod
    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x (B, D) -> (B, D)."""

    @abstractmethod
    def _log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x (B, D) -> (B,)."""


class GaussianMixture(Exact):
    """x_0 ~ Σ_k w_k N(m_k, C_k), so that x_t ~ Σ_k w_k N(α m_k, S_k), S_k = α² C_k + σ² I, and

        E[x_0 | x_t] = Σ_k r_k (m_k + α C_k S_k⁻¹ (x_t − α m_k)) ,   r_k ∝ w_k N(x_t; α m_k, S_k)

    Args:
        weights: (K,), normalized here.
        means: (K, D).
        covariances: (K, D, D), symmetric and positive semi-definite.
    """

    def __init__(self, schedule: NoiseSchedule, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        super().__init__()
        self.schedule = schedule
        self.weights, self.means, self.covariances = weights / weights.sum(), means, covariances
        self.eigenvalues, self.axes = torch.linalg.eigh(covariances)  # (K, D), (K, D, D)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws of x_0, (count, D)."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, self.means.shape[1], dtype=self.means.dtype, generator=generator)
        spread = self.eigenvalues[k].clamp(min=0).sqrt() * z
        return self.means[k] + torch.einsum("bij,bj->bi", self.axes[k], spread)

    def responsibilities(self, x_t: Tensor, t: Tensor) -> Tensor:
        """r_k, the posterior probability of each component, (B, K)."""
        return self._log_joint(x_t.flatten(1), *self._scales(x_t, t)).softmax(dim=1)

    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        along, spread = self._whitened(x, alpha, sigma)
        means = self.means + torch.einsum(
            "kij,bkj->bki", self.axes, alpha[:, :, None] * self.eigenvalues / spread * along
        )
        return torch.einsum("bk,bki->bi", self._log_joint(x, alpha, sigma).softmax(dim=1), means)

    def _log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._log_joint(x, alpha, sigma).logsumexp(dim=1)

    def _whitened(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x_t − α m_k along the axes of C_k, (B, K, D), and the eigenvalues of S_k, (B or 1, K, D)."""
        offset = x[:, None, :] - alpha[:, :, None] * self.means
        spread = alpha[:, :, None] ** 2 * self.eigenvalues + sigma[:, :, None] ** 2
        return torch.einsum("kij,bki->bkj", self.axes, offset), spread

    def _log_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log w_k N(x; α m_k, S_k), (B, K)."""
        along, spread = self._whitened(x, alpha, sigma)
        return self.weights.log() - 0.5 * (along**2 / spread + spread.log() + math.log(2 * math.pi)).sum(dim=2)


class Gaussian(GaussianMixture):
    """x_0 ~ N(mean, covariance), with the exact solution of its probability flow.

    Args:
        mean: (D,).
        covariance: (D, D).
    """

    def __init__(self, schedule: NoiseSchedule, mean: Tensor, covariance: Tensor) -> None:
        super().__init__(schedule, mean.new_ones(1), mean[None], covariance[None])

    def transport(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return x_s on the probability flow through x_t: along each axis of C, standardized values stay constant.

        x_s = α_s m + S_s^{1/2} S_t^{−1/2} (x_t − α_t m).  Ref: the linear ODE of score-SDE Eq. 13, solved
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self._scales(x_t, t), self._scales(x_t, s)
        along, spread_t = self._whitened(x_t.flatten(1), alpha_t, sigma_t)
        spread_s = alpha_s[:, :, None] ** 2 * self.eigenvalues + sigma_s[:, :, None] ** 2
        moved = torch.einsum("kij,bkj->bi", self.axes, (spread_s / spread_t).sqrt() * along)
        return (alpha_s * self.means[0] + moved).reshape(x_t.shape)


class FiniteSet(Exact):
    """x_0 uniform on N given points: E[x_0 | x_t] = Σ_i softmax_i(−‖x_t − α x_i‖²/2σ²) x_i, the estimate of a
    network that has memorized its training set.

    Args:
        points: (N, D).
    """

    def __init__(self, schedule: NoiseSchedule, points: Tensor) -> None:
        super().__init__()
        self.schedule, self.points = schedule, points

    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._log_joint(x, alpha, sigma).softmax(dim=1) @ self.points

    def _log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        N, D = self.points.shape
        normalizer = D * (sigma.log() + 0.5 * math.log(2 * math.pi)) + math.log(N)
        return self._log_joint(x, alpha, sigma).logsumexp(dim=1) - normalizer[:, 0]

    def _log_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        squared = (x[:, None, :] - alpha[:, :, None] * self.points).square().sum(dim=2)
        return -squared / (2 * sigma**2)
