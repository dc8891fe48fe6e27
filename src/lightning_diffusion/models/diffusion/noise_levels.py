"""What held-out images lose at each noise level."""

from typing import TypedDict

import torch
from torch.nn import functional as F

from lightning_diffusion.diffusion.objective import HeldOut
from lightning_diffusion.diffusion.schedule import NoiseSchedule

BINS = 20  # equal parts of the clock


class Level(TypedDict):
    """One part of the clock: its middle t/T and the log-SNR there, and means over the images that met it."""

    time: float
    logsnr: float
    images: int
    loss: float
    error: float


class NoiseLevels:
    """Sums over held-out images, part by part of the clock: part i is t/T in (i/BINS, (i + 1)/BINS]."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(BINS, 3, device=device)  # images, loss, error

    def add(self, held_out: HeldOut) -> None:
        part = ((held_out.time * BINS).ceil().long() - 1).clamp(0, BINS - 1)
        values = torch.stack([torch.ones_like(held_out.loss), held_out.loss, held_out.error], dim=1)  # (B, 3)
        self.sums += F.one_hot(part, BINS).to(values).T @ values.to(self.sums)

    def quartiles(self) -> dict[str, float]:
        """The mean loss by quarter of the clock, q1 next to data; a quarter that no image met is left out."""
        images, losses, _ = self.sums.unflatten(0, (4, -1)).sum(1).T.tolist()
        return {f"q{i + 1}": losses[i] / images[i] for i in range(4) if images[i]}

    def levels(self, schedule: NoiseSchedule) -> list[Level]:
        """The parts that any image met."""
        middles = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        logsnr = schedule.logsnr(middles * schedule.T).tolist()
        return [
            Level(time=float(middles[i]), logsnr=logsnr[i], images=int(n), loss=loss / n, error=error / n)
            for i, (n, loss, error) in enumerate(self.sums.tolist())
            if n
        ]
