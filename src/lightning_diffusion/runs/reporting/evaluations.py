"""Evaluations by src.evaluate below a folder: curves of scores over network evaluations, and scores of one run."""

from pathlib import Path
from typing import Any, NamedTuple

from lightning_diffusion.runs.records import JSON, Record, is_measurable, is_number, load, parse_json
from lightning_diffusion.runs.run import RESULT, Run, paths_named
from lightning_diffusion.runs.schema import finite, parse_cost

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


class Measurement(NamedTuple):
    """Scores of samples that were drawn in one way.

    drawing: the sampler and its number of steps, in words; "" for a model without one. guidance: its node, or None.
    floors: of held-out images. cost: as `Run.cost`.
    """

    drawing: str
    guidance: Any
    scores: dict[str, float]
    floors: dict[str, float]
    num_samples: int
    cost: dict[str, float]


def measurements(run: Run, runs: list[Run]) -> dict[Path, Record[list[Measurement]]]:
    """The evaluations in a run's folder, the newest last, by the path of their metrics.json.

    Args:
        runs: all runs, whose own results are not evaluations.
    """
    own = {other.folder for other in runs}
    paths = (path for path in sorted(paths_named(run.folder, RESULT)) if path.parent not in own)
    return {path: load(path, _measurements, [], JSON) for path in paths}


def _measurements(text: str) -> Record[list[Measurement]]:
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError("not a mapping")
    how = found.get("how")
    if not isinstance(how, dict):
        raise ValueError("how is not a mapping")
    if "walks" in found:
        curve, floor = _curve(text).content, found.get("floor")
        rows = [] if curve is None else curve.rows
        entries = list(floor.items()) if isinstance(floor, dict) else []
    else:
        scores = {name: entry["value"] for name, entry in found.items() if _has(entry, "value")}
        if odd := [name for name, value in scores.items() if not is_number(value)]:
            raise ValueError(f"{odd[0]} is not a number")
        rows = [how | scores]
        entries = [(name, entry["floor"]) for name, entry in found.items() if _has(entry, "floor")]
    floors = {name: entry["value"] for name, entry in entries if _has(entry, "value") and is_number(entry["value"])}
    return Record([_measurement(row, how, finite(floors)) for row in rows if any(map(is_distance, row))])


def _measurement(row: dict[str, Any], how: dict[str, Any], floors: dict[str, float]) -> Measurement:
    N: Any = how.get("num_samples")
    if not is_number(N) or not is_measurable(N):
        raise ValueError("how has no num_samples")
    sampler: Any = row.get("sampler") or ""
    steps = row.get("num_steps")
    if isinstance(sampler, dict):
        sampler, steps = str(sampler.get("_target_")).rpartition(".")[2], sampler.get("num_steps")
    drawing = f"{str(sampler).lower()}, {steps} steps" if is_number(steps) else str(sampler).lower()
    scores = finite({name: value for name, value in row.items() if is_number(value)})
    return Measurement(drawing, how.get("guidance"), scores, floors, int(N), finite(parse_cost({"how": row})))


def is_distance(name: str) -> bool:
    """Whether this is the name of a Fréchet distance of equally many samples."""
    return name.startswith(PRIMARY) and not name.endswith(("_inf", "_inf_error"))


def _has(entry: Any, key: str) -> bool:
    return isinstance(entry, dict) and key in entry


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
