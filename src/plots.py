"""Pictures of numbers."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def over_evaluations(rows: Sequence[dict[str, Any]], name: str, count: int, floor: float | None) -> Figure:
    """A score over the number of function evaluations, a line for each sampler.

    Args:
        rows: with sampler, nfe and the score.
        count: samples behind each point.
        floor: the score of held-out images, drawn as a line across; None leaves it out.
    """
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        lines[row["sampler"]].append((row["nfe"], row[name]))
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for sampler, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=sampler)
    if floor is not None:
        axes.axhline(floor, color="grey", linestyle=":", label="held-out images")
    axes.set(xscale="log", yscale="log", xlabel="evaluations of the network for a sample", ylabel=name)
    axes.set_title(f"{count:,} samples", fontsize="medium")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return figure
