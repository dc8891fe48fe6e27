"""Samples measured against real images, and what is told of the outcome."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch.nn import functional as F

from lightning_diffusion.app.cli import mistakes
from lightning_diffusion.app.evaluation_inputs import SamplingRun
from lightning_diffusion.data.dataset import ImageDataset, InMemory
from lightning_diffusion.metrics.batches import shard_batches
from lightning_diffusion.metrics.comparison import Comparison, Neighbours
from lightning_diffusion.metrics.extractors.base import Features, as_colour, concatenate
from lightning_diffusion.metrics.scores import Score
from lightning_diffusion.runs.pictures import grid, write_png
from lightning_diffusion.runs.plots import over_evaluations, save
from lightning_diffusion.system.console import console, printable, table
from lightning_diffusion.system.files import csv_text, write_text

ROWS, COLUMNS = 10, 6  # of the picture of neighbours


class Measured(NamedTuple):
    """Scores of samples and what they cost: evaluations of the network for one (None for given images), seconds."""

    scores: dict[str, Score]
    features: Features
    samples: ImageDataset
    nfe: float | None
    seconds: float


def measure_walk(
    comparison: Comparison,
    walk: SamplingRun,
    seed: int,
    count: int,
    batch_size: int,
    on_step: Callable[[], None],
) -> Measured:
    """Draws `count` samples and scores them."""
    started, evaluations = time.monotonic(), 0
    images, features = [], []
    for indices in shard_batches(count, batch_size):
        drawn = walk.model.draw(indices, walk.model.conditions_in_turn(indices), seed, on_step)
        evaluations += drawn.cost
        images.append(drawn.images)
        features.append(comparison.extractor(drawn.images, comparison.device))
    found = concatenate(features)
    return Measured(
        comparison(found), found, InMemory(torch.cat(images)), evaluations / count, time.monotonic() - started
    )


def measure_images(comparison: Comparison, samples: ImageDataset) -> Measured:
    """Scores images that somebody else has made."""
    started = time.monotonic()
    found = comparison.extractor.extract(samples, device=comparison.device)
    return Measured(comparison(found), found, samples, None, time.monotonic() - started)


def results_of(comparison: Comparison, measured: Measured, near: Neighbours, how: dict[str, Any]) -> dict[str, Any]:
    """What metrics.json holds: each score beside that of held-out images, and under "how" all that a score must be read
    with."""
    N = len(measured.samples)
    results = comparison.beside_floor(measured.scores, N)
    if near.near_copies is not None:
        name = comparison.extractor.label("near_copies")
        results[name] = {"value": near.near_copies, "num_samples": N, "floor": {"value": 0.01}}
    cost = {"num_samples": N, "nfe": measured.nfe, "seconds": measured.seconds}
    return results | {"how": how | cost | comparison.how()}


def tell(
    comparison: Comparison,
    measured: Measured,
    real: ImageDataset,
    how: dict[str, Any],
    output_dir: Path,
    by: str | None = None,
) -> None:
    """A table, metrics.json with all that a score must be read with, and neighbours.png.

    Args:
        by: sampler and guidance that drew the samples, in words; None for given images.
    """
    N = len(measured.samples)
    floor, near = comparison.floor(N), comparison.neighbours(measured.features, COLUMNS - 1)
    held_out = next(iter(floor.values())).num_samples if floor else 0
    results = results_of(comparison, measured, near, how)
    numbers = ["", "±", *([f"{held_out:,} held out"] if floor else [])]
    rows = table(f"{N:,} samples", *numbers, right=numbers)
    for name, score in measured.scores.items():
        rows.add_row(
            name, _number(score.value), _number(score.spread), *([_number(_value(floor, name))] if floor else [])
        )
    if near.near_copies is not None:
        name = comparison.extractor.label("near_copies")
        rows.add_row(name, _number(near.near_copies), "", *([_number(0.01)] if floor else []))
    picture = neighbours_picture(measured.samples, real, near)
    with mistakes("output_dir"):
        write_png(output_dir / "neighbours.png", picture)
        write_text(output_dir / "metrics.json", json.dumps(results, indent=2) + "\n")
    files = f"{output_dir}/metrics.json, neighbours.png"
    _print(rows, comparison.bias(measured.features), f"{N:,} samples by {by}: {files}" if by else files)


def tell_curve(
    comparison: Comparison,
    walks: Sequence[SamplingRun],
    measured: Sequence[Measured],
    how: dict[str, Any],
    output_dir: Path,
) -> None:
    """A table, curve.csv, curve.png and metrics.json: each score of each walk over what it cost."""
    names = list(measured[0].scores)
    N = len(measured[0].samples)
    floor = comparison.floor(N)
    rows: list[dict[str, Any]] = [
        {"sampler": walk.name, "num_steps": walk.num_steps, "nfe": m.nfe, "seconds": round(m.seconds, 3)}
        | {"num_samples": N, **_with_errors(m.scores)}
        | {f"floor/{name}": score.value for name, score in floor.items()}
        for walk, m in zip(walks, measured, strict=True)
    ]
    shown = [names[0], *(comparison.extractor.label(name) for name in ("precision", "recall"))]
    numbers = ["steps", "NFE", "seconds", names[0], "precision", "recall"]
    printed = table("sampler", *numbers, right=numbers)
    for row in rows:
        printed.add_row(*(_number(row[key]) for key in ("sampler", "num_steps", "nfe", "seconds", *shown)))
    figure = over_evaluations(rows, names[0], N, floor[names[0]].value if floor else None)
    floors = {name: score._asdict() for name, score in floor.items()}
    how |= {"num_samples": N, **comparison.how()}
    told = {"walks": rows, "floor": floors, "how": how}
    with mistakes("output_dir"):
        write_text(output_dir / "curve.csv", csv_text([rows[0], *(row.values() for row in rows)]))
        save(figure, output_dir / "curve.png")
        write_text(output_dir / "metrics.json", json.dumps(told, indent=2) + "\n")
    _print(printed, comparison.bias(measured[0].features), f"{output_dir}/curve.png, curve.csv, metrics.json")


def neighbours_picture(samples: ImageDataset, real: ImageDataset, near: Neighbours) -> torch.Tensor:
    """The samples that are nearest to a real image, one in a row, and beside each its nearest real images."""
    closest = near.distances[:, 0].argsort()[:ROWS]
    beside = near.indices[closest]  # (rows, k)
    ours, theirs = samples[closest][0], real[beside.flatten()][0]
    if ours.shape[1:] != theirs.shape[1:]:
        ours, theirs = as_colour(ours), as_colour(theirs)
        ours = F.interpolate(ours.float(), theirs.shape[2:], mode="nearest").to(torch.uint8)
    cells = torch.cat([ours[:, None], theirs.unflatten(0, beside.shape)], dim=1)
    return grid(cells.flatten(0, 1), columns=cells.shape[1], least_side=256)


def _with_errors(scores: dict[str, Score]) -> dict[str, float]:
    """Values by name; beside an extrapolated one its standard error."""
    found: dict[str, float] = {}
    for name, score in scores.items():
        found[name] = score.value
        if name.endswith("_inf") and score.spread is not None:
            found[f"{name}_error"] = score.spread
    return found


def _value(scores: dict[str, Score], name: str) -> float | None:
    return scores[name].value if name in scores else None


def _number(value: float | int | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _print(rows: Table, note: str | None, files: str) -> None:
    terminal = console()
    terminal.print(rows)
    if note:
        terminal.print(note, soft_wrap=True)
    terminal.print(printable(files), soft_wrap=True)
