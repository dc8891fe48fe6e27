"""Files that are either whole or not there: what a killed run or a full disk leaves behind is the last good one."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH


class NotSaved(OSError):
    """A file that could not be written; the one that was there before still is."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes every checkpoint, whichever callback saves it, beside its place and then into it, with its SHA-256."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        write(Path(path), lambda file: torch.save(checkpoint, file))


def write(path: Path, content: Callable[[IO[bytes]], None]) -> None:
    """Writes a file and <name>.sha256 beside it.

    The content goes into a temporary file of the same folder, and reaches the disk before the rename that shows it; the
    checksum is in place before it.

    Raises:
        NotSaved: in a line that names the file and the reason; nothing of the attempt is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as file:
            content(file)
            _settle(file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        checksum = temporary.with_suffix(".sha256")
        with checksum.open("w") as text:
            text.write(f"{digest}  {path.name}\n")
            _settle(text)
        os.replace(checksum, checksum_of(path))
        os.replace(temporary, path)
        _settle_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError of a full disk
        for leftover in (temporary, temporary.with_suffix(".sha256")):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise NotSaved(f"{path}: could not be saved ({reason}); earlier checkpoints are as they were") from error


def link(path: Path, target: Path) -> None:
    """Makes `path` point to its neighbour `target`, from one moment to the next."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, path)
    _settle_folder(path.parent)


def is_intact(path: Path) -> bool:
    """Whether a file is the one that was written: True where no checksum lies beside it."""
    path = path.resolve()
    if not path.is_file():
        return False
    if not checksum_of(path).is_file():
        return True
    with path.open("rb") as file:
        return checksum_of(path).read_text().split(" ")[0] == hashlib.file_digest(file, "sha256").hexdigest()


def checksum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _settle(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _settle_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
