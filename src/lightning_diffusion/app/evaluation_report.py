"""Samples scored against real images, and the files and tables that report the scores."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from lightning_diffusion.app.cli import config_errors
from lightning_diffusion.app.evaluation_inputs import SamplingRun
from lightning_diffusion.app.output import show, table
from lightning_diffusion.data.dataset import ImageDataset, InMemory
from lightning_diffusion.metrics.batches import shard_batches
from lightning_diffusion.metrics.comparison import Comparison, Neighbours
from lightning_diffusion.metrics.extractors.base import Features, as_colour, concatenate
from lightning_diffusion.metrics.scores import Score
from lightning_diffusion.runs.pictures import grid, write_png
from lightning_diffusion.runs.plots import over_evaluations, save
from lightning_diffusion.runs.schema import PER_1000
from lightning_diffusion.system.files import csv_text, write_text

ROWS, COLUMNS = 10, 6  # of neighbours.png


class Measured(NamedTuple):
    """Scores of samples and their cost.

    nfe: network evaluations per sample. seconds: of the whole measurement. per_1000: seconds to draw 1,000 samples. nfe
    and per_1000 are None for given images. consistency: mean squared difference of the samples' conditions from the
    given ones, in [0, 1], or None (see `ConditionSource.consistency`).
    """

    scores: dict[str, Score]
    features: Features
    samples: ImageDataset
    nfe: float | None
    seconds: float
    per_1000: float | None
    consistency: float | None = None


def measure_run(
    comparison: Comparison,
    run: SamplingRun,
    seed: int,
    count: int,
    batch_size: int,
    on_step: Callable[[], None],
    held_out: ImageDataset | None = None,
) -> Measured:
    """Draw `count` samples and score them.

    Args:
        held_out: the images whose conditions the model draws with, if it needs them.
    """
    started, evaluations, drawing = time.monotonic(), 0, 0.0
    images, features, errors = [], [], []
    for indices in shard_batches(count, batch_size):
        begun = time.monotonic()
        condition = run.model.conditions_in_turn(indices, held_out)
        drawn = run.model.draw(indices, condition, seed, on_step)
        drawing += time.monotonic() - begun
        evaluations += drawn.cost
        images.append(drawn.images)
        features.append(comparison.extractor(drawn.images, comparison.device))
        if run.model.condition_source is not None and condition is not None and condition.image is not None:
            errors.append(run.model.condition_source.consistency(drawn.images, condition.image))
    found = concatenate(features)
    scores, samples = comparison(found), InMemory(torch.cat(images))
    known = [error for error in errors if error is not None]
    consistency = float(torch.cat(known).double().mean()) if known else None
    seconds, per_1000 = time.monotonic() - started, 1000 * drawing / count
    return Measured(scores, found, samples, evaluations / count, seconds, per_1000, consistency)


def measure_images(comparison: Comparison, samples: ImageDataset) -> Measured:
    """Score images from elsewhere."""
    started = time.monotonic()
    found = comparison.extractor.extract(samples, device=comparison.device)
    return Measured(comparison(found), found, samples, None, time.monotonic() - started, None)


def score_results(comparison: Comparison, measured: Measured, near: Neighbours, how: dict[str, Any]) -> dict[str, Any]:
    """The content of metrics.json: each score with that of held-out images, and under "how" the conditions of the
    measurement."""
    N = len(measured.samples)
    results = comparison.beside_floor(measured.scores, N) | comparison.near_copies(near)
    cost = {"num_samples": N, "nfe": measured.nfe, "seconds": measured.seconds, PER_1000: measured.per_1000}
    results |= {name: {"value": value, "best": "max"} for name, value in _consistency(measured).items()}
    return results | {"how": how | cost | comparison.how()}


def report_scores(
    comparison: Comparison,
    measured: Measured,
    real: ImageDataset,
    how: dict[str, Any],
    output_dir: Path,
    by: str | None = None,
) -> None:
    """Print a table and write metrics.json and neighbours.png.

    Args:
        how: the conditions of the measurement, for metrics.json.
        by: the sampler and guidance that drew the samples, for console output; None for given images.
    """
    N = len(measured.samples)
    floor, near = comparison.floor(N), comparison.neighbours(measured.features, COLUMNS - 1)
    held_out = next(iter(floor.values())).num_samples if floor else 0
    results = score_results(comparison, measured, near, how)
    numbers = ["", "±", *([f"{held_out:,} held out"] if floor else [])]
    scores = table(f"{N:,} samples", *numbers, right=numbers)
    for name, score in measured.scores.items():
        scores.add_row(
            name, _number(score.value), _number(score.spread), *([_number(_value(floor, name))] if floor else [])
        )
    for name, found in comparison.near_copies(near).items():
        scores.add_row(name, _number(found["value"]), "", *([_number(found["floor"]["value"])] if floor else []))
    for name, value in _consistency(measured).items():
        scores.add_row(name, _number(value), "", *([""] if floor else []))
    picture = neighbours_picture(measured.samples, real, near)
    with config_errors("output_dir"):
        write_png(output_dir / "neighbours.png", picture)
        write_text(output_dir / "metrics.json", json.dumps(results, indent=2) + "\n")
    files = f"{output_dir}/metrics.json, neighbours.png"
    show(scores, comparison.bias(measured.features), f"{N:,} samples by {by}: {files}" if by else files)


def report_curve(
    comparison: Comparison,
    runs: Sequence[SamplingRun],
    measured: Sequence[Measured],
    how: dict[str, Any],
    output_dir: Path,
) -> None:
    """Print a table and write curve.csv, curve.png and metrics.json: the scores of each run over its cost."""
    names = list(measured[0].scores)
    N = len(measured[0].samples)
    floor = comparison.floor(N)
    rows: list[dict[str, Any]] = [
        {"sampler": run.name, "num_steps": run.num_steps, "nfe": each.nfe, "seconds": round(each.seconds, 3)}
        | {PER_1000: each.per_1000, "num_samples": N, **_with_errors(each.scores)}
        | {f"floor/{name}": score.value for name, score in floor.items()}
        | _near_copies(comparison, each)
        | _consistency(each)
        for run, each in zip(runs, measured, strict=True)
    ]
    shown = [names[0], *(comparison.extractor.label(name) for name in ("precision", "recall"))]
    numbers = ("steps", "NFE", "seconds", names[0], "precision", "recall")
    curve = table("sampler", *numbers, right=numbers)
    for row in rows:
        curve.add_row(*(_number(row[key]) for key in ("sampler", "num_steps", "nfe", "seconds", *shown)))
    figure = over_evaluations(rows, names[0], N, floor[names[0]].value if floor else None)
    floors = {name: score._asdict() for name, score in floor.items()}
    how |= {"num_samples": N, **comparison.how()}
    record = {"walks": rows, "floor": floors, "how": how}
    with config_errors("output_dir"):
        write_text(output_dir / "curve.csv", csv_text([rows[0], *(row.values() for row in rows)]))
        save(figure, output_dir / "curve.png")
        write_text(output_dir / "metrics.json", json.dumps(record, indent=2) + "\n")
    show(curve, comparison.bias(measured[0].features), f"{output_dir}/curve.png, curve.csv, metrics.json")


def neighbours_picture(samples: ImageDataset, real: ImageDataset, near: Neighbours) -> torch.Tensor:
    """The samples nearest to a real image, one a row, each followed by its nearest real images."""
    closest = near.distances[:, 0].argsort()[:ROWS]
    nearest = near.indices[closest]  # (rows, k)
    ours, theirs = samples[closest][0], real[nearest.flatten()][0]
    if ours.shape[1:] != theirs.shape[1:]:
        ours, theirs = as_colour(ours), as_colour(theirs)
        ours = F.interpolate(ours.float(), theirs.shape[2:], mode="nearest").to(torch.uint8)
    cells = torch.cat([ours[:, None], theirs.unflatten(0, nearest.shape)], dim=1)
    return grid(cells.flatten(0, 1), columns=cells.shape[1], least_side=256)


def _near_copies(comparison: Comparison, measured: Measured) -> dict[str, float]:
    """The share of near-copies, by its name."""
    found = comparison.near_copies(comparison.neighbours(measured.features, 1))
    return {name: score["value"] for name, score in found.items()}


def _consistency(measured: Measured) -> dict[str, float]:
    """The peak signal-to-noise ratio in decibels, −10 log10 of the mean squared difference, by its name; at most 100.

    It compares the condition that a sample has itself with the condition that it was drawn for. Empty if it is unknown.
    """
    found = measured.consistency
    return {} if found is None else {"consistency_psnr": -10 * math.log10(max(found, 1e-10))}


def _with_errors(scores: dict[str, Score]) -> dict[str, float]:
    """Values by name; an extrapolated one is followed by its standard error."""
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
