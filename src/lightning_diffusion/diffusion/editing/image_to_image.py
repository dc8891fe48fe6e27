"""Image to image."""

from collections.abc import Callable

from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.editing.base import Editing, EditInputs, last_of
from lightning_diffusion.diffusion.process import marginal
from lightning_diffusion.diffusion.samplers.base import Sampler


class ImageToImage(Editing):
    """Adds noise to a picture up to an intermediate time and samples from there. The layout stays; details are new.

    Args:
        strength: share of the sampler's steps to take, in (0, 1]; 1 keeps nothing of the picture.
        num_variants: results per picture.

    Ref: SDEdit Alg. 1, 2
    """

    inputs = ("picture", "noised")

    def __init__(self, strength: float = 0.5, num_variants: int = 4) -> None:
        if not 0 < strength <= 1 or num_variants < 1:
            raise ValueError(
                f"edit.strength={strength}, num_variants={num_variants}: choose 0 < strength <= 1 and num_variants >= 1"
            )
        self.strength, self.num_variants = strength, num_variants

    def __call__(
        self, denoiser: Denoiser, sampler: Sampler, given: EditInputs, on_step: Callable[[], None] = lambda: None
    ) -> dict[str, Tensor]:
        schedule, times = denoiser.schedule, sampler.times(denoiser.schedule)
        N = len(times) - 1
        times = times[N - max(1, round(self.strength * N)) :]
        x_t = marginal(given.x_0, given.noise(), schedule.alpha(times[0]), schedule.sigma(times[0]))
        x = last_of(sampler.walk(denoiser, given.noise, given.condition, x_t, times), on_step)
        return {"picture": given.x_0, "noised": x_t, "result": x}
