"""How good a model is, or images from anywhere are."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from lightning_diffusion.app.cli import mistakes
from lightning_diffusion.app.evaluation import asked, compare, probed, sampled
from lightning_diffusion.app.evaluation_inputs import read_real, read_samples
from lightning_diffusion.app.evaluation_report import measure_images, tell, tell_curve
from lightning_diffusion.checkpoints.loading import assembled, read_either
from lightning_diffusion.configuration.build import ConfigError
from lightning_diffusion.metrics.extractors.base import Extractor
from lightning_diffusion.metrics.likelihood import Likelihood
from lightning_diffusion.runs.run import CONFIG
from lightning_diffusion.system.console import console
from lightning_diffusion.system.files import make_folder, writable, write_text
from lightning_diffusion.training.devices import prepare_for_inference, usable


def main(config: DictConfig) -> None:
    """Prints a table and writes output_dir/metrics.json; with samples, pictures too."""
    with mistakes():
        plain, metric = asked(config)
        plain["output_dir"] = str(plain["output_dir"] or beside_the_model(plain["ckpt_path"]))
        writable(Path(plain["output_dir"]), "output_dir")
    if isinstance(metric, Likelihood):
        evaluate_likelihood(plain, metric)
    elif plain["images"] is not None:
        evaluate_images(plain, metric)
    else:
        evaluate_samples(config, plain, metric)


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
        comparison = compare(extractor, real, device, plain["extrapolate"])
        comparison.check(len(samples))
    measured = measure_images(comparison, samples)
    given: dict[str, Any] = {key: plain[key] for key in ("images", "reference", "data") if key in plain}
    tell(comparison, measured, real.images, given, _made(plain))


def evaluate_samples(config: DictConfig, plain: dict[str, Any], extractor: Extractor) -> None:
    """Scores what a model draws, by one sampler or by several."""
    with mistakes():
        device = usable(plain["device"])
        trained = assembled(read_either(plain), plain["trust"])
        prepare_for_inference(trained.model, device, plain["precision"], plain["compile"])
        ready = sampled(config, trained, extractor, device)
    measured = [ready.measure(walk) for walk in ready.walks]
    made = _made(plain | {"output_dir": ready.plain["output_dir"] or plain["output_dir"]})
    if len(ready.walks) == 1:
        by = ready.told(ready.walks[0])
        tell(ready.comparison, measured[0], ready.real.images, ready.made_with, made, by=by)
    else:
        tell_curve(ready.comparison, ready.walks, measured, ready.made_with, made)


def _made(plain: dict[str, Any]) -> Path:
    output_dir = Path(str(plain["output_dir"]))
    make_folder(output_dir)
    return output_dir


def evaluate_likelihood(plain: dict[str, Any], metric: Likelihood) -> None:
    """Bits per dimension of images of the data."""
    with mistakes():
        device = usable(plain["device"])
        ready = probed(plain, assembled(read_either(plain), plain["trust"]), metric)
        prepare_for_inference(ready.trained.model, device, plain["precision"], plain["compile"])
    scores, seconds = ready.measure(device)
    results, output_dir = ready.results(scores, seconds), _made(plain)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in (f"{plain['num_images']} images ({plain['split']})", "bits/dim", "± s.e."):
        table.add_column(column)
    for name in scores:
        mean, error = results[name]["mean"], results[name]["standard_error"]
        table.add_row(name, f"{mean:.4f}", "–" if error is None else f"{error:.4f}")
    write_text(output_dir / "metrics.json", json.dumps(results, indent=2) + "\n")
    console().print(table)
    console().print(f"{output_dir}/metrics.json", soft_wrap=True)
