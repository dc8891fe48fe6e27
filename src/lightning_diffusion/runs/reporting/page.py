"""The report: plots, pictures and tables in one self-contained HTML file."""

import base64
import io
import math
import re
import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from lightning_diffusion.runs.plots import over_evaluations, save
from lightning_diffusion.runs.records import Record
from lightning_diffusion.runs.reporting import family_figures, figures
from lightning_diffusion.runs.reporting.evaluations import Curve, evaluations
from lightning_diffusion.runs.reporting.families import Families, compare_families
from lightning_diffusion.runs.reporting.table import LONGEST, Comparison
from lightning_diffusion.runs.run import ANIMATION, SAMPLES, Run
from lightning_diffusion.system.console import printable
from lightning_diffusion.system.files import write as write_file
from lightning_diffusion.system.files import write_text
from lightning_diffusion.system.quoting import for_shell

FRAMES = 8
OF_A_JOB = ("hydra.mode=", "hydra.run.dir=", "group=", "name=")  # words that a sweep gives to its jobs
FIGURES = {
    "heat_map": figures.heat_map,
    "over_one_key": figures.over_one_key,
    "curves": figures.curves,
    "noise_levels": figures.noise_levels,
    "throughput": figures.throughput,
}
FAMILY_FIGURES = {"families": family_figures.families, "families_cost": family_figures.families_cost}


@dataclass(frozen=True)
class Picture:
    """A picture in the page, as a data: address."""

    address: Markup
    caption: str = ""


def write(table: Comparison, folder: Path, output_dir: Path, num_pictures: int) -> dict[Path, str]:
    """Writes report.html, report.csv and a .png of each figure.

    Args:
        folder: the folder with the runs.
        num_pictures: number of sample grids to show, those of the best runs.

    Returns:
        Every damaged file with its damage.

    Raises:
        NotWritten: a file could not be written; none is left half-written.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    table.write(output_dir / "report.csv")
    families, measured = compare_families(table), evaluations(folder, table.runs)
    plots = _figures(table, families)
    curves = {path: record.content for path, record in measured.items() if record.content is not None}
    walks = {f"evaluations_{i + 1}": _drawn(curve) for i, curve in enumerate(curves.values())}
    for name, figure in (plots | walks).items():
        save(figure, output_dir / f"{name}.png")
    damaged = _damaged(table.runs, measured) | ({} if families is None else families.damaged)
    shown = dict.fromkeys((*FIGURES, *FAMILY_FIGURES)) | {name: _ours(output_dir / f"{name}.png") for name in plots}
    page = _environment().get_template("report.html.jinja").render(
        table=table,
        name=folder.resolve().name,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        families=families,
        figures=shown,
        walks=[
            _ours(output_dir / f"{name}.png", str(path.parent.relative_to(folder)))
            for name, path in zip(walks, curves, strict=True)
        ],
        galleries=_galleries(table, num_pictures),
        animation=_animation(table, output_dir / "trajectory.png"),
        environments=environments(table.runs),
        commands=[(table.label(run), to_paste(start["command"])) for run in table.runs for start in run.starts],
        damaged={str(path.relative_to(folder)): reason for path, reason in damaged.items()},
    )  # fmt: skip
    write_text(output_dir / "report.html", page)
    return damaged


def environments(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """Each property of the starts of all runs with its distinct values: a single one if all agree."""
    values: dict[str, dict[str, None]] = {}
    for start in (start for run in runs for start in run.starts):
        git = start.get("git") or {}
        properties = {
            "code": printable(git.get("commit", "no repository")) + (" (changed since)" if git.get("changed") else ""),
            "Python": start["python"],
            **start["libraries"],
            "system": start["system"],
            "processor": f"{start['processor']}, {start['cores']} cores",
            "devices": ", ".join(map(printable, start["devices"])),
            "host": start["host"],
        }
        for name, value in properties.items():
            values.setdefault(name, {})[printable(value)] = None
    return [(name, list(found)) for name, found in values.items()]


def to_paste(command: str) -> str:
    """A run's command in a form that can be run again, without the words that a sweep adds to its jobs."""
    try:
        words = shlex.split(command)
    except ValueError:  # of a file that was edited
        return command
    if "hydra.mode=RUN" in words:
        words = [word for word in words if not word.startswith(OF_A_JOB)]
    return " ".join(map(for_shell, words))


