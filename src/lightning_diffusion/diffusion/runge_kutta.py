"""Adaptive Runge–Kutta methods for a batch of ordinary differential equations, with a step size for each item."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Slope = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # (y (b, n), time (b,), numbers of the items (b,)) -> dy/dtime (b, n)

SHORTEST_STEP = 1e-4  # of the whole interval; shorter steps are accepted whatever their error, so that a jump ends
FIRST_STEP = 0.05  # of the whole interval
SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0  # of the next step's size


class Tableau(NamedTuple):
    """An embedded pair of explicit methods, whose last stage is the slope at the solution ("first same as last").

        k_0 = f(y, t) ,   k_i = f(y + h Σ_j a_ij k_j, t + c_i h) ,   error = h Σ_i e_i k_i

    The row of a for the last stage gives the solution.
    """

    a: tuple[tuple[float, ...], ...]  # a_ij, i = 1 … n
    c: tuple[float, ...]  # c_i, i = 1 … n
    error: tuple[float, ...]  # e_i, i = 0 … n: weights of the solution less those of the lower order
    order: int  # of the solution, one more than the other's


# Dormand & Prince's RK5(4)7M
DORMAND_PRINCE = Tableau(
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    c=(1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    order=5,
)


class Step(NamedTuple):
    """The solution after a step, the slope there, and the estimated error, each (b, n)."""

    y: Tensor
    slope: Tensor
    error: Tensor


def take_step(
    tableau: Tableau, slope: Slope, y: Tensor, slope_at_y: Tensor, time: Tensor, h: Tensor, items: Tensor
) -> Step:
    """One step of size h from y at `time`. y, slope_at_y: (b, n); time, h, items: (b,)."""
    width, stages, end = h.to(y.dtype)[:, None], [slope_at_y], y
    for a, c in zip(tableau.a, tableau.c, strict=True):
        end = y + width * sum(a_j * k for a_j, k in zip(a, stages, strict=True))
        stages.append(slope(end, time + c * h, items))
    return Step(end, stages[-1], width * sum(e * k for e, k in zip(tableau.error, stages, strict=True)))


def relative_error(step: Step, y: Tensor, tolerance: float) -> Tensor:
    """The root mean square of the error relative to tolerance · (1 + |y|), (b,); a step is good up to 1."""
    scale = tolerance * (1 + torch.maximum(y.abs(), step.y.abs()))
    return (step.error / scale).to(precise(y.device)).square().mean(dim=1).sqrt()


def precise(device: torch.device) -> torch.dtype:
    """float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def next_size(h: Tensor, error: Tensor, order: int) -> Tensor:
    """The size of the step after one of size h: h · 0.9 error^{−1/order}, and from a fifth of h to five times h."""
    return h * (SAFETY * error.nan_to_num(0).clamp(min=1e-10) ** (-1 / order)).clamp(SHRINK, GROW)


def solve(
    slope: Slope, y: Tensor, start: float, end: float, tolerance: float, tableau: Tableau = DORMAND_PRINCE
) -> Tensor:
    """y(end), given y(start), (B, n), and dy/dtime = slope(y, time, items).

    Each item has its own step size. Its solution therefore does not depend on the other items, and no item waits for
    the hardest.

    Args:
        slope: called with some of the items: their y (b, n), time (b,) and numbers (b,).
        y: (B, n).
        start, end: in either order.
        tolerance: of the local error, relative to 1 + |y|.
    """
    span = end - start
    times = torch.full((len(y),), start, dtype=precise(y.device), device=y.device)
    sizes = torch.full_like(times, FIRST_STEP * span)
    y, items = y.clone(), torch.arange(len(y), device=y.device)
    slopes = slope(y, times, items)
    while len(items):
        h, here, now = sizes[items], y[items], times[items]
        h = torch.where((now + h - end) * math.copysign(1, span) > 0, end - now, h)
        step = take_step(tableau, slope, here, slopes[items], now, h, items)
        error = relative_error(step, here, tolerance)
        good = ~(error > 1) | (h.abs() <= SHORTEST_STEP * abs(span))  # NaN is accepted, so that the loop ends
        sizes[items] = next_size(h, error, tableau.order)
        done = items[good]
        y[done], times[done], slopes[done] = step.y[good], (now + h)[good], step.slope[good]
        items = items[~good | ((now + h - end).abs() > SHORTEST_STEP / 10 * abs(span))]
    return y
