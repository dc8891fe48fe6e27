"""Likelihoods of held-out images under a diffusion model, in bits per dimension."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.likelihood import bits_per_dim, flow_log_likelihood, variational_bound
from lightning_diffusion.diffusion.noise import IndexedNoise
from lightning_diffusion.diffusion.reverse import Variance

PIXEL = 2 / 255  # the spacing of the 256 levels in [−1, 1]


class FlowAndBound:
    """The variational bound with its parts, if the schedule is a chain, and the likelihood of the probability flow.

    The bound applies to the discrete pixels. The flow's likelihood applies to pixels made continuous by uniform noise,
    which is also a bound. The noise of image i is the same in every call.

    Args:
        variance: of the bound's reverse steps; None means the learned one if there is one, and β otherwise.
        num_probes: number of probes of Hutchinson's estimator.
        tolerance: of the flow's solver.

    Ref: DDPM Eq. 5; score-SDE App. D.2; Theis et al., A Note on the Evaluation of Generative Models §3.1
    """

    def __init__(self, variance: Variance | None = None, num_probes: int = 1, tolerance: float = 1e-4) -> None:
        if num_probes < 1 or tolerance < 1e-6:
            raise ValueError(
                f"metrics.num_probes={num_probes}, tolerance={tolerance}: choose num_probes >= 1, tolerance >= 1e-6"
            )
        self.variance, self.num_probes, self.tolerance = variance, num_probes, tolerance

    def check(self, denoiser: Denoiser) -> None:
        """Raise ValueError if the variance does not fit the model."""
        if self.variance == "learned" and not denoiser.learns_variance:
            raise ValueError(
                "metrics.variance=learned: this model was not trained with learned variance; leave metrics.variance out"
            )

    def steps(self, denoiser: Denoiser) -> int:
        """Number of calls of `on_step` per batch."""
        return 1 + denoiser.schedule.chain_length

    def __call__(
        self,
        denoiser: Denoiser,
        x_0: Tensor,
        condition: Condition | None,
        indices: range,
        seed: int,
        on_step: Callable[[], None] = lambda: None,
    ) -> dict[str, Tensor]:
        """Bits per dimension of each image, by name.

        Args:
            x_0: (B, C, H, W) in [−1, 1], numbers `indices` of the data; condition of length B or None.
            on_step: called `steps` times.
        """

        def noise(stream: str) -> IndexedNoise:
            return IndexedNoise(seed, indices, x_0.shape[1:], x_0.device, stream=stream)

        scores = {}
        if denoiser.schedule.chain_length:
            variance = self.variance or ("learned" if denoiser.learns_variance else "transition")
            bound = variational_bound(denoiser, x_0, noise("bound"), condition, variance, on_step=on_step)
            scores = {
                "bound": bound.total,
                "bound/prior": bound.prior,
                "bound/steps": bound.steps,
                "bound/decoder": bound.decoder,
            }
        dequantized = x_0 + PIXEL * (torch.special.ndtr(noise("dequantization")()) - 0.5)
        log_p = flow_log_likelihood(denoiser, dequantized, noise("probes"), condition, self.num_probes, self.tolerance)
        on_step()
        return scores | {"flow": bits_per_dim(log_p, x_0[0].numel())}
