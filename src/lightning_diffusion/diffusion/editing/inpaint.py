"""Inpainting."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.editing.base import Editing, EditInputs, last_of
from lightning_diffusion.diffusion.noise import Noise
from lightning_diffusion.diffusion.process import marginal, transition
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.samplers.ddpm import ancestral
from lightning_diffusion.diffusion.schedule import NoiseSchedule
from lightning_diffusion.diffusion.time_grid import TimeGrid


class Inpaint(Editing):
    """Fills in where the mask is 1 and leaves the rest unchanged; see `RePaint`.

    Args:
        time_grid, num_steps: as in a sampler.
        jump: grid steps per jump back, j ≥ 1.
        resamples: passes over each stretch, r ≥ 1; 1 never jumps back. Takes about r · num_steps evaluations.
        num_variants: results per picture.
    """

    inputs = ("picture", "given")
    needs_mask = True
    takes_sampler = False

    def __init__(
        self,
        time_grid: TimeGrid,
        num_steps: int | None = 50,
        jump: int = 5,
        resamples: int = 5,
        num_variants: int = 4,
    ) -> None:
        if min(jump, resamples, num_variants) < 1:
            raise ValueError(
                f"edit.jump={jump}, resamples={resamples}, num_variants={num_variants}: each must be at least 1"
            )
        self.time_grid, self.num_steps, self.jump, self.resamples = time_grid, num_steps, jump, resamples
        self.num_variants = num_variants

    def __call__(
        self, denoiser: Denoiser, sampler: Sampler, given: EditInputs, on_step: Callable[[], None] = lambda: None
    ) -> dict[str, Tensor]:
        assert given.mask is not None
        mask = given.mask.to(given.x_0)
        walker = RePaint(self.time_grid, self.num_steps, self.jump, self.resamples, given.x_0, mask)
        x = last_of(walker.walk(denoiser, given.noise, given.condition), on_step)
        return {"picture": given.x_0, "given": (1 - mask) * given.x_0, "result": x}


class RePaint(Sampler):
    """Ancestral steps in the unknown part, the noised picture in the known part, and jumps back that harmonize the two:

        x_s = m ⊙ x_s^unknown + (1 − m) ⊙ x_s^known ,   x_s^unknown ~ p(x_s | x_t) ,   x_s^known ~ q(x_s | x_0)

    At every j-th time of the grid, x_s is noised again by j steps, x_t ~ q(x_t | x_s), until each stretch has had r
    passes. The sampling times therefore also rise.

    Args:
        jump, resamples: j and r.
        x_0: (B, C, H, W).
        mask: m, (H, W), 1 where to fill in.

    Ref: RePaint Alg. 1, App. B
    """

    stochastic = True

    def __init__(
        self, time_grid: TimeGrid, num_steps: int | None, jump: int, resamples: int, x_0: Tensor, mask: Tensor
    ) -> None:
        super().__init__(time_grid, num_steps)
        self.jump, self.resamples, self.x_0, self.mask = jump, resamples, x_0, mask

    def times(self, schedule: NoiseSchedule) -> Tensor:
        grid = super().times(schedule).flip(0)  # t_0 = 0 first
        N = k = len(grid) - 1
        jumps, path = dict.fromkeys(range(1, N - self.jump + 1, self.jump), self.resamples - 1), [k]
        while k > 0:
            if jumps.get(k):
                jumps[k] -= 1
                k += self.jump
            else:
                k -= 1
            path.append(k)
        return grid[torch.tensor(path)]

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        schedule = denoiser.schedule
        if s > t:
            q = transition(schedule, s, t)
            return q.alpha * x_t + q.var.sqrt() * noise(), None
        known = marginal(self.x_0, noise(), schedule.alpha(s), schedule.sigma(s))
        return torch.where(self.mask > 0, ancestral(denoiser, x_t, t, s, noise), known), None
