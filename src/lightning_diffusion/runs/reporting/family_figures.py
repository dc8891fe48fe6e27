"""The plots of the families: sample grids side by side, and distance over the time that drawing takes."""

import io
import math
from collections import defaultdict
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lightning_diffusion.runs.plots import as_words
from lightning_diffusion.runs.reporting.families import FLOOR, Families, Row
from lightning_diffusion.runs.reporting.table import SEED, in_order, value_of
from lightning_diffusion.runs.run import SAMPLES
from lightning_diffusion.runs.schema import PER_1000

ACROSS, MOST = 4, 16  # grids side by side, and in all
SIDE = 1024  # pixels to which larger grids are reduced


def families(found: Families) -> Figure | None:
    """The final sample grid of each family, of the run with the lowest seed."""
    grids = [(row, grid) for row in found.rows if row.is_own and (grid := _grid(row)) is not None][:MOST]
    if not grids:
        return None
    across = min(ACROSS, len(grids))
    figure = Figure(figsize=(3.5 * across, 3.2 * math.ceil(len(grids) / across)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(math.ceil(len(grids) / across), across, squeeze=False).flatten()
    for axes in panels:
        axes.set_axis_off()
    for axes, (row, grid) in zip(panels, grids, strict=False):
        axes.imshow(grid)
        axes.set_title(as_words(row.label), fontsize="medium")
    return figure


def families_cost(found: Families) -> Figure | None:
    """The distance over the seconds that 1,000 samples take, in a colour for each family."""
    if found.distance is None:
        return None
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in found.rows:
        point = row.value(PER_1000), row.value(found.distance)
        if row.runs and all(value > 0 for value in point):
            points[row.family].append(point)
    if not points:
        return None
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, places in points.items():
        axes.plot(*zip(*places, strict=True), "o", label=as_words(name))
    floor = next((row.value(found.distance) for row in found.rows if row.label == FLOOR), math.nan)
    if floor > 0:
        axes.axhline(floor, color="grey", linestyle=":", label=FLOOR)
    axes.set(xscale="log", yscale="log", xlabel="seconds for 1,000 samples", ylabel=as_words(found.distance))
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _grid(row: Row) -> Any:
    """The samples of the run with the lowest seed, as an array (H, W, 3), or None."""
    pictures = {value_of(run, SEED): data for run in row.runs if (data := run.picture(SAMPLES)) is not None}
    if not pictures:
        return None
    with Image.open(io.BytesIO(pictures[in_order(set(pictures))[0]]), formats=("PNG",)) as file:
        picture = file.convert("RGB")
    picture.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST)
    return np.asarray(picture)
