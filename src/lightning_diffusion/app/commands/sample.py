"""Samples, or edited pictures, of a trained model."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from lightning_diffusion.app import drawing
from lightning_diffusion.app.cli import mistakes
from lightning_diffusion.app.drawing import as_trained, check_rest, drawn_so, option_of, told
from lightning_diffusion.app.edit_inputs import GivenPictures, one_class, read_given, strip
from lightning_diffusion.checkpoints.loading import ModelFile, assembled, read_either
from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.configuration.build import ConfigError, Text, at_least, build, check
from lightning_diffusion.diffusion.editing.base import Editing
from lightning_diffusion.metrics.batches import shard_batches
from lightning_diffusion.models.contracts import Editor, Generator
from lightning_diffusion.runs.pictures import grid, square_columns, write_png
from lightning_diffusion.system.console import console
from lightning_diffusion.system.files import make_folder, writable, write
from lightning_diffusion.system.memory import check_fits
from lightning_diffusion.system.progress import Phase
from lightning_diffusion.training.devices import prepare_for_inference, usable

SLOTS: dict[str, Any] = {  # what the keys of conf/sample.yaml hold
    "ckpt_path": Text | None, "pretrained": Text | None, "trust": list[str], "num_samples": int, "seed": int,
    "label": int | None, "batch_size": int, "device": str, "precision": Any, "compile": Any, "output_dir": Text,
    "edit": Editing | None, "images": list[Text] | None, "mask": Text | None, **drawing.SLOTS,
}  # fmt: skip


def main(config: DictConfig) -> None:
    """Writes a picture (grid.png, or an edit's strip.png) and samples.npz into output_dir."""
    with mistakes():
        rest = check_rest(config, SLOTS)
        at_least(rest, 1, "num_samples", "batch_size")
        writable(Path(str(rest["output_dir"])), "output_dir")
        device = usable(rest["device"])
        file = read_either(rest)
        plain = _settled(config, file)
        model = drawn_so(assembled(file, plain["trust"]).model, plain)
        how = told(model, plain)
        prepare_for_inference(model, device, plain["precision"], plain["compile"])
        if "edit" in plain:
            if not isinstance(model, Editor):
                raise ConfigError(f"edit: a {type(model).__name__} cannot edit; leave it out")
            editing: Editing = build(plain, "edit")
            given = read_given(plain, editing, model)
            model.check_edit(editing, len(given.pictures) // editing.num_variants)
        elif plain["images"] is not None or plain["mask"] is not None:
            raise ConfigError(
                "images: say what to do with them; give edit=inpaint, image_to_image, invert or interpolate"
            )
        elif not isinstance(model, Generator):
            raise ConfigError(f"ckpt_path: a {type(model).__name__} draws no samples")
        else:
            check_fits("num_samples", plain["num_samples"], 4 * math.prod(model.shape))
            condition = _condition(plain, model)

    if isinstance(model, Editor) and "edit" in plain:
        _edit(model, editing, given, plain["seed"], how, Path(str(plain["output_dir"])))
    elif isinstance(model, Generator):
        _draw(model, condition, plain, how)


def _settled(config: DictConfig, file: ModelFile) -> dict[str, Any]:
    """The checked configuration, with the run's own way to draw where no word chooses another.

    An edit that needs a deterministic sampler takes the program's default where the run's own is not.
    """
    plain = check(as_trained(config, file), SLOTS)
    if "edit" not in plain or not build(plain, "edit").needs_latents or not build(plain, "sampler").stochastic:
        return plain
    instead = check(as_trained(config, file, without=["sampler"]), SLOTS)
    if instead["sampler"] != plain["sampler"]:
        own, default = (option_of("sampler", found["sampler"]) for found in (plain, instead))
        _tell(f"sampler={default}: this edit needs a deterministic sampler, which the run's own, {own}, is not")
    return instead


def _draw(model: Generator, condition: Condition | None, plain: dict[str, Any], how: str) -> None:
    N, output_dir = plain["num_samples"], Path(str(plain["output_dir"]))
    batches, images = shard_batches(N, plain["batch_size"]), []
    with Phase(f"drawing {N:,} samples", model.num_steps * len(batches)) as phase:
        for batch in batches:
            asked = None if condition is None else condition[batch.start : batch.stop]
            images.append(model.draw(batch, asked, plain["seed"], phase.advance).images)
    columns = square_columns(N, model.num_classes if plain["label"] is None else None)
    drawn = torch.cat(images)
    _write(output_dir, "grid.png", grid(drawn, columns), drawn, condition)
    _tell(f"{N} samples by {how}: {output_dir}/grid.png, {output_dir}/samples.npz")


def _edit(model: Editor, editing: Editing, given: GivenPictures, seed: int, how: str, output_dir: Path) -> None:
    with Phase("editing") as phase:
        columns = model.edit(editing, *given, seed, phase.advance)
    results = [images for name, images in columns.items() if name not in editing.inputs]
    condition = given.condition
    if condition is not None:
        condition = Condition.cat([condition[: len(results[0])]] * len(results))
    _write(output_dir, "strip.png", strip(columns, editing), torch.cat(results), condition)
    by = f" by {how}" if editing.takes_sampler else ""
    _tell(f"{', '.join(columns)}{by}: {output_dir}/strip.png; {output_dir}/samples.npz")


def _write(output_dir: Path, name: str, picture: Tensor, images: Tensor, condition: Condition | None) -> None:
    """samples.npz holds images, uint8 N×H×W×C, and labels where the model is conditional."""
    make_folder(output_dir)
    arrays = {"images": images.permute(0, 2, 3, 1).numpy()}
    if condition is not None and condition.label is not None:
        arrays["labels"] = condition.label.numpy()
    write(output_dir / "samples.npz", lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    write_png(output_dir / name, picture)


def _tell(text: str) -> None:
    console().print(text, soft_wrap=True)


def _condition(plain: dict[str, Any], model: Generator) -> Condition | None:
    if plain["label"] is None:
        return model.conditions_in_turn(range(plain["num_samples"]))
    return one_class(plain["label"], plain["num_samples"], model.num_classes)
