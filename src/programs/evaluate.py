"""How good a model is, or images from anywhere are."""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from src.cli import mistakes
from src.config import Mistake, Text, at_least, build, check
from src.console import console
from src.data.module import ImageDataModule
from src.device import placed, usable
from src.diffusion.denoiser import Denoiser
from src.diffusion.samplers.base import Sampler
from src.diffusion.time_grid import TimeGrid
from src.files import make_folder, writable, write_text
from src.metrics.comparison import Comparison
from src.metrics.extractor import Extractor
from src.metrics.likelihood import Likelihood
from src.model_file import TrainedModel, load_data, load_either
from src.quality import measure_images, measure_walk, tell, tell_curve
from src.sources import Real, read_count, read_real, read_samples, read_walks

SLOTS: dict[str, Any] = {  # what the keys of conf/evaluate.yaml hold
    "ckpt_path": Text | None, "pretrained": Text | None, "trust": list[str], "images": Text | None,
    "reference": Text | None, "split": str, "num_images": int, "num_samples": int | None, "batch_size": int,
    "seed": int, "device": str, "precision": Any, "compile": Any, "output_dir": Text, "data": ImageDataModule | None,
    "extrapolate": bool, "metrics": Extractor | Likelihood, "sampler": Sampler, "samplers": list[str] | str | None,
    "num_steps": Any, "time_grid": TimeGrid, "guidance": Callable[..., Denoiser],
}  # fmt: skip


def main(config: DictConfig) -> None:
    """Prints a table and writes output_dir/metrics.json; with samples, pictures too."""
    with mistakes():
        plain = check(config, SLOTS)
        at_least(plain, 1, "num_images", "batch_size")
        writable(Path(str(plain["output_dir"])), "output_dir")
        metric: Likelihood | Extractor = build(plain, "metrics")
        if isinstance(metric, Likelihood) and plain["extrapolate"]:
            raise Mistake("extrapolate=true: a likelihood has no bias of the number of images; leave it out")
    if isinstance(metric, Likelihood):
        evaluate_likelihood(plain, metric)
    elif plain["images"] is not None:
        evaluate_images(plain, metric)
    else:
        evaluate_samples(plain, metric)


def evaluate_images(plain: dict[str, Any], extractor: Extractor) -> None:
    """Scores images=… against reference=…"""
    with mistakes():
        device = usable(plain["device"])
        if plain["ckpt_path"] is not None or plain["pretrained"] is not None:
            raise Mistake("images: either images=… or a model to draw them from; leave one out")
        real = read_real(plain, None)
        samples = read_samples(plain, real, extractor)
        comparison = _compare(extractor, real, device, plain["extrapolate"])
        comparison.check(len(samples))
    with Progress() as bar:
        task = bar.add_task("measuring", total=len(samples))
        measured = measure_images(comparison, samples, lambda count: bar.advance(task, count))
    told: dict[str, Any] = {key: plain[key] for key in ("images", "reference", "data") if key in plain}
    tell(comparison, measured, real.images, told, _made(plain))


def evaluate_samples(plain: dict[str, Any], extractor: Extractor) -> None:
    """Scores what a model draws, by one sampler or by several."""
    with mistakes():
        device = usable(plain["device"])
        model = load_either(plain)
        real = read_real(plain, model)
        N, batch_size = read_count(plain, real), plain["batch_size"]
        walks = read_walks(plain, model)
        denoiser = placed(model.denoiser, device, plain["precision"], plain["compile"])
        comparison = _compare(extractor, real, device, plain["extrapolate"])
        comparison.check(N)
    measured = []
    with Progress() as bar:
        for walk in walks:
            steps = len(walk.recipe.sampler.times(denoiser.schedule)) * -(-N // batch_size)
            task = bar.add_task(f"{walk.name}, {walk.num_steps} steps", total=steps)
            on_step: Callable[[], None] = functools.partial(bar.advance, task)
            measured.append(measure_walk(comparison, denoiser, walk, N, batch_size, on_step))
    keys = ("ckpt_path", "pretrained", "seed", "precision", "guidance", "reference", "data")
    told = {key: plain[key] for key in keys if key in plain}
    if len(walks) == 1:
        told |= {"sampler": walks[0].node}
        tell(comparison, measured[0], real.images, told, _made(plain))
    else:
        tell_curve(comparison, walks, measured, told, _made(plain))


def _compare(extractor: Extractor, real: Real, device: torch.device, extrapolate: bool) -> Comparison:
    """Prepares the extractor and the reference, or finds both where an earlier call has kept them."""
    extractor.check(real.images)
    with Progress(transient=True) as bar:
        task = bar.add_task("reference", total=len(real.images))
        on_image: Callable[[int], None] = functools.partial(bar.advance, task)
        return Comparison(extractor, real.images, real.held_out, device, on_image, extrapolate)


def _made(plain: dict[str, Any]) -> Path:
    output_dir = Path(str(plain["output_dir"]))
    make_folder(output_dir)
    return output_dir


def evaluate_likelihood(plain: dict[str, Any], metric: Likelihood) -> None:
    """Bits per dimension of images of the data."""
    with mistakes():
        if plain["split"] not in ("train", "val"):
            raise Mistake(f"split={plain['split']}: choose train or val")
        device = usable(plain["device"])
        model = load_either(plain)
        metric.check(model.denoiser)
        dataset = load_data(model, plain.get("data"), plain["trust"])[plain["split"]]
        if plain["num_images"] > len(dataset):
            raise Mistake(f"num_images={plain['num_images']}: the {plain['split']} split has {len(dataset)}")
        denoiser = placed(model.denoiser, device, plain["precision"], plain["compile"])

    started, parts = time.monotonic(), []
    batches = torch.arange(plain["num_images"]).split(plain["batch_size"])
    with Progress() as progress:
        task = progress.add_task("measuring", total=len(batches) * metric.steps(denoiser))
        for batch in batches:
            images, labels = dataset[batch]
            cond = labels.to(device) if labels is not None and model.num_classes is not None else None
            parts.append(
                metric(
                    denoiser, images.to(device), cond, int(batch[0]), plain["seed"],
                    on_step=lambda: progress.advance(task),
                )
            )  # fmt: skip
    scores = {name: torch.cat([part[name].cpu().double() for part in parts]) for name in parts[0]}
    _report(scores, plain, model, time.monotonic() - started)


def _report(scores: dict[str, Tensor], plain: dict[str, Any], model: TrainedModel, seconds: float) -> None:
    N, output_dir = plain["num_images"], _made(plain)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in (f"{N} images ({plain['split']})", "bits/dim", "± s.e."):
        table.add_column(column)
    results = {}
    for name, values in scores.items():
        mean, error = float(values.mean()), float(values.std() / N**0.5) if N > 1 else None
        results[name] = {"mean": mean, "standard_error": error}
        table.add_row(name, f"{mean:.4f}", "–" if error is None else f"{error:.4f}")
    keys = ("ckpt_path", "pretrained", "split", "num_images", "seed", "precision", "metrics")
    told = {key: plain[key] for key in keys}
    told |= {"schedule": model.file.denoiser["schedule"], "seconds": seconds, "unit": "bits/dim"}
    write_text(output_dir / "metrics.json", json.dumps(results | {"how": told}, indent=2) + "\n")
    console().print(table)
    console().print(f"{output_dir}/metrics.json", soft_wrap=True)
