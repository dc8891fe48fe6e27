"""The metrics of a run: which value is the best, and which runs each metric can compare."""

from collections.abc import Iterable
from typing import Literal

LOSS, BITS, BITS_ERROR = HELD_OUT = ("val/loss", "val/bits_per_dim", "val/bits_per_dim_se")
LOSS_KEYS = ("schedule", "parameterization", "distance", "objective.distance")  # change what val/loss measures
# The directions of losses, and of scores of earlier versions. A new score declares its own in metrics/scores.py.
LOWER_IS_BETTER = ("train/loss", "val/", "fd_", "fid", "kd_", "kid")
MASKS = tuple(f"val/{name}" for name in ("mean_iou", "mean_dice", "foreground_dice", "pixel_accuracy", "iou_", "ap"))
HIGHER_IS_BETTER = (*MASKS, "inception_score", "is_", "precision", "recall", "density", "coverage", "vendi")


def is_figure(metric: str) -> bool:
    """Whether a metric is of a whole validation, not of a part of it such as val/loss_q1."""
    return metric.startswith("val/") and not metric.startswith("val/loss_")


def best_of(metric: str) -> Literal["min", "max"] | None:
    """Whether the lowest or the highest value of a metric is the best; None if it is neither a loss nor a score."""
    return "max" if metric.startswith(HIGHER_IS_BETTER) else "min" if metric.startswith(LOWER_IS_BETTER) else None


def higher_is_better(metric: str) -> bool:
    return best_of(metric) == "max" or metric == "images_per_second"


def sentence(metric: str) -> str:
    """One sentence on which runs this metric compares."""
    if metric == LOSS:
        return "val/loss compares runs with the same schedule and prediction: each averages over its own noise levels."
    if metric == BITS:
        return (
            "val/bits_per_dim compares models on the same held-out images, whatever their schedule, prediction, "
            "weighting or T: lower is better."
        )
    if metric.startswith("val/loss_q"):
        return f"{metric} compares runs with the same schedule and prediction: it covers a quarter of the run's t/T."
    if metric.startswith(MASKS):
        return f"{metric} compares runs on the same held-out masks: higher is better, and 1 is perfect."
    if metric.startswith("train/"):
        return f"{metric} compares runs with the same schedule, prediction, time sampler and weighting."
    if metric == "parameters":
        return "parameters is the number of weights of the model that draws."
    if metric in ("images_per_second", "seconds", "steps"):
        return f"{metric} compares runs on the same machine, with nothing else running on it."
    return f"{metric} compares equally many samples, scored against the same images in the same features."


def misled_by(metric: str, keys: Iterable[str]) -> list[str]:
    """The keys that differ between runs and change what the metric measures."""
    if not metric.startswith((LOSS, "train/loss")):
        return []
    return [key for key in keys if any(key == name or key.startswith(f"{name}.") for name in LOSS_KEYS)]


def warning(metric: str, keys: Iterable[str]) -> str | None:
    """A warning if these keys, in which the runs differ, make the metric incomparable."""
    if not (misled := misled_by(metric, keys)):
        return None
    changes = f"{misled[0]} changes" if len(misled) == 1 else f"{', '.join(misled[:-1])} and {misled[-1]} change"
    return f"metric={metric}: {changes} what it measures; choose metric={BITS} to compare such runs"
