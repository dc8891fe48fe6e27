"""Predicted masks of pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig
from torch import Tensor

from lightning_diffusion.app.cli import config_errors
from lightning_diffusion.app.output import show
from lightning_diffusion.app.prediction import MaskPredictor, pictures
from lightning_diffusion.checkpoints.loading import assembled
from lightning_diffusion.checkpoints.model_file import read
from lightning_diffusion.codecs.masks import overlaid
from lightning_diffusion.configuration.arguments import Text, parse
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.data.decoding import UnreadableImage, check_image
from lightning_diffusion.data.image_files import NAMED
from lightning_diffusion.runs.pictures import grid, square_columns, write_mask, write_png
from lightning_diffusion.system.files import writable
from lightning_diffusion.system.progress import Phase
from lightning_diffusion.training.devices import prepare_for_inference, usable

SHOWN = 64  # pictures in the grid


@dataclass(frozen=True)
class Arguments:
    """The keys of conf/predict.yaml."""

    ckpt_path: Text
    trust: list[str]
    images: Text
    unreadable: Literal["stop", "skip"]
    device: str
    precision: object  # `prepare_for_inference` checks these two
    compile: object
    output_dir: Text


def main(config: DictConfig) -> None:
    """Write masks/NAME.png and overlays/NAME.png for each picture, and a grid, predictions.png, to output_dir."""
    with config_errors():
        arguments = parse(config, Arguments)
        output_dir = Path(str(arguments.output_dir))
        writable(output_dir, "output_dir")
        if output_dir.exists() and any(output_dir.iterdir()):
            raise ConfigError(f"output_dir={output_dir}: not empty; give a new folder")
        device = usable(arguments.device)
        files = pictures(Path(str(arguments.images)).expanduser())
        model = assembled(read(str(arguments.ckpt_path), "ckpt_path", arguments.trust), arguments.trust).model
        predict = MaskPredictor(model)
        if arguments.unreadable == "stop":
            _check(files, predict, arguments.images)
        prepare_for_inference(model, device, arguments.precision, arguments.compile)
    tiles, failed = _predict(files, predict, arguments, output_dir)
    if failed:
        named = ", ".join(failed[:NAMED]) + (f" and {len(failed) - NAMED} more" if len(failed) > NAMED else "")
        show(f"images={arguments.images}: {len(failed)} of {len(files)} images are unreadable, left out: {named}")
    if not tiles:
        raise ConfigError(f"images={arguments.images}: no readable image; give others")
    write_png(output_dir / "predictions.png", grid(torch.stack(tiles), max(1, square_columns(len(tiles)) // 2)))
    count = len(files) - len(failed)
    show(f"{count} mask{'s' * (count != 1)}: {output_dir}/masks, {output_dir}/overlays, {output_dir}/predictions.png")


def _check(files: dict[str, Path], predict: MaskPredictor, images: Text) -> None:
    """Raise ConfigError for the first file whose header shows that it cannot be read."""
    for path in files.values():
        try:
            check_image(path, predict.shape[0])
        except UnreadableImage as error:
            raise _unreadable(error, images) from error


def _predict(
    files: dict[str, Path], predict: MaskPredictor, arguments: Arguments, output_dir: Path
) -> tuple[list[Tensor], list[str]]:
    """Write the mask and the overlay of each file. Returns the tiles of the first ones, and the unreadable files."""
    tiles: list[Tensor] = []
    failed = []
    with Phase("predicting masks", len(files), "image") as phase:
        for name, path in files.items():
            try:
                found = predict(path)
            except UnreadableImage as error:
                if arguments.unreadable == "stop":
                    raise _unreadable(error, arguments.images) from error
                failed.append(path.name)
                continue
            write_mask(output_dir / "masks" / f"{name}.png", found.mask, predict.num_classes)
            overlay = overlaid(found.image[None], found.mask[None], predict.num_classes)[0]
            write_png(output_dir / "overlays" / f"{name}.png", overlay)
            tiles += [found.tile] if len(tiles) < SHOWN else []
            phase.advance()
    return tiles, failed


def _unreadable(error: UnreadableImage, images: Text) -> ConfigError:
    return ConfigError(f"images={images}: {error}, or leave such files out with unreadable=skip")
