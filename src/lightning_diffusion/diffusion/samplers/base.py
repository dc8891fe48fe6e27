"""The loop that all samplers share: from noise at T along a time grid to an image at 0."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.denoiser import Conditioned, Denoiser
from lightning_diffusion.diffusion.noise import IndexedNoise, Noise
from lightning_diffusion.diffusion.schedule import NoiseSchedule
from lightning_diffusion.diffusion.time_grid import TimeGrid


class Sampler(ABC):
    """A numerical method for the learned reverse process.

    Args:
        time_grid: chooses the sampling times.
        num_steps: number of steps, ≥ 1; None takes every step of a discrete chain.

    Raises:
        ValueError: num_steps < 1.
    """

    def __init__(self, time_grid: TimeGrid, num_steps: int | None) -> None:
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"sampler.num_steps={num_steps}: choose at least 1, or null for every step of the chain")
        self.time_grid, self.num_steps = time_grid, num_steps

    evaluations: int = 1  # of the denoiser per step; the last step can take fewer
    start_evaluations: int = 0  # extra, of a multistep method that starts with single steps
    order: int = 1  # of convergence to the probability flow; of stochastic samplers: 1, in distribution
    stochastic: bool = False  # whether steps draw noise
    adaptive: bool = False  # whether a tolerance sets the error, not the number of steps

    @abstractmethod
    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any
    ) -> tuple[Tensor, Any]:
        """Take one step from x_t to x_s.

        Args:
            denoiser: with its condition filled in, called as denoiser(x_t, t).
            x_t: (B, C, H, W).
            t, s: t > s ≥ 0, float64 scalars on the CPU. Functions of them multiply an image as numbers do: the product
                keeps the image's dtype and device.
            noise: draws of standard normal noise, (B, C, H, W).
            state: the state that the previous step returned; None on the first step.

        Returns:
            x_s and the state for the next step.
        """

    def times(self, schedule: NoiseSchedule) -> Tensor:
        """Return the sampling times t_N > … > t_0 = 0. Raises ValueError if the schedule has too few times."""
        return self.time_grid(schedule, self.num_steps)

    def check(self, denoiser: Denoiser) -> None:
        """Raise ValueError if the sampler cannot be used with this denoiser."""
        self.times(denoiser.schedule)

    def walk(
        self,
        denoiser: Denoiser,
        noise: Noise,
        condition: Condition | None = None,
        start: Tensor | None = None,
        times: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Yield the N + 1 states x_{t_N}, …, x_{t_0}, each (B, C, H, W). The last one is the sample.

        Args:
            noise: draws of standard normal noise, (B, C, H, W).
            start: x_{t_N}; a draw of N(0, prior_std² I) if None.
            times: t_N > … > t_0; from the time grid if None.
        """
        denoiser = Conditioned(denoiser, condition)
        times = self.times(denoiser.schedule) if times is None else times
        x, state = denoiser.schedule.prior_std * noise() if start is None else start, None
        yield x
        for t, s in zip(times[:-1], times[1:], strict=True):
            x, state = self.step(denoiser, x, t, s, noise, state)
            yield x

    @torch.inference_mode()
    def sample(
        self,
        denoiser: Denoiser,
        indices: Sequence[int],
        shape: Sequence[int],
        seed: int,
        condition: Condition | None = None,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        on_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Return the samples numbered `indices`, (N, *shape), float32 on the CPU. Sample i depends only on (seed, i).

        Args:
            denoiser: any denoiser.
            indices: numbers of the N samples.
            shape: (C, H, W).
            seed: ≥ 0.
            condition: of the N samples, or None.
            batch_size: samples per batch; it changes the result only by float rounding.
            on_step: called after every step of every batch.
        """
        batches = []
        for start in range(0, len(indices), batch_size):
            noise = IndexedNoise(seed, indices[start : start + batch_size], shape, device)
            batch_condition = None if condition is None else condition[start : start + batch_size].to(device)
            x = None
            for x in self.walk(denoiser, noise, batch_condition):  # noqa: B007 - the last one is the sample
                on_step()
            assert x is not None
            batches.append(x.float().cpu())
        return torch.cat(batches) if batches else torch.empty(0, *shape)
