"""The report: figures, pictures and tables in one file that needs nothing else."""

import base64
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure
from PIL import Image

from src.plots import over_evaluations
from src.reporting import figures
from src.reporting.table import Comparison
from src.runs import Run

DPI = 150
FRAMES = 8
FIGURES = {
    "heat_map": figures.heat_map,
    "over_one_key": figures.over_one_key,
    "curves": figures.curves,
    "noise_levels": figures.noise_levels,
    "throughput": figures.throughput,
}
SAMPLES, FILM = "samples/final.png", "samples/trajectory.gif"


@dataclass(frozen=True)
class Picture:
    """One in the page, as a data: address."""

    address: str
    caption: str = ""


def write(table: Comparison, folder: Path, output_dir: Path, num_pictures: int) -> None:
    """report.html, report.csv and a .png of each figure.

    Args:
        folder: that the runs are in.
        num_pictures: sample grids shown, those of the best runs.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    table.write(output_dir / "report.csv")
    drawn = {name: figure for name, draw in FIGURES.items() if (figure := draw(table)) is not None}
    measured = list(evaluations(folder))
    walks = {f"evaluations_{i + 1}": _over_evaluations(found) for i, (_, found) in enumerate(measured)}
    for name, figure in (drawn | walks).items():
        figure.savefig(output_dir / f"{name}.png", dpi=DPI)
    strip = _strip(table.runs)
    if strip is not None:
        strip.save(output_dir / "trajectory.png")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = _number
    page = environment.get_template("report.html.jinja").render(
        table=table,
        name=folder.resolve().name,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        figures={name: Picture(_png(output_dir / f"{name}.png")) if name in drawn else None for name in FIGURES},
        walks=[
            Picture(_png(output_dir / f"evaluations_{i + 1}.png"), str(path.relative_to(folder)))
            for i, (path, _) in enumerate(measured)
        ],
        samples=_samples(table, num_pictures),
        strip=None if strip is None else Picture(_png(output_dir / "trajectory.png")),
        film=_film(table),
        environments=environments(table.runs),
        commands=[(table.label(run), start["command"]) for run in table.runs for start in run.starts],
    )
    (output_dir / "report.html").write_text(page, encoding="utf-8")


def evaluations(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What src.evaluate with several samplers or numbers of steps has left in the folder: (its folder, its numbers)."""
    for path in sorted(folder.rglob("metrics.json")):
        found = json.loads(path.read_text())
        if "walks" in found:
            yield path.parent, found


def environments(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """Of all starts, each property with its different values: one where all runs agree."""
    values: dict[str, dict[str, None]] = {}
    for start in (start for run in runs for start in run.starts):
        git = start.get("git") or {}
        told = {
            "code": git.get("commit", "no repository") + (" (changed since)" if git.get("changed") else ""),
            "Python": start["python"],
            **start["libraries"],
            "system": start["system"],
            "processor": f"{start['processor']}, {start['cores']} cores",
            "devices": ", ".join(start["devices"]),
            "host": start["host"],
        }
        for name, value in told.items():
            values.setdefault(name, {})[value] = None
    return [(name, list(found)) for name, found in values.items()]


def _over_evaluations(found: dict[str, Any]) -> Figure:
    name = next(name for name in found["walks"][0] if name.startswith(("fd", "fid")))
    floor = found.get("floor", {}).get(name, {}).get("value")
    return over_evaluations(found["walks"], name, found["how"]["num_samples"], floor)


def _samples(table: Comparison, most: int) -> list[Picture]:
    """Grids at equal seeds: the same noise stands at the same place."""
    found = [run for run in table.runs if (run.folder / SAMPLES).is_file()][:most]
    return [Picture(_png(run.folder / SAMPLES), _caption(table, run)) for run in found]


def _film(table: Comparison) -> Picture | None:
    """The reverse process of the best run."""
    for run in table.runs:
        if (run.folder / FILM).is_file():
            return Picture(_address(run.folder / FILM, "gif"), _caption(table, run))
    return None


def _strip(runs: list[Run]) -> Image.Image | None:
    """Frames of the same film beside each other, for print: from noise to data."""
    for run in runs:
        if (run.folder / FILM).is_file():
            with Image.open(run.folder / FILM) as film:
                count = getattr(film, "n_frames", 1)
                chosen = sorted({round(i * (count - 1) / (FRAMES - 1)) for i in range(FRAMES)})
                frames = []
                for i in chosen:
                    film.seek(i)
                    side = min(film.size)  # a square of the grid: eight stand side by side
                    frames.append(film.convert("RGB").crop((0, 0, side, side)))
            width, height = frames[0].size
            strip = Image.new("RGB", (len(frames) * (width + 8) - 8, height), "white")
            for i, frame in enumerate(frames):
                strip.paste(frame, (i * (width + 8), 0))
            return strip
    return None


def _caption(table: Comparison, run: Run) -> str:
    value = run.metric(table.metric)
    return table.label(run) + ("" if math.isnan(value) else f": {table.metric} {value:.4g}")


def _png(path: Path) -> str:
    return _address(path, "png")


def _address(path: Path, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
