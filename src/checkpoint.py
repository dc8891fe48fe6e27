"""A trained denoiser out of a checkpoint, which carries its own configuration."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from torch import Tensor, nn

from src.checkpoints.folder import Damaged, intact, newest_intact, read_checkpoint  # noqa: F401
from src.data.dataset import ImageDataset
from src.data.module import ImageDataModule, Split
from src.diffusion.denoiser import NetworkDenoiser
from src.targets import refuse_foreign

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
