"""Draws samples from a trained model: python -m src.sample ckpt_path=… [num_samples=64] [sampler=ddim] [key=value …]"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from src.checkpoint import load_denoiser
from src.cli import entry, mistakes
from src.config import Mistake, check
from src.diffusion.samplers.base import class_labels
from src.images import grid, square_columns, to_uint8, write_png

KEYS = (
    "ckpt_path", "num_samples", "seed", "label", "batch_size", "device", "output_dir",
    "time_grid", "sampler", "guidance",
)  # fmt: skip


@entry("sample")
def main(config: DictConfig) -> None:
    """Writes grid.png and samples.npz (images: uint8 N×H×W×C; labels where conditional) into output_dir."""
    with mistakes():
        plain = check(config, KEYS)
        N, device = plain["num_samples"], _device(plain["device"])
        for key in ("num_samples", "batch_size"):
            if not isinstance(plain[key], int) or plain[key] < 1:
                raise Mistake(f"{key}={plain[key]}: choose a whole number of at least 1")
        if not isinstance(plain["seed"], int):
            raise Mistake(f"seed={plain['seed']}: choose a whole number")
        denoiser, trained = load_denoiser(plain["ckpt_path"])
        data = trained["data"]
        labels = class_labels(N, data["num_classes"])
        if plain["label"] is not None:
            labels = _one_class(plain["label"], N, data["num_classes"])
        sampler = instantiate(plain["sampler"], _convert_="all")
        denoiser = instantiate(plain["guidance"], _convert_="all")(denoiser).to(device)
        sampler.check(denoiser)
        num_steps = len(sampler.times(denoiser.schedule))

    shape = (data["channels"], data["image_size"], data["image_size"])
    with Progress() as progress:
        task = progress.add_task("sampling", total=num_steps * -(-N // plain["batch_size"]))
        x = sampler.sample(
            denoiser, range(N), shape, plain["seed"], labels, plain["batch_size"], device,
            on_step=lambda: progress.advance(task),
        )  # fmt: skip
    output_dir = Path(plain["output_dir"])
    output_dir.mkdir(parents=True, exist_ok=True)
    images = to_uint8(x)
    arrays: dict[str, Any] = {"images": images.permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    np.savez_compressed(output_dir / "samples.npz", **arrays)
    write_png(
        output_dir / "grid.png",
        grid(images, square_columns(N, data["num_classes"] if plain["label"] is None else None)),
    )
    Console(highlight=False).print(f"{N} samples: {output_dir}/grid.png, {output_dir}/samples.npz", soft_wrap=True)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise Mistake(f"device={name}: not usable here ({str(error).splitlines()[0]}); choose auto or cpu") from error


def _one_class(label: int, num_samples: int, num_classes: int | None) -> torch.Tensor:
    if num_classes is None:
        raise Mistake(f"label={label}: this model was trained without classes; leave label out")
    if not isinstance(label, int) or not 0 <= label < num_classes:
        raise Mistake(f"label={label}: choose a whole number from 0 to {num_classes - 1}")
    return torch.full((num_samples,), label)


if __name__ == "__main__":
    main()
