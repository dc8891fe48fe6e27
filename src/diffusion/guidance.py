"""Guidance: a denoiser around a denoiser."""

from torch import Tensor

from src.diffusion.denoiser import Denoiser


class Unguided(Denoiser):
    """The denoiser as it is."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.denoiser(x_t, t, cond)


class Clip(Denoiser):
    """x̂_0 kept in [−bound, bound], where images live. Ref: DDPM §3.2 and its published code

    Args:
        denoiser: the denoiser to clip.
        bound: > 0; images are in [−1, 1].
    """

    def __init__(self, denoiser: Denoiser, bound: float = 1.0) -> None:
        super().__init__()
        if bound <= 0:
            raise ValueError(f"guidance.bound={bound}: choose a bound > 0 (images are in [-1, 1])")
        self.denoiser, self.bound, self.schedule = denoiser, bound, denoiser.schedule

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.denoiser(x_t, t, cond).clamp(-self.bound, self.bound)
