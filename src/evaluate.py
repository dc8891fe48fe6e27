"""Measures a trained model on its own data: python -m src.evaluate ckpt_path=… [metrics=likelihood] [key=value …]"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from src.checkpoint import load_data
from src.cli import entry, mistakes
from src.config import Mistake, at_least_one, check
from src.device import usable
from src.metrics.likelihood import Likelihood
from src.pretrained import load_either

KEYS = (
    "ckpt_path", "pretrained", "split", "num_images", "batch_size", "seed", "device", "output_dir", "data", "metrics",
)  # fmt: skip


@entry("evaluate")
def main(config: DictConfig) -> None:
    """Prints a table of means and standard errors, and writes them into output_dir/metrics.json."""
    with mistakes():
        plain = check(config, KEYS)
        at_least_one(plain, "num_images", "batch_size")
        if plain["split"] not in ("train", "val"):
            raise Mistake(f"split={plain['split']}: choose train or val")
        device = usable(plain["device"])
        metric: Likelihood = instantiate(plain["metrics"], _convert_="all")
        denoiser, trained = load_either(plain)
        metric.check(denoiser)
        dataset = load_data(trained["data"], plain.get("data"))[plain["split"]]
        if plain["num_images"] > len(dataset):
            raise Mistake(f"num_images={plain['num_images']}: the {plain['split']} split has {len(dataset)}")
        denoiser = denoiser.to(device)

    started, parts = time.monotonic(), []
    batches = torch.arange(plain["num_images"]).split(plain["batch_size"])
    with Progress() as progress:
        task = progress.add_task("measuring", total=len(batches) * metric.steps(denoiser))
        for batch in batches:
            images, labels = dataset[batch]
            cond = labels.to(device) if labels is not None and trained["data"]["num_classes"] is not None else None
            parts.append(
                metric(
                    denoiser, images.to(device), cond, int(batch[0]), plain["seed"],
                    on_step=lambda: progress.advance(task),
                )
            )  # fmt: skip
    scores = {name: torch.cat([part[name].cpu().double() for part in parts]) for name in parts[0]}
    _report(scores, plain, trained, time.monotonic() - started)


def _report(scores: dict[str, Tensor], plain: dict[str, Any], trained: dict[str, Any], seconds: float) -> None:
    N, output_dir = plain["num_images"], Path(str(plain["output_dir"]))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in (f"{N} images ({plain['split']})", "bits/dim", "± s.e."):
        table.add_column(column)
    results = {}
    for name, values in scores.items():
        mean, error = float(values.mean()), float(values.std() / N**0.5) if N > 1 else None
        results[name] = {"mean": mean, "standard_error": error}
        table.add_row(name, f"{mean:.4f}", "–" if error is None else f"{error:.4f}")
    output_dir.mkdir(parents=True, exist_ok=True)
    told = {key: plain[key] for key in ("ckpt_path", "pretrained", "split", "num_images", "seed", "metrics")}
    told |= {"schedule": trained["schedule"], "seconds": seconds, "unit": "bits/dim"}
    (output_dir / "metrics.json").write_text(json.dumps(results | {"how": told}, indent=2) + "\n")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{output_dir}/metrics.json", soft_wrap=True)


if __name__ == "__main__":
    main()
