"""The checkpoints in a run's folder: finding the newest intact one, and reading it."""

import sys
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lightning_diffusion.checkpoints.format import KEY, check_version, upgrade_checkpoint
from lightning_diffusion.checkpoints.seal import SAVED, is_intact, read_seal, saved
from lightning_diffusion.system.files import Unreadable, open_regular

LAST, BEST = "last.ckpt", "best.ckpt"  # links


class Damaged(ValueError):
    """A checkpoint differs from what was written."""


def read_checkpoint(path: str | Path, key: str = "ckpt_path") -> dict[str, Any]:
    """The content of an intact file: weights and plain containers only. Nothing in it is executed.

    Args:
        path: of the file. A run's last.ckpt means the newest intact checkpoint in its folder.
        key: configuration key of the path, for messages.

    Raises:
        FileNotFoundError: no such file.
        Damaged: the file is not proven to be intact.
        ValueError: not a checkpoint of this project.
    """
    source = f"{key}={path}"
    checkpoint = load(locate(path, key), source)
    try:
        checkpoint["hyper_parameters"]["model"]
        if not all(isinstance(key, str) and isinstance(w, Tensor) for key, w in checkpoint["state_dict"].items()):
            raise TypeError
    except Exception as error:
        raise _foreign(source, error) from error
    return checkpoint


def load(path: Path, source: str, map_location: Any = "cpu") -> Any:
    """Loads exactly the bytes that were verified, from one open file."""
    with _opened(path, source) as file:
        _check(file, path, source)
        file.seek(0)
        try:
            content = torch.load(file, map_location=map_location, weights_only=True)
        except Exception as error:
            raise _foreign(source, error) from error
    if isinstance(content, dict):
        check_version(content.get(KEY, 1), source)
        upgrade_checkpoint(content)
    return content


def locate(path: str | Path, key: str = "ckpt_path") -> Path:
    """The file itself, or, for a run's link last.ckpt, the newest intact checkpoint in its folder.

    Raises:
        FileNotFoundError: no such file.
        Damaged: no checkpoint of the folder is intact.
    """
    source, path = f"{key}={path}", Path(path)
    if path.name == LAST and path.is_symlink():
        return newest_intact(path.parent, source)
    if not path.is_file():
        raise FileNotFoundError(f"{source}: no such file; choose a run's checkpoints/last.ckpt")
    return path


def intact(path: str | Path, key: str = "ckpt_path") -> Path:
    """The file that `locate` finds, verified. Raises Damaged if it is not intact."""
    found = locate(path, key)
    with _opened(found, f"{key}={path}") as file:
        _check(file, found, f"{key}={path}")
    return found


def newest_intact(folder: Path, source: str) -> Path:
    """The newest intact checkpoint of a run; damaged ones are reported on stderr.

    Raises:
        Damaged: no checkpoint is intact.
    """
    found = sorted(folder.glob(SAVED))
    sealed = saved(folder)
    damaged = [path for path in found if path not in sealed]
    for path in sealed:
        if _is_intact(path):
            for other in damaged:
                print(f"{source}: {other.name} is damaged", file=sys.stderr)
            if damaged:
                print(f"{source}: continuing from {path.name}", file=sys.stderr)
            return path
        damaged.append(path)
    raise Damaged(
        f"{source}: {'none of its checkpoints is intact' if found else 'it has no checkpoint yet'}; start a new run"
    )


def newest(folder: Path) -> Path | None:
    """The newest intact checkpoint of a run, or None."""
    return next(filter(_is_intact, saved(folder)), None)


def _is_intact(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return is_intact(file)
    except (Unreadable, OSError):
        return False


def _opened(path: Path, source: str) -> IO[bytes]:
    try:
        return open_regular(path)
    except Unreadable as error:
        raise Damaged(f"{source}: {error}") from error


def _check(file: IO[bytes], path: Path, source: str) -> None:
    """Raises Damaged unless the seal proves that the file is intact."""
    if is_intact(file):
        return
    if read_seal(file) is not None:
        raise Damaged(f"{source}: damaged, its SHA-256 does not match; choose another checkpoint of the run")
    raise Damaged(
        f"{source}: damaged, or not a readable checkpoint of this project: it has no seal; choose another one, or, "
        f"if you trust the file, seal it: python -m lightning_diffusion.checkpoints.seal {path}"
    )


def _foreign(source: str, error: Exception) -> ValueError:
    return ValueError(f"{source}: not a readable checkpoint of this project ({type(error).__name__})")
