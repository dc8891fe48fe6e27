"""Curves of scores over network evaluations, written by src.evaluate below a folder."""

from pathlib import Path
from typing import Any, NamedTuple

from lightning_diffusion.runs.records import JSON, Record, is_measurable, is_number, load, parse_json
from lightning_diffusion.runs.run import RESULT, Run, paths_named

PRIMARY = ("fd", "fid")  # first letters of the score that is drawn


class Curve(NamedTuple):
    """A score by sampler and number of evaluations, the number of samples per point, and held-out images' score."""

    name: str
    rows: list[dict[str, Any]]
    samples: int
    floor: float | None


def evaluations(folder: Path, runs: list[Run]) -> dict[Path, Record[Curve | None]]:
    """The evaluations of several samplers or numbers of steps, and damaged ones, by the path of their metrics.json.

    Args:
        runs: the runs in the folder, whose own results are not evaluations.
    """
    own = {run.folder for run in runs}
    paths = (path for path in sorted(paths_named(folder, RESULT)) if path.parent not in own)
    found = {path: load(path, _curve, None, JSON) for path in paths}
    return {path: record for path, record in found.items() if record != (None, None)}


def _curve(text: str) -> Record[Curve | None]:
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError("not a mapping")
    if "walks" not in found:  # of one sampler
        return Record(None)
    rows, how, floor = found["walks"], found.get("how"), found.get("floor", {})
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("walks is not a list of mappings")
    name = next((key for key in rows[0] if key.startswith(PRIMARY)), None)
    if name is None:
        raise ValueError(f"walks has no score whose name begins with {' or '.join(PRIMARY)}")
    for row in rows:
        if not isinstance(row.get("sampler"), str) or not all(_is_positive(row.get(key)) for key in ("nfe", name)):
            raise ValueError(f"an entry of walks lacks sampler, nfe or {name}, or has a wrong type")
    if not isinstance(how, dict) or not isinstance(how.get("num_samples"), int):
        raise ValueError("how has no num_samples")
    held_out = floor.get(name) if isinstance(floor, dict) else None
    value = held_out.get("value") if isinstance(held_out, dict) else None
    return Record(Curve(name, rows, how["num_samples"], value if _is_positive(value) else None))


def _is_positive(value: Any) -> bool:
    """Whether a logarithmic axis can show it."""
    return is_number(value) and is_measurable(value) and value > 0
