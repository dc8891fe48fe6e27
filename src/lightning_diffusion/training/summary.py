"""The rows of a run's console summary, at its start and at its end."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.text import Text
from rich.tree import Tree

from lightning_diffusion.data.module import ImageDataModule
from lightning_diffusion.runs.comparable import BITS, BITS_ERROR
from lightning_diffusion.runs.run import CHECKPOINT, CURVE, PREDICTIONS, RESULT, relative
from lightning_diffusion.system.console import printable
from lightning_diffusion.training.module import TrainingModule
from lightning_diffusion.training.precision import bf16_slowdown


def start_rows(
    trainer: L.Trainer, module: TrainingModule, datamodule: ImageDataModule, called: Mapping[str, str]
) -> dict[str, str]:
    """What will be trained, on which data and devices.

    Args:
        called: the name of the part that the configuration chooses for each key: {"schedule": "cosine"}.
    """
    model = module.model
    device = trainer.strategy.root_device.type
    C, H, W = datamodule.shape
    classes = f", {datamodule.num_classes} classes" if datamodule.num_classes else ""
    sizes = {split: len(dataset) for split, dataset in datamodule.splits.items()}
    return {
        "data": f"{sizes['train']:,} images, {sizes['val']:,} held out, {H}×{W}×{C}{classes}",
        "network": f"{type(model.network).__name__}, {model.num_parameters:,} parameters",
        **model.describe(called),
        "training": f"{trainer.max_steps:,} steps of {datamodule.batch_size} images, "
        f"{trainer.world_size} × {device}, {trainer.precision}",
        **_slow_bf16(device, str(trainer.precision)),
        **_shared_cores(device, trainer.num_devices),
    }


def validation_rows(held_out: Mapping[str, float]) -> dict[str, str]:
    """The results of the last validation."""
    rows = {name: f"{value:.4f}" for name, value in held_out.items() if name != BITS_ERROR}
    if BITS in rows:
        rows[BITS] += f" ± {held_out[BITS_ERROR]:.4f}"
    return rows


def score_row(summary: Mapping[str, Any]) -> dict[str, str]:
    """The first score, with that of real images."""
    for name, score in summary.get("scores", {}).items():
        floor = f"; held-out images: {score['floor']['value']:.4g}" if "floor" in score else ""
        return {name: f"{score['value']:.4g} of {score['num_samples']:,} samples{floor}"}
    return {}


def file_rows(run_dir: Path) -> dict[str, str]:
    """The paths of the run's files, of those that exist."""
    files = {
        "samples": "samples/final.png, trajectory.gif",
        "predictions": PREDICTIONS,
        "metrics": f"{RESULT}, {CURVE}",
        "checkpoint": CHECKPOINT,
    }
    folder = relative(run_dir)
    return {name: f"{folder}/{paths}" for name, paths in files.items() if (run_dir / paths.split(",")[0]).exists()}


def config_tree(label: str | Text, node: Any) -> Tree:
    """A configuration as a tree; a node with a `_target_` shows it next to its key."""
    tree = Tree(label)
    for key, value in node.items():
        if isinstance(value, dict) and value:
            called = f": {value['_target_']}" if "_target_" in value else ""
            inside = {name: child for name, child in value.items() if name not in ("_target_", "_partial_")}
            tree.add(config_tree(Text.assemble((printable(key), "bold"), printable(called)), inside))
        else:
            tree.add(f"{printable(key)}: {printable(value)}")
    return tree


def _shared_cores(device: str, processes: int) -> dict[str, str]:
    """A row for a run that shares its CPU cores: among its own processes, or with other programs."""
    if device != "cpu":
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if processes > cores:
        return {
            "sharing": f"{processes} CPU processes share {cores} core{'s' * (cores > 1)} and take turns, and each step "
            "waits for the slowest; trainer.devices=1 uses all cores in one process"
        }
    load, all_cores = _load(), os.cpu_count() or 1  # both of the whole machine
    if torch.get_num_threads() > 1 and load > all_cores:
        return {
            "sharing": f"other programs use the CPU (load average {load:.1f} on {all_cores} cores), which can make "
            "training many times slower; wait for them, or start each training with OMP_NUM_THREADS=1"
        }
    return {}


def _load() -> float:
    """The machine's load average over the last minute; 0 if it is not known."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


def _slow_bf16(device: str, precision: str) -> dict[str, str]:
    """A row for a CPU that is slower in bf16 than in float32."""
    if device != "cpu" or not precision.startswith("bf16") or (times := bf16_slowdown()) < 2:
        return {}
    return {"note": f"on this CPU bf16 is {times:.0f} times slower than float32; choose trainer.precision=32-true"}
