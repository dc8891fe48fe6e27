"""A trained denoiser out of a checkpoint, which carries its own configuration."""

import sys
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from src.data.dataset import ImageDataset
from src.data.module import ImageDataModule, Split
from src.diffusion.denoiser import NetworkDenoiser
from src.targets import refuse_foreign
from src.training.durable import is_intact

AVERAGED = "ema.model."


def load_denoiser(path: str | Path, key: str = "ckpt_path") -> tuple[NetworkDenoiser, dict[str, Any]]:
    """The denoiser with its averaged weights, in evaluation mode, and the configuration that it was trained with.

    Args:
        key: of the configuration, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this project, one that lacks the averaged weights, or one whose configuration
            calls anything outside this project.
    """
    checkpoint = read_checkpoint(path, key)
    config = checkpoint["hyper_parameters"]
    refuse_foreign(config["denoiser"], f"{key}={path}")
    denoiser = instantiate(config["denoiser"], _convert_="all")
    try:
        denoiser.load_state_dict(averaged_weights(checkpoint), strict=True)
    except RuntimeError as error:
        raise ValueError(f"{key}={path}: its averaged weights do not fit its own configuration") from error
    return denoiser.eval().requires_grad_(False), config


def averaged_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The denoiser's state dict, as the moving average has it."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(AVERAGED): value for name, value in state.items() if name.startswith(AVERAGED)}


def load_data(trained: dict[str, Any], other: dict[str, Any] | None = None) -> dict[Split, ImageDataset]:
    """The splits of the data that a model was trained on, or of other data of the same shape and classes.

    Args:
        trained: the data's node in the configuration that it was trained with.
        other: the node of other data, or of the same in another place.

    Raises:
        ValueError, FileNotFoundError: data that is missing, damaged or of another shape, or a node that calls anything
            outside this project.
    """
    if other is not None:
        check_data(other, trained)
    node = other or trained
    if "_target_" not in node:
        raise ValueError("data: missing; a pretrained model does not say what it was trained on, give data=NAME")
    refuse_foreign(node, "ckpt_path")
    datamodule: ImageDataModule = instantiate(node, _convert_="all")
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule.splits


def check_data(data: dict[str, Any], made_for: dict[str, Any]) -> None:
    """Raises ValueError where data differ in shape or classes from those that a model was made for."""
    for key in ("channels", "image_size", "num_classes"):
        if data[key] != made_for[key]:
            wanted = "null" if made_for[key] is None else made_for[key]
            raise ValueError(f"data.{key}={data[key]}: this model was made for {wanted}; set data.{key}={wanted}")


def weaker(ckpt_path: str) -> NetworkDenoiser:
    """The denoiser that autoguidance leads away from: an earlier checkpoint of the run, or one of a smaller network."""
    return load_denoiser(ckpt_path, "guidance.weak.ckpt_path")[0]


def read_checkpoint(path: str | Path, key: str = "ckpt_path") -> dict[str, Any]:
    """The file's content, weights and plain containers alone: nothing in it is executed.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a checkpoint of this project.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(intact(path, key), map_location="cpu", weights_only=True)
        checkpoint["hyper_parameters"]["denoiser"], checkpoint["state_dict"]
    except (OSError, Damaged):
        raise
    except Exception as error:
        raise ValueError(f"{key}={path}: not a readable checkpoint of this project ({type(error).__name__})") from error
    return checkpoint


class Damaged(ValueError):
    """A checkpoint that is not what was written."""


def intact(path: str | Path, key: str = "ckpt_path") -> Path:
    """The file itself; where it leads to a run's newest checkpoint and that is damaged, the newest intact one.

    Raises:
        FileNotFoundError, Damaged: no such file, or not what its SHA-256 says.
    """
    source, path = f"{key}={path}", Path(path)
    if path.name == "last.ckpt" and path.is_symlink():
        return newest_intact(path.parent, source)
    if not path.is_file():
        raise FileNotFoundError(f"{source}: no such file; give a run's checkpoints/last.ckpt")
    if not is_intact(path):
        raise Damaged(f"{source}: damaged, it is not what its SHA-256 says; take another checkpoint of the run")
    return path


def newest_intact(folder: Path, source: str) -> Path:
    """The newest of a run's checkpoints that is as it was written; says so where that is not the last one.

    Raises:
        Damaged: there is none.
    """
    found = sorted(folder.glob("step_*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found:
        if is_intact(path):
            if path != found[0]:
                print(f"{source}: going on from {path.name}", file=sys.stderr)
            return path
        print(f"{source}: {path.name} is damaged", file=sys.stderr)
    raise Damaged(
        f"{source}: {'none of its checkpoints is intact' if found else 'it has no checkpoint yet'}; start anew"
    )


def check_resumable(checkpoint: dict[str, Any], module: nn.Module, source: str) -> None:
    """Raises ValueError where a run cannot go on from a checkpoint: for want of a part, or with another network."""
    for part, what in (
        ("optimizer_states", "optimizer state"),
        ("lr_schedulers", "learning-rate schedule"),
        ("loops", "progress"),
    ):
        if not checkpoint.get(part):
            raise ValueError(f"{source}: it holds no {what}; train its weights further with pretrained=… in its place")
    have = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    need = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if not any(name.startswith(AVERAGED) for name in have):
        raise ValueError(f"{source}: it holds no averaged weights; take a checkpoint that this project has saved")
    for name in sorted(have.keys() ^ need.keys() | {n for n in have.keys() & need.keys() if have[n] != need[n]}):
        raise ValueError(
            f"{source}: {name} is {have.get(name, 'missing')} there and {need.get(name, 'missing')} in this "
            "configuration; give the run's own backbone and objective, or resume=RUN_DIR, which does"
        )
