"""Checkpoints as files: which one, whether it is intact, and what is in it."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.mistake import Mistake
from src.training.durable import is_intact
from src.trusted_targets import require_plain

AVERAGED = "ema.model."


def averaged_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The denoiser's state dict, as the moving average has it."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(AVERAGED): value for name, value in state.items() if name.startswith(AVERAGED)}


def read_checkpoint(path: str | Path, key: str = "ckpt_path") -> dict[str, Any]:
    """The file's content, weights and plain containers alone: nothing in it is executed.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a checkpoint of this project.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(intact(path, key), map_location="cpu", weights_only=True)
        checkpoint["hyper_parameters"]["denoiser"]
        if not all(isinstance(name, str) and isinstance(w, Tensor) for name, w in checkpoint["state_dict"].items()):
            raise TypeError
    except (OSError, Damaged):
        raise
    except Exception as error:
        raise ValueError(f"{key}={path}: not a readable checkpoint of this project ({type(error).__name__})") from error
    try:
        require_plain(checkpoint["hyper_parameters"])
    except Mistake as error:
        raise ValueError(f"{key}={path}: its configuration {error}") from error
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
