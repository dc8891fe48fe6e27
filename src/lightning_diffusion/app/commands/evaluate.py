"""How good a model is, or images from anywhere are."""

import json
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig

from lightning_diffusion.app.cli import mistakes
from lightning_diffusion.app.evaluation import asked, compare, probed, sampled
from lightning_diffusion.app.evaluation_arguments import EarlyArguments
from lightning_diffusion.app.evaluation_inputs import read_real, read_samples
from lightning_diffusion.app.evaluation_report import measure_images, tell, tell_curve
from lightning_diffusion.checkpoints.loading import assembled
from lightning_diffusion.configuration.arguments import Text
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.metrics.extractors.base import Extractor
from lightning_diffusion.metrics.likelihood import Likelihood
from lightning_diffusion.runs.run import CONFIG
from lightning_diffusion.system.console import console, table
from lightning_diffusion.system.files import make_folder, writable, write_text
from lightning_diffusion.training.devices import prepare_for_inference, usable


def main(config: DictConfig) -> None:
    """Prints a table and writes output_dir/metrics.json; with samples, pictures too."""
    with mistakes():
        arguments, metric = asked(config)
        output_dir = Path(str(arguments.output_dir or beside_the_model(arguments.ckpt_path)))
        writable(output_dir, "output_dir")
    if isinstance(metric, Likelihood):
        evaluate_likelihood(arguments, metric, output_dir)
    elif arguments.images is not None:
        evaluate_images(arguments, arguments.images, metric, output_dir)
    else:
        evaluate_samples(config, arguments, metric, output_dir)


def beside_the_model(ckpt_path: Text | None) -> Path:
    """A new folder in the run that a checkpoint belongs to, or else in runs/evaluations."""
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    run_dir = Path(str(ckpt_path)).parent.parent
    is_of_a_run = ckpt_path is not None and (run_dir / CONFIG).is_file()
    return (run_dir / "evaluations" if is_of_a_run else Path("runs/evaluations")) / now


def evaluate_images(arguments: EarlyArguments, images: Text, extractor: Extractor, output_dir: Path) -> None:
    """Scores images=… against reference=…"""
    with mistakes():
        device = usable(arguments.device)
        if arguments.ckpt_path is not None or arguments.pretrained is not None:
            raise ConfigError("images: either images=… or a model to draw them from; leave one out")
        real = read_real(arguments, None)
        samples = read_samples(images, real, extractor)
        comparison = compare(extractor, real, device, arguments.extrapolate)
        comparison.check(len(samples))
    measured = measure_images(comparison, samples)
    make_folder(output_dir)
    tell(comparison, measured, real.images, arguments.recorded("images", "reference", "data"), output_dir)


def evaluate_samples(config: DictConfig, arguments: EarlyArguments, extractor: Extractor, output_dir: Path) -> None:
    """Scores what a model draws, by one sampler or by several."""
    with mistakes():
        device = usable(arguments.device)
        trained = assembled(arguments.read(), arguments.trust)
        prepare_for_inference(trained.model, device, arguments.precision, arguments.compile)
        ready = sampled(config, trained, extractor, device)
    measured = [ready.measure(walk) for walk in ready.walks]
    output_dir = Path(str(ready.arguments.output_dir or output_dir))  # it may refer to the run's own sampler
    make_folder(output_dir)
    if len(ready.walks) == 1:
        by = ready.told(ready.walks[0])
        tell(ready.comparison, measured[0], ready.real.images, ready.made_with, output_dir, by=by)
    else:
        tell_curve(ready.comparison, ready.walks, measured, ready.made_with, output_dir)


def evaluate_likelihood(arguments: EarlyArguments, metric: Likelihood, output_dir: Path) -> None:
    """Bits per dimension of images of the data."""
    with mistakes():
        device = usable(arguments.device)
        ready = probed(arguments, assembled(arguments.read(), arguments.trust), metric)
        prepare_for_inference(ready.trained.model, device, arguments.precision, arguments.compile)
    scores, seconds = ready.measure(device)
    results = ready.results(scores, seconds)
    make_folder(output_dir)
    rows = table(f"{arguments.num_images} images ({arguments.split})", "bits/dim", "± s.e.")
    for name in scores:
        mean, error = results[name]["mean"], results[name]["standard_error"]
        rows.add_row(name, f"{mean:.4f}", "–" if error is None else f"{error:.4f}")
    write_text(output_dir / "metrics.json", json.dumps(results, indent=2) + "\n")
    console().print(rows)
    console().print(f"{output_dir}/metrics.json", soft_wrap=True)
