"""The evaluation of a model or of any images."""

import json
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig

from lightning_diffusion.app.cli import config_errors
from lightning_diffusion.app.evaluation import compare, parse_evaluation, prepare_likelihood, prepare_samples
from lightning_diffusion.app.evaluation_inputs import EarlyArguments, read_reference, read_samples
from lightning_diffusion.app.evaluation_report import measure_images, report_curve, report_scores
from lightning_diffusion.app.output import show, table
from lightning_diffusion.checkpoints.loading import assembled
from lightning_diffusion.configuration.arguments import Text
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.metrics.extractors.base import Extractor
from lightning_diffusion.metrics.likelihood import Likelihood
from lightning_diffusion.runs.run import CONFIG
from lightning_diffusion.system.files import make_folder, writable, write_text
from lightning_diffusion.training.devices import prepare_for_inference, usable


def main(config: DictConfig) -> None:
    """Print a table and write output_dir/metrics.json; for samples also pictures."""
    with config_errors():
        arguments, metric = parse_evaluation(config)
        output_dir = Path(str(arguments.output_dir or default_output_dir(arguments.ckpt_path)))
        writable(output_dir, "output_dir")
    if isinstance(metric, Likelihood):
        evaluate_likelihood(arguments, metric, output_dir)
    elif arguments.images is not None:
        evaluate_images(arguments, arguments.images, metric, output_dir)
    else:
        evaluate_samples(config, arguments, metric, output_dir)


def default_output_dir(ckpt_path: Text | None) -> Path:
    """A new folder, in the run of the checkpoint if there is one, else in runs/evaluations."""
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    run_dir = Path(str(ckpt_path)).parent.parent
    is_of_a_run = ckpt_path is not None and (run_dir / CONFIG).is_file()
    return (run_dir / "evaluations" if is_of_a_run else Path("runs/evaluations")) / now


def evaluate_images(arguments: EarlyArguments, images: Text, extractor: Extractor, output_dir: Path) -> None:
    """Score images=… against reference=…"""
    with config_errors():
        device = usable(arguments.device)
        if arguments.ckpt_path is not None or arguments.pretrained is not None:
            raise ConfigError("images: given together with a model that draws images; leave one of the two out")
        real = read_reference(arguments, None)
        samples = read_samples(images, real, extractor)
        comparison = compare(extractor, real, device, arguments.extrapolate)
        comparison.check(len(samples))
    measured = measure_images(comparison, samples)
    make_folder(output_dir)
    report_scores(comparison, measured, real.images, arguments.recorded("images", "reference", "data"), output_dir)


def evaluate_samples(config: DictConfig, arguments: EarlyArguments, extractor: Extractor, output_dir: Path) -> None:
    """Score the samples of a model, drawn by one sampler or by several."""
    with config_errors():
        device = usable(arguments.device)
        trained = assembled(arguments.read(), arguments.trust)
        prepare_for_inference(trained.model, device, arguments.precision, arguments.compile)
        ready = prepare_samples(config, trained, extractor, device)
    measured = [ready.measure(run) for run in ready.runs]
    output_dir = Path(str(ready.arguments.output_dir or output_dir))  # it can refer to the run's own sampler
    make_folder(output_dir)
    if len(ready.runs) == 1:
        by = ready.describe(ready.runs[0])
        report_scores(ready.comparison, measured[0], ready.real.images, ready.made_with, output_dir, by=by)
    else:
        report_curve(ready.comparison, ready.runs, measured, ready.made_with, output_dir)


def evaluate_likelihood(arguments: EarlyArguments, metric: Likelihood, output_dir: Path) -> None:
    """Measure the bits per dimension of images of the data set."""
    with config_errors():
        device = usable(arguments.device)
        ready = prepare_likelihood(arguments, assembled(arguments.read(), arguments.trust), metric)
        prepare_for_inference(ready.trained.model, device, arguments.precision, arguments.compile)
    scores, seconds = ready.measure(device)
    results = ready.results(scores, seconds)
    make_folder(output_dir)
    means = table(f"{arguments.num_images} images ({arguments.split})", "bits/dim", "± s.e.")
    for name in scores:
        mean, error = results[name]["mean"], results[name]["standard_error"]
        means.add_row(name, f"{mean:.4f}", "–" if error is None else f"{error:.4f}")
    write_text(output_dir / "metrics.json", json.dumps(results, indent=2) + "\n")
    show(means, f"{output_dir}/metrics.json")
