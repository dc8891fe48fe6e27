"""Latents: the noise that yields a given picture, and interpolation between pictures."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.denoiser import Conditioned, Denoiser
from lightning_diffusion.diffusion.editing.base import Editing, EditInputs, last_of
from lightning_diffusion.diffusion.process import expand
from lightning_diffusion.diffusion.samplers.base import Sampler


class Invert(Editing):
    """Inverts a picture to its latent x_T by DDIM run backwards, and reconstructs the picture from it.

    Args:
        num_iterations: of the implicit step back, ≥ 1; see `invert`.
    """

    inputs = ("picture", "latent")
    needs_latents = True

    def __init__(self, num_iterations: int = 5) -> None:
        if num_iterations < 1:
            raise ValueError(f"edit.num_iterations={num_iterations}: choose at least 1")
        self.num_iterations = num_iterations

    def __call__(
        self, denoiser: Denoiser, sampler: Sampler, given: EditInputs, on_step: Callable[[], None] = lambda: None
    ) -> dict[str, Tensor]:
        times = sampler.times(denoiser.schedule)
        latent = last_of(invert(denoiser, given.x_0, times, given.condition, self.num_iterations), on_step)
        x = last_of(sampler.walk(denoiser, given.noise, given.condition, latent, times), on_step)
        return {"picture": given.x_0, "latent": latent / denoiser.schedule.prior_std, "result": x}


class Interpolate(Editing):
    """Interpolates from each picture to the next, along the great circle between their latents.

    Args:
        num_frames: pictures between each two given ones.
        num_iterations: see `invert`.

    Ref: DDIM §5.3, App. D.5
    """

    inputs = ("from", "to")
    least_pictures = 2
    needs_latents = True

    def __init__(self, num_frames: int = 7, num_iterations: int = 5) -> None:
        if num_frames < 1 or num_iterations < 1:
            raise ValueError(f"edit.num_frames={num_frames}, num_iterations={num_iterations}: each must be at least 1")
        self.num_frames, self.num_iterations = num_frames, num_iterations

    def __call__(
        self, denoiser: Denoiser, sampler: Sampler, given: EditInputs, on_step: Callable[[], None] = lambda: None
    ) -> dict[str, Tensor]:
        times, M = sampler.times(denoiser.schedule), self.num_frames
        latents = last_of(invert(denoiser, given.x_0, times, given.condition, self.num_iterations), on_step)
        shares = torch.linspace(0, 1, M + 2)[1:-1].tolist()
        starts = torch.cat([slerp(latents[:-1], latents[1:], w) for w in shares])
        condition = None if given.condition is None else Condition.cat([given.condition[:-1]] * M)
        frames = last_of(sampler.walk(denoiser, given.noise, condition, starts, times), on_step).chunk(M)
        columns = {f"{w:.2f}": frame for w, frame in zip(shares, frames, strict=True)}
        return {"from": given.x_0[:-1], **columns, "to": given.x_0[1:]}


def invert(
    denoiser: Denoiser, x_0: Tensor, times: Tensor, condition: Condition | None = None, num_iterations: int = 5
) -> Iterator[Tensor]:
    """Yield x_{t_0} = x_0, x_{t_1}, …, x_{t_N}: DDIM's deterministic steps, inverted one by one.

    The inverse of a step t -> s is the fixed point of

        x_t = α_t x̂_0 + σ_t (x_s − α_s x̂_0)/σ_s ,   x̂_0 = D(x_t, t)         (s > 0)
        x_t = x_t + α_t (x_0 − x̂_0)                                        (s = 0)

    One iteration from the last step's x̂_0 is the usual approximation, and a few iterations solve the equation. They are
    damped, so that they converge if 0 ≤ ∂D/∂x_t ≤ 1.

    Args:
        x_0: (B, C, H, W).
        times: t_N > … > t_0 = 0.
        num_iterations: ≥ 1.

    Ref: DDIM §4.3, §5.4; Fixed-point inversion: AIDI §4.1
    """
    schedule, denoiser = denoiser.schedule, Conditioned(denoiser, condition)
    rising = times.flip(0)
    x, x0_hat = x_0, x_0
    yield x
    for s, t in zip(rising[:-1], rising[1:], strict=True):
        alpha_t, sigma_t = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
        alpha_s, sigma_s = expand(schedule.alpha(s), x), expand(schedule.sigma(s), x)
        x_s, x = x, alpha_t * x
        for _ in range(num_iterations):
            if s > 0:
                x = alpha_t * x0_hat + sigma_t * (x_s - alpha_s * x0_hat) / sigma_s
                slope = sigma_t * alpha_s / sigma_s - alpha_t  # −∂x_t/∂x̂_0
                x0_hat = x0_hat + 2 / (2 + slope) * (denoiser(x, t) - x0_hat)
            else:
                x0_hat = denoiser(x, t)
                x = x + alpha_t * (x_0 - x0_hat)
        if s > 0:
            x = alpha_t * x0_hat + sigma_t * (x_s - alpha_s * x0_hat) / sigma_s
        yield x


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return sin((1 − w)Ω)/sin Ω a + sin(wΩ)/sin Ω b, Ω the angle between a and b, of each item. a, b: (B, …).

    Ref: Shoemake, Animating Rotation with Quaternion Curves; DDIM Eq. 67
    """
    cosine = torch.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).clamp(-1 + 1e-6, 1 - 1e-6)
    omega = torch.arccos(cosine)
    on_a, on_b = (torch.sin(w * omega) / torch.sin(omega) for w in (1 - share, share))
    return expand(on_a, a) * a + expand(on_b, b) * b