def _environment() -> jinja2.Environment:
    """A Jinja environment that prints every value as one line of visible characters, escaped for HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value, LONGEST) if isinstance(value, str) and type(value) is str else value,
    )  # fmt: skip
    environment.filters["number"] = _number
    environment.filters["breakable"] = _breakable
    return environment


def _damaged(runs: list[Run], measured: dict[Path, Record[Curve | None]]) -> dict[Path, str]:
    files = {run.folder / name: reason for run in runs for name, reason in run.damage.items()}
    return files | {path: record.damage for path, record in measured.items() if record.damage is not None}


def _drawn(curve: Curve) -> Any:
    return over_evaluations(curve.rows, curve.name, curve.samples, curve.floor)


def _figures(table: Comparison, families: Families | None) -> dict[str, Figure]:
    """The figures that these runs have, by name."""
    found: dict[str, Figure | None] = {name: draw(table) for name, draw in FIGURES.items()}
    if families is not None:
        found |= {name: draw(families) for name, draw in FAMILY_FIGURES.items()}
    return {name: figure for name, figure in found.items() if figure is not None}


def _galleries(table: Comparison, most: int) -> dict[str, list[Picture]]:
    """The pictures of the best runs by title: samples, then predictions, reconstructions and the like."""
    others = dict.fromkeys(name for run in table.runs for name in run.other_pictures)
    titles = {SAMPLES: "Samples"} | {name: Path(name).stem.replace("_", " ").capitalize() for name in others}
    found = {title: _pictures(table, name, most) for name, title in titles.items()}
    return {title: pictures for title, pictures in found.items() if pictures}


def _pictures(table: Comparison, name: str, most: int) -> list[Picture]:
    """The picture of this name of each of the best runs that have it."""
    found: list[Picture] = []
    for run in table.runs:
        if len(found) < most and (data := run.picture(name)) is not None:
            found.append(Picture(_address(data, "png"), _caption(table, run)))
    return found


def _animation(table: Comparison, path: Path) -> tuple[Picture, Picture] | None:
    """The best run's animation, and its frames side by side, which are written to `path`; None without one."""
    found = ((run, data) for run in table.runs if (data := run.picture(ANIMATION)) is not None)
    run, data = next(found, (None, b""))
    if run is None:
        return None
    strip = _strip(data)
    write_file(path, lambda file: strip.save(file, "PNG"))
    return Picture(_address(data, "gif"), _caption(table, run)), _ours(path)


def _strip(animation: bytes) -> Image.Image:
    """Frames of the reverse process side by side, from noise to data, for print."""
    frames = []
    with Image.open(io.BytesIO(animation), formats=("GIF",)) as file:
        count = getattr(file, "n_frames", 1)
        for i in sorted({round(i * (count - 1) / (FRAMES - 1)) for i in range(FRAMES)}):
            file.seek(i)
            side = min(file.size)  # a square part of the grid, as eight are side by side
            frames.append(file.convert("RGB").crop((0, 0, side, side)))
    width, height = frames[0].size
    strip = Image.new("RGB", (len(frames) * (width + 8) - 8, height), "white")
    for i, frame in enumerate(frames):
        strip.paste(frame, (i * (width + 8), 0))
    return strip


def _caption(table: Comparison, run: Run) -> str:
    value = run.metric(table.metric)
    return table.label(run) + ("" if math.isnan(value) else f": {table.metric} {value:.4g}")


def _ours(path: Path, caption: str = "") -> Picture:
    """A .png that this program has written."""
    return Picture(_address(path.read_bytes(), "png"), caption)


def _address(data: bytes, kind: Literal["png", "gif"]) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _breakable(text: str) -> Markup:
    """A name in which lines can break after dots, slashes, underscores and equals signs."""
    return Markup(re.sub(r"([_/.=])", r"\1<wbr>", str(escape(printable(text, LONGEST)))))


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
