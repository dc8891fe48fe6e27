"""Plots as PNG files."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_diffusion.system.console import printable
from lightning_diffusion.system.files import write

DPI = 150
WIDEST = 80  # characters of a name in a picture

# letters that the font lacks become boxes; a plot whose labels leave no room for it is drawn anyway
for harmless in ("Glyph .* missing from", "constrained_layout not applied"):
    warnings.filterwarnings("ignore", message=harmless)


def as_words(text: object) -> str:
    """Any text as a label of a plot: one line, with dollar signs that start no formula."""
    return printable(text, WIDEST).replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Writes a .png. Raises NotWritten."""
    content: Callable[[IO[bytes]], None] = lambda file: figure.savefig(file, format="png", dpi=DPI)  # noqa: E731
    write(path, content)


def over_evaluations(rows: Sequence[dict[str, Any]], name: str, count: int, floor: float | None) -> Figure:
    """A plot of a score over the number of network evaluations, with a line for each sampler.

    Args:
        rows: with sampler, nfe and the score.
        name: of the score.
        count: number of samples behind each point.
        floor: the score of held-out images, drawn as a horizontal line; None omits it.
    """
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        lines[row["sampler"]].append((row["nfe"], row[name]))
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for sampler, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=as_words(sampler))
    if floor is not None:
        axes.axhline(floor, color="grey", linestyle=":", label="held-out images")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per sample", ylabel=as_words(name))
    axes.set_title(f"{count:,} samples", fontsize="medium")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return figure
