"""Samples, or edited pictures, of a trained model."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from lightning_diffusion.app.cli import mistakes
from lightning_diffusion.app.drawing import check_rest, drawn_so, told
from lightning_diffusion.app.edit_inputs import GivenPictures, one_class, read_given, strip
from lightning_diffusion.app.sampling import SLOTS, as_editor, as_generator, draw, edit, settled
from lightning_diffusion.checkpoints.loading import assembled, read_either
from lightning_diffusion.configuration.build import ConfigError, at_least, build
from lightning_diffusion.diffusion.editing.base import Editing
from lightning_diffusion.models.contracts import Editor, Generator
from lightning_diffusion.runs.pictures import grid, square_columns, write_png
from lightning_diffusion.system.console import console
from lightning_diffusion.system.files import make_folder, writable, write
from lightning_diffusion.system.memory import check_fits
from lightning_diffusion.training.devices import prepare_for_inference, usable


def main(config: DictConfig) -> None:
    """Writes a picture (grid.png, or an edit's strip.png) and samples.npz into output_dir."""
    with mistakes():
        rest = check_rest(config, SLOTS)
        at_least(rest, 1, "num_samples", "batch_size")
        writable(Path(str(rest["output_dir"])), "output_dir")
        device = usable(rest["device"])
        file = read_either(rest)
        plain = settled(config, file)
        model = drawn_so(assembled(file, plain["trust"]).model, plain)
        how = told(model, plain)
        prepare_for_inference(model, device, plain["precision"], plain["compile"])
        if "edit" in plain:
            editor, editing = as_editor(model), build(plain, "edit")
            given = read_given(plain, editing, model)
            editor.check_edit(editing, len(given.pictures) // editing.num_variants)
        elif plain["images"] is not None or plain["mask"] is not None:
            raise ConfigError(
                "images: say what to do with them; give edit=inpaint, image_to_image, invert or interpolate"
            )
        else:
            generator = as_generator(model)
            check_fits("num_samples", plain["num_samples"], 4 * math.prod(model.shape))
            labels = _labels(plain, generator)

    if "edit" in plain:
        _edit(editor, editing, given, plain["seed"], how, Path(str(plain["output_dir"])))
    else:
        _draw(generator, labels, plain, how)


def _draw(model: Generator, labels: Tensor | None, plain: dict[str, Any], how: str) -> None:
    N, output_dir = plain["num_samples"], Path(str(plain["output_dir"]))
    drawn = draw(model, labels, N, plain["batch_size"], plain["seed"])
    columns = square_columns(N, model.num_classes if plain["label"] is None else None)
    _write(output_dir, "grid.png", grid(drawn, columns), drawn, labels)
    _tell(f"{N} samples by {how}: {output_dir}/grid.png, {output_dir}/samples.npz")


def _edit(model: Editor, editing: Editing, given: GivenPictures, seed: int, how: str, output_dir: Path) -> None:
    columns = edit(model, editing, given, seed)
    results = [images for name, images in columns.items() if name not in editing.inputs]
    labels = None if given.labels is None else given.labels[: len(results[0])].repeat(len(results))
    _write(output_dir, "strip.png", strip(columns, editing), torch.cat(results), labels)
    by = f" by {how}" if editing.takes_sampler else ""
    _tell(f"{', '.join(columns)}{by}: {output_dir}/strip.png; {output_dir}/samples.npz")


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


def _labels(plain: dict[str, Any], model: Generator) -> Tensor | None:
    if plain["label"] is None:
        return model.labels_in_turn(range(plain["num_samples"]))
    return one_class(plain["label"], plain["num_samples"], model.num_classes)
