"""What each figure of a run can compare."""

from collections.abc import Iterable

LOSS, BITS, BITS_ERROR = HELD_OUT = ("val/loss", "val/bits_per_dim", "val/bits_per_dim_se")
LOSS_KEYS = ("schedule", "parameterization", "distance", "objective.distance")  # change what val/loss measures


def is_figure(metric: str) -> bool:
    """Whether it is a figure of a validation as a whole, not of a part of it such as val/loss_q1."""
    return metric.startswith("val/") and not metric.startswith("val/loss_")


def sentence(metric: str) -> str:
    """In one sentence, which runs this figure compares."""
    if metric == LOSS:
        return "val/loss compares runs of one schedule and one prediction: each averages over its own noise levels."
    if metric == BITS:
        return (
            "val/bits_per_dim compares models of the same held-out images, whatever their schedule, prediction, "
            "weighting or T: lower is better."
        )
    if metric.startswith("val/loss_q"):
        return f"{metric} compares runs of one schedule and one prediction: it is a quarter of each one's own clock."
    if metric.startswith("train/"):
        return f"{metric} compares runs that train alike: it depends on schedule, prediction, times and weighting."
    if metric in ("images_per_second", "seconds", "steps"):
        return f"{metric} compares runs on the same machine, when nothing else runs on it."
    return f"{metric} compares samples of equal number, measured against the same images in the same features."


def misled_by(metric: str, keys: Iterable[str]) -> list[str]:
    """The keys that differ between runs and change what the metric measures."""
    if not metric.startswith((LOSS, "train/loss")):
        return []
    return [key for key in keys if any(key == name or key.startswith(f"{name}.") for name in LOSS_KEYS)]


def warning(metric: str, keys: Iterable[str]) -> str | None:
    """What to say where runs that differ in these keys are compared by this metric."""
    if not (misled := misled_by(metric, keys)):
        return None
    changes = f"{misled[0]} changes" if len(misled) == 1 else f"{', '.join(misled[:-1])} and {misled[-1]} change"
    return f"metric={metric}: {changes} what it measures; metric={BITS} compares such runs"
