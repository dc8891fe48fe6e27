"""Samples or edited pictures of a trained model."""

import math
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from lightning_diffusion.app.cli import config_errors
from lightning_diffusion.app.drawing import apply_drawing, describe
from lightning_diffusion.app.edit_inputs import EditInputs, read_inputs, same_label, strip, with_label
from lightning_diffusion.app.output import show
from lightning_diffusion.app.sampling import (
    Arguments,
    as_editor,
    as_generator,
    conditions,
    draw,
    edit,
    given_condition,
    held_out_conditions,
    parse_arguments,
    parse_early,
)
from lightning_diffusion.checkpoints.loading import assembled
from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.configuration.arguments import at_least
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.data.conditions import panels
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.diffusion.editing.base import Editing
from lightning_diffusion.models.contracts import Editor, Generator
from lightning_diffusion.runs.pictures import columns_for, grid, square_columns, with_texts, write_png
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
        trained = assembled(file, arguments.trust)
        model = apply_drawing(trained.model, arguments)
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
            given = given_condition(generator, arguments, arguments.num_samples)
            held_out = held_out_conditions(trained, arguments.data, arguments.trust, given)
            condition = _condition(arguments, generator, given, held_out)

    output_dir = Path(str(arguments.output_dir))  # it can refer to the run's own sampler
    if arguments.edit is not None:
        _edit(editor, editing, inputs, arguments.seed, how, output_dir)
    else:
        _draw(generator, condition, held_out, arguments, how, output_dir)


def _draw(
    model: Generator,
    condition: Condition | None,
    held_out: ImageDataset | None,
    arguments: Arguments,
    how: str,
    output_dir: Path,
) -> None:
    N = arguments.num_samples
    drawn, source = draw(model, condition, N, arguments.batch_size, arguments.seed), model.condition_source
    texts = None if source is None or condition is None else source.texts(condition)
    if source is not None:
        shown = drawn if held_out is None else panels(held_out, source, drawn[None])
        shown = shown if texts is None else with_texts(shown, texts)
        picture = grid(shown, columns_for(shown))
    else:
        picture = grid(drawn, square_columns(N, model.num_classes if arguments.label is None else None))
    _write(output_dir, "grid.png", picture, drawn, condition, texts)
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


def _write(
    output_dir: Path,
    name: str,
    picture: Tensor,
    images: Tensor,
    condition: Condition | None,
    texts: list[str] | None = None,
) -> None:
    """Write the picture, and samples.npz with images, uint8 N×H×W×C, and the labels, the attributes (N, K) or the
    captions of a conditional model."""
    make_folder(output_dir)
    arrays = {"images": images.permute(0, 2, 3, 1).numpy()}
    if condition is not None and condition.label is not None:
        arrays["labels"] = condition.label.numpy()
    if condition is not None and condition.attributes is not None:
        arrays["attributes"] = condition.attributes[:, :-1].numpy()
    if condition is not None and condition.tokens is not None and texts is not None:
        arrays["captions"] = np.array(texts)
    write(output_dir / "samples.npz", lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    write_png(output_dir / name, picture)


def _condition(
    arguments: Arguments, model: Generator, given: Condition | None, held_out: ImageDataset | None
) -> Condition | None:
    N, label = arguments.num_samples, arguments.label
    condition = conditions(model, N, given, held_out)
    if label is None:
        return condition
    return with_label(condition, same_label(label, N, model.num_classes))
