"""How good a model is, or images from anywhere are."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from lightning_diffusion.app import drawing
from lightning_diffusion.app.cli import mistakes
from lightning_diffusion.app.drawing import as_trained, check_rest, drawn_so, told
from lightning_diffusion.app.evaluation_inputs import ReferenceData, read_count, read_real, read_samples, read_walks
from lightning_diffusion.app.evaluation_report import measure_images, measure_walk, tell, tell_curve
from lightning_diffusion.app.resume import typed_keys
from lightning_diffusion.checkpoints.loading import TrainedModel, assembled, load_data, read_either
from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.configuration.build import ConfigError, Text, at_least, build, check
from lightning_diffusion.data.module import ImageDataModule
from lightning_diffusion.metrics.comparison import Comparison
from lightning_diffusion.metrics.extractors.base import Extractor
from lightning_diffusion.metrics.likelihood import Likelihood
from lightning_diffusion.runs.run import CONFIG
from lightning_diffusion.system.console import console
from lightning_diffusion.system.files import make_folder, writable, write_text
from lightning_diffusion.system.progress import Phase
from lightning_diffusion.training.devices import prepare_for_inference, usable

SLOTS: dict[str, Any] = {  # what the keys of conf/evaluate.yaml hold
    "ckpt_path": Text | None, "pretrained": Text | None, "trust": list[str], "images": Text | None,
    "reference": Text | None, "split": str, "num_images": int, "num_samples": int | None, "batch_size": int,
    "seed": int, "device": str, "precision": Any, "compile": Any, "output_dir": Text | None,
    "data": ImageDataModule | None, "extrapolate": bool, "metrics": Extractor | Likelihood,
    "samplers": list[str] | str | None, "num_steps": Any, **drawing.SLOTS,
}  # fmt: skip

DISTANCE = "distance"
DRAWING = ("num_samples", "sampler", "samplers", "num_steps", "time_grid", "guidance")
UNREAD = {  # keys by what is measured
    "metrics=likelihood": (*DRAWING, "images", "reference"), "images=…": (*DRAWING, "num_images", "split"),
    DISTANCE: ("num_images", "split"),
}  # fmt: skip


def main(config: DictConfig) -> None:
    """Prints a table and writes output_dir/metrics.json; with samples, pictures too."""
    with mistakes():
        plain = check_rest(config, SLOTS)
        at_least(plain, 1, "num_images", "batch_size")
        metric: Likelihood | Extractor = build(plain, "metrics")
        refuse_unread(plain, isinstance(metric, Likelihood))
        if isinstance(metric, Likelihood) and plain["extrapolate"]:
            raise ConfigError("extrapolate=true: a likelihood has no bias of the number of images; leave it out")
        plain["output_dir"] = str(plain["output_dir"] or beside_the_model(plain["ckpt_path"]))
        writable(Path(plain["output_dir"]), "output_dir")
    if isinstance(metric, Likelihood):
        evaluate_likelihood(plain, metric)
    elif plain["images"] is not None:
        evaluate_images(plain, metric)
    else:
        evaluate_samples(config, plain, metric)


def refuse_unread(plain: dict[str, Any], is_likelihood: bool) -> None:
    """Raises ConfigError for a key of the command line that this kind of measurement does not read."""
    kind = "metrics=likelihood" if is_likelihood else "images=…" if plain["images"] is not None else DISTANCE
    for key in typed_keys():
        if key.split(".")[0] in UNREAD[kind]:
            other = {"num_samples": "num_images", "num_images": "num_samples"}.get(key)
            instead = f"give {other}={plain[key]}" if other and other not in UNREAD[kind] else "leave it out"
            why = "only metrics=likelihood reads it" if kind == DISTANCE else f"{kind} does not read it"
            raise ConfigError(f"{key}: {why}; {instead}")


def beside_the_model(ckpt_path: Any) -> Path:
    """A new folder in the run that a checkpoint belongs to, or else in runs/evaluations."""
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    run_dir = Path(str(ckpt_path)).parent.parent
    is_of_a_run = ckpt_path is not None and (run_dir / CONFIG).is_file()
    return (run_dir / "evaluations" if is_of_a_run else Path("runs/evaluations")) / now


def evaluate_images(plain: dict[str, Any], extractor: Extractor) -> None:
    """Scores images=… against reference=…"""
    with mistakes():
        device = usable(plain["device"])
        if plain["ckpt_path"] is not None or plain["pretrained"] is not None:
            raise ConfigError("images: either images=… or a model to draw them from; leave one out")
        real = read_real(plain, None)
        samples = read_samples(plain, real, extractor)
        comparison = _compare(extractor, real, device, plain["extrapolate"])
        comparison.check(len(samples))
    measured = measure_images(comparison, samples)
    given: dict[str, Any] = {key: plain[key] for key in ("images", "reference", "data") if key in plain}
    tell(comparison, measured, real.images, given, _made(plain))


def evaluate_samples(config: DictConfig, plain: dict[str, Any], extractor: Extractor) -> None:
    """Scores what a model draws, by one sampler or by several."""
    with mistakes():
        device = usable(plain["device"])
        file = read_either(plain)
        settled = check(as_trained(config, file), SLOTS)
        plain = settled | {"output_dir": str(settled["output_dir"] or plain["output_dir"])}
        trained = assembled(file, plain["trust"])
        model = drawn_so(trained.model, plain)
        real = read_real(plain, trained)
        N, batch_size = read_count(plain, real), plain["batch_size"]
        walks = read_walks(plain, model)
        prepare_for_inference(model, device, plain["precision"], plain["compile"])
        comparison = _compare(extractor, real, device, plain["extrapolate"])
        comparison.check(N)
    measured = []
    for walk in walks:
        how = told(model, plain | ({"sampler": walk.node} if walk.node else {}))
        with Phase(f"drawing {N:,} samples by {how}", walk.model.num_steps * -(-N // batch_size)) as phase:
            measured.append(measure_walk(comparison, walk, plain["seed"], N, batch_size, phase.advance))
    keys = ("ckpt_path", "pretrained", "seed", "precision", "guidance", "reference", "data")
    made_with = {key: plain[key] for key in keys if key in plain}
    if len(walks) == 1:
        made_with |= {"sampler": walks[0].node}
        tell(comparison, measured[0], real.images, made_with, _made(plain), by=how)
    else:
        tell_curve(comparison, walks, measured, made_with, _made(plain))


def _compare(extractor: Extractor, real: ReferenceData, device: torch.device, extrapolate: bool) -> Comparison:
    """Prepares the extractor and the reference, or finds both where an earlier call has kept them."""
    extractor.check(real.images)
    return Comparison(extractor, real.images, real.held_out, device, extrapolate)


def _made(plain: dict[str, Any]) -> Path:
    output_dir = Path(str(plain["output_dir"]))
    make_folder(output_dir)
    return output_dir


def evaluate_likelihood(plain: dict[str, Any], metric: Likelihood) -> None:
    """Bits per dimension of images of the data."""
    with mistakes():
        if plain["split"] not in ("train", "val"):
            raise ConfigError(f"split={plain['split']}: choose train or val")
        device = usable(plain["device"])
        model = assembled(read_either(plain), plain["trust"])
        measurable = metric.check(model.model)
        dataset = load_data(model, plain.get("data"), plain["trust"])[plain["split"]]
        if plain["num_images"] > len(dataset):
            raise ConfigError(f"num_images={plain['num_images']}: the {plain['split']} split has {len(dataset)}")
        prepare_for_inference(model.model, device, plain["precision"], plain["compile"])

    started, parts = time.monotonic(), []
    batches = torch.arange(plain["num_images"]).split(plain["batch_size"])
    with Phase("likelihood", len(batches) * metric.steps(measurable)) as phase:
        for batch in batches:
            images, labels = dataset[batch]
            condition = by_label(None if labels is None or model.num_classes is None else labels.to(device))
            parts.append(
                metric(
                    measurable, images.to(device), condition, int(batch[0]), plain["seed"],
                    on_step=phase.advance,
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
    how = {key: plain[key] for key in keys}
    how |= {"model": model.file.node, "seconds": seconds, "unit": "bits/dim"}
    write_text(output_dir / "metrics.json", json.dumps(results | {"how": how}, indent=2) + "\n")
    console().print(table)
    console().print(f"{output_dir}/metrics.json", soft_wrap=True)
