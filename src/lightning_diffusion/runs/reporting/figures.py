"""The report's plots, in the style of a paper's appendix."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_diffusion.runs.plots import as_words
from lightning_diffusion.runs.records import is_measurable
from lightning_diffusion.runs.reporting.table import Comparison, in_order, value_of
from lightning_diffusion.runs.run import Run

STYLE_LIMIT = 4  # values of a key that dashes can distinguish
DASHES = ("-", "--", "-.", ":")
LEGEND_LIMIT = 16
LARGEST = 100  # inches: matplotlib draws no more than 2^16 pixels
LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look. Ref: ITU-R BT.601
CURVES = ("train/loss", "val/loss")
BlockConfig = dict[str, Any]


def heat_map(table: Comparison) -> Figure | None:
    """The metric over the two swept keys with the most values; the mean where several runs share a cell."""
    if len(table.axes) < 2 or not table.done:
        return None
    across, down = table.axes[:2]
    columns, rows = (in_order({value_of(run, key) for run in table.known}) for key in (across, down))
    cells = {key: float(np.mean(values)) for key, values in table.over(across, down).items()}
    values = np.array([[cells.get((x, y), math.nan) for x in columns] for y in rows])
    figure, axes = _figure(1.6 + 1.1 * len(columns), 1.4 + 0.6 * len(rows))
    cmap = colormaps["viridis_r" if table.higher else "viridis"].with_extremes(bad="0.92")
    picture = axes.imshow(values, cmap=cmap, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        dark = not math.isnan(value) and np.dot(picture.to_rgba(value)[:3], LUMA) < 0.5
        text = "–" if math.isnan(value) else f"{value:.3g}"
        axes.text(x, y, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), map(as_words, columns))
    axes.set_yticks(range(len(rows)), map(as_words, rows))
    axes.set(xlabel=as_words(across), ylabel=as_words(down))
    axes.set_title(_named(table) + _shared(table, 2), fontsize="medium")
    axes.spines[:].set_visible(False)
    return figure


def over_one_key(table: Comparison) -> Figure | None:
    """The metric over the one swept key, all runs as dots and their mean as a line."""
    if len(table.axes) != 1 or not table.done:
        return None
    key = table.axes[0]
    found = {values[0]: numbers for values, numbers in table.over(key).items()}
    columns = in_order(set(found))
    figure, axes = _figure(1.5 + 0.9 * max(3, len(columns)), 3.2)
    for x, value in enumerate(columns):
        axes.plot([x] * len(found[value]), found[value], "o", color="tab:blue", alpha=0.5)
    axes.plot(range(len(columns)), [np.mean(found[value]) for value in columns], color="tab:blue")
    axes.set_xticks(range(len(columns)), map(as_words, columns))
    axes.set(xlabel=as_words(key), ylabel=_named(table))
    axes.grid(alpha=0.3)
    return figure


def curves(table: Comparison) -> Figure | None:
    """The learning curves: losses, and the metric if it is not a loss."""
    names = [name for name in dict.fromkeys((*CURVES, table.metric)) if any(name in run.curves for run in table.runs)]
    if not names:
        return None
    figure, _ = _figure(4.3 * len(names), 3.6, len(names))
    for axes, name in zip(figure.axes, names, strict=True):
        for run, style in _styles(table):
            if name in run.curves:
                steps, values = run.curves[name]
                axes.plot(steps, values, marker="o" if len(steps) < 3 else None, markersize=3, **style)
        axes.set(xlabel="optimizer steps", title=as_words(name), yscale="log" if _spans(axes) else "linear")
        axes.grid(alpha=0.3, which="both")
    _legend(figure, figure.axes[0], table)
    return figure


def noise_levels(table: Comparison) -> Figure | None:
    """The squared error of v̂ over the log-SNR: ‖x̂_0 − x_0‖² (1 + SNR), comparable whatever a network predicts."""
    if not any(_velocity_errors(run) for run in table.runs):
        return None
    figure, axes = _figure(6.4, 3.8)
    for run, style in _styles(table):
        if points := _velocity_errors(run):
            axes.plot(*zip(*sorted(points), strict=True), marker=".", **style)
    axes.set(xlabel="log-SNR (noise on the left, data on the right)", ylabel="‖x̂₀ − x₀‖² (1 + SNR)")
    axes.set_yscale("log" if _spans(axes) else "linear")
    axes.grid(alpha=0.3, which="both")
    _legend(figure, axes, table)
    return figure


def throughput(table: Comparison) -> Figure | None:
    """Images per second of each run."""
    runs = [run for run in table.runs if run.metric("images_per_second") > 0]
    if not runs:
        return None
    figure, axes = _figure(6.4, 0.8 + 0.26 * len(runs))
    rates = [run.metric("images_per_second") for run in runs]
    axes.barh(range(len(runs)), rates, color="0.6")
    for y, rate in enumerate(rates):
        axes.text(rate, y, f" {rate:,.0f}", va="center", fontsize="small")
    axes.set_yticks(range(len(runs)), [as_words(table.label(run)) for run in runs], fontsize="small")
    axes.set(xlabel="training images per second", xlim=(0, max(rates) * 1.12))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _velocity_errors(run: Run) -> list[tuple[float, float]]:
    """(log-SNR, error) of the levels whose error a float can hold."""
    logsnr, error = (np.array([level[name] for level in run.levels]) for name in ("logsnr", "error"))
    with np.errstate(over="ignore"):
        values = error * (1 + np.exp(logsnr))
    return [(x, y) for x, y in zip(logsnr.tolist(), values.tolist(), strict=True) if is_measurable(y)]


def _styles(table: Comparison) -> list[tuple[Run, BlockConfig]]:
    """A colour for each value of one key and a dash style for each of another; otherwise a colour for each run."""
    if len(table.axes) == 2:
        coloured, dashed = table.axes
        if len(_values(table, dashed)) <= STYLE_LIMIT:
            dashes = dict(zip(_values(table, dashed), DASHES, strict=False))
            colours = _colours(_values(table, coloured))
            return [
                (
                    run,
                    {
                        "color": colours[value_of(run, coloured)],
                        "linestyle": dashes[value_of(run, dashed)],
                        "label": as_words(table.label(run)),
                        "linewidth": 1.3,
                    },
                )
                for run in table.runs
            ]
    labels = [table.label(run) for run in table.runs]
    colours = _colours(labels)
    return [
        (run, {"color": colours[label], "label": as_words(label)})
        for run, label in zip(table.runs, labels, strict=True)
    ]


def _colours(values: Sequence[str]) -> dict[str, Any]:
    """Colours from dark to bright for numbers, distinct ones for words."""
    try:
        numbers = len([float(value) for value in values]) > 1
    except ValueError:
        numbers = False
    palette = colormaps["viridis"](np.linspace(0, 0.9, len(values))) if numbers or len(values) > 20 else None
    if palette is None:
        palette = colormaps["tab10" if len(values) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    return dict(zip(values, palette, strict=False))


def _values(table: Comparison, key: str) -> list[str]:
    return in_order({value_of(run, key) for run in table.runs})


def _shared(table: Comparison, used: int) -> str:
    keys = [*table.axes[used:], *(["seed"] if "seed" in table.keys else [])]
    return f", mean over {as_words(', '.join(keys))}" if keys else ""


def _named(table: Comparison) -> str:
    return f"{as_words(table.metric)} ({'higher' if table.higher else 'lower'} is better)"


def _spans(axes: Any) -> bool:
    """Whether the drawn values are positive and span more than a factor of ten."""
    values = [value for line in axes.lines for value in line.get_ydata() if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)


def _legend(figure: Figure, axes: Any, table: Comparison) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(table.runs) > 1 and handles:
        figure.legend(
            handles[:LEGEND_LIMIT], labels[:LEGEND_LIMIT], loc="outside right upper", frameon=False, fontsize="small",
            title=None if len(handles) <= LEGEND_LIMIT else f"the best {LEGEND_LIMIT} of {len(handles)}",
        )  # fmt: skip


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(min(width, LARGEST), min(height, LARGEST)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, axes[0] if columns == 1 else axes
