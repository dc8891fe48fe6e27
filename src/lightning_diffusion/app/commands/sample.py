"""Samples, or edited pictures, of a trained model."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_diffusion.runs.pictures import grid, square_columns, write_png
from omegaconf import DictConfig
from torch import Tensor

from lightning_diffusion.app.cli import mistakes
from lightning_diffusion.app.edit_inputs import one_class, read_given, strip
from lightning_diffusion.checkpoints.loading import TrainedModel, load_either
from lightning_diffusion.codecs.pixels import to_uint8
from lightning_diffusion.configuration.build import ConfigError, Text, at_least, build, check
from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.editing.base import Editing, EditInputs
from lightning_diffusion.diffusion.samplers.base import Sampler, class_labels
from lightning_diffusion.diffusion.time_grid import TimeGrid
from lightning_diffusion.system.console import console
from lightning_diffusion.system.files import make_folder, writable, write
from lightning_diffusion.system.memory import check_fits
from lightning_diffusion.system.progress import Phase
from lightning_diffusion.training.devices import prepare_for_inference, usable

SLOTS: dict[str, Any] = {  # what the keys of conf/sample.yaml hold
    "ckpt_path": Text | None, "pretrained": Text | None, "trust": list[str], "num_samples": int, "seed": int,
    "label": int | None, "batch_size": int, "device": str, "precision": Any, "compile": Any, "output_dir": Text,
    "time_grid": TimeGrid, "sampler": Sampler, "guidance": Callable[..., Denoiser], "edit": Editing | None,
    "images": list[Text] | None, "mask": Text | None,
}  # fmt: skip


def main(config: DictConfig) -> None:
    """Writes a picture (grid.png, or an edit's strip.png) and samples.npz into output_dir."""
    with mistakes():
        plain = check(config, SLOTS)
        at_least(plain, 1, "num_samples", "batch_size")
        writable(Path(str(plain["output_dir"])), "output_dir")
        device = usable(plain["device"])
        model = load_either(plain)
        sampler: Sampler = build(plain, "sampler")
        network = prepare_for_inference(model.denoiser, device, plain["precision"], plain["compile"])
        denoiser: Denoiser = build(plain, "guidance")(network).to(device)
        sampler.check(denoiser)
        if "edit" in plain:
            editing: Editing = build(plain, "edit")
            given = read_given(plain, editing, model, device)
            editing.check(sampler, len(given.x_0) // editing.num_variants)
        elif plain["images"] is not None or plain["mask"] is not None:
            raise ConfigError(
                "images: say what to do with them; give edit=inpaint, image_to_image, invert or interpolate"
            )
        else:
            check_fits("num_samples", plain["num_samples"], 4 * math.prod(model.shape))
            labels = _labels(plain, model.num_classes)

    if "edit" in plain:
        _edit(denoiser, sampler, editing, given, Path(str(plain["output_dir"])))
    else:
        _draw(denoiser, sampler, labels, plain, model, device)


def _draw(
    denoiser: Denoiser,
    sampler: Sampler,
    labels: Tensor | None,
    plain: dict[str, Any],
    model: TrainedModel,
    device: torch.device,
) -> None:
    N, output_dir = plain["num_samples"], Path(str(plain["output_dir"]))
    steps = len(sampler.times(denoiser.schedule)) * -(-N // plain["batch_size"])
    with Phase(f"drawing {N:,} samples", steps) as phase:
        images = to_uint8(
            sampler.sample(
                denoiser, range(N), model.shape, plain["seed"], labels, plain["batch_size"], device,
                on_step=phase.advance,
            )
        )  # fmt: skip
    columns = square_columns(N, model.num_classes if plain["label"] is None else None)
    _write(output_dir, "grid.png", grid(images, columns), images, labels)
    _tell(f"{N} samples: {output_dir}/grid.png, {output_dir}/samples.npz")


@torch.inference_mode()
def _edit(denoiser: Denoiser, sampler: Sampler, editing: Editing, given: EditInputs, output_dir: Path) -> None:
    with Phase("editing") as phase:
        columns = editing(denoiser, sampler, given, phase.advance)
    results = [x for name, x in columns.items() if name not in editing.inputs]
    labels = None if given.cond is None else given.cond[: len(results[0])].repeat(len(results)).cpu()
    _write(output_dir, "strip.png", strip(columns, editing), to_uint8(torch.cat(results)).cpu(), labels)
    _tell(f"{', '.join(columns)}: {output_dir}/strip.png; {output_dir}/samples.npz")


def _write(output_dir: Path, name: str, picture: Tensor, images: Tensor, labels: Tensor | None) -> None:
    """samples.npz holds images, uint8 N×H×W×C, and labels where the model is conditional."""
    make_folder(output_dir)
    arrays = {"images": images.permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    write(output_dir / "samples.npz", lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    write_png(output_dir / name, picture)


def _tell(text: str) -> None:
    console().print(text, soft_wrap=True)


def _labels(plain: dict[str, Any], num_classes: int | None) -> Tensor | None:
    if plain["label"] is None:
        return class_labels(plain["num_samples"], num_classes)
    return one_class(plain["label"], plain["num_samples"], num_classes)
