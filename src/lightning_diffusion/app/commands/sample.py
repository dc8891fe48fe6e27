"""Samples or edited pictures of a trained model."""

import math
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from lightning_diffusion.app.cli import config_errors
from lightning_diffusion.app.drawing import apply_drawing, describe
from lightning_diffusion.app.edit_inputs import EditInputs, read_inputs, same_label, strip
from lightning_diffusion.app.output import show
from lightning_diffusion.app.sampling import (
    Arguments,
    as_editor,
    as_generator,
    draw,
    edit,
    parse_arguments,
    parse_early,
)
from lightning_diffusion.checkpoints.loading import assembled
from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.configuration.arguments import at_least
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.diffusion.editing.base import Editing
from lightning_diffusion.models.contracts import Editor, Generator
from lightning_diffusion.runs.pictures import grid, square_columns, write_png
from lightning_diffusion.system.files import make_folder, writable, write
from lightning_diffusion.system.memory import check_fits
from lightning_diffusion.training.devices import prepare_for_inference, usable


def main(config: DictConfig) -> None:
    """Write a picture (grid.png, or strip.png for an edit) and samples.npz to output_dir."""
    with config_errors():
        early = parse_early(config)
        at_least(1, num_samples=early.num_samples, batch_size=early.batch_size)
        writable(Path(str(early.output_dir)), "output_dir")
        device = usable(early.device)
        file = early.read()
        arguments = parse_arguments(config, file)
        model = apply_drawing(assembled(file, arguments.trust).model, arguments)
        how = describe(model, arguments.sampler, arguments.guidance)
        prepare_for_inference(model, device, arguments.precision, arguments.compile)
        if arguments.edit is not None:
            editor, editing = as_editor(model), arguments.edit.make()
            inputs = read_inputs(arguments.images, arguments.label, arguments.mask, editing, model)
            editor.check_edit(editing, len(inputs.pictures) // editing.num_variants)
        elif arguments.images is not None or arguments.mask is not None:
            raise ConfigError("images: no edit is chosen; give edit=inpaint, image_to_image, invert or interpolate")
        else:
            generator = as_generator(model)
            check_fits("num_samples", arguments.num_samples, 4 * math.prod(model.shape))
            condition = _condition(arguments, generator)

    output_dir = Path(str(arguments.output_dir))  # it can refer to the run's own sampler
    if arguments.edit is not None:
        _edit(editor, editing, inputs, arguments.seed, how, output_dir)
    else:
        _draw(generator, condition, arguments, how, output_dir)


def _draw(model: Generator, condition: Condition | None, arguments: Arguments, how: str, output_dir: Path) -> None:
    N = arguments.num_samples
    drawn = draw(model, condition, N, arguments.batch_size, arguments.seed)
    columns = square_columns(N, model.num_classes if arguments.label is None else None)
    _write(output_dir, "grid.png", grid(drawn, columns), drawn, condition)
    show(f"{N} samples by {how}: {output_dir}/grid.png, {output_dir}/samples.npz")


def _edit(model: Editor, editing: Editing, inputs: EditInputs, seed: int, how: str, output_dir: Path) -> None:
    columns = edit(model, editing, inputs, seed)
    results = [images for name, images in columns.items() if name not in editing.inputs]
    condition = inputs.condition
    if condition is not None:
        condition = Condition.cat([condition[: len(results[0])]] * len(results))
    _write(output_dir, "strip.png", strip(columns, editing), torch.cat(results), condition)
    by = f" by {how}" if editing.takes_sampler else ""
    show(f"{', '.join(columns)}{by}: {output_dir}/strip.png; {output_dir}/samples.npz")


def _write(output_dir: Path, name: str, picture: Tensor, images: Tensor, condition: Condition | None) -> None:
    """Write the picture, and samples.npz with images, uint8 N×H×W×C, and the labels of a conditional model."""
    make_folder(output_dir)
    arrays = {"images": images.permute(0, 2, 3, 1).numpy()}
    if condition is not None and condition.label is not None:
        arrays["labels"] = condition.label.numpy()
    write(output_dir / "samples.npz", lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    write_png(output_dir / name, picture)


def _condition(arguments: Arguments, model: Generator) -> Condition | None:
    if arguments.label is None:
        return model.conditions_in_turn(range(arguments.num_samples))
    return same_label(arguments.label, arguments.num_samples, model.num_classes)
