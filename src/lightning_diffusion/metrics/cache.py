"""A cache of slow results, kept between runs under a hash of everything that they depend on."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_diffusion.system.files import NotWritten, make_folder, writable, write

Kept = tuple[dict[str, Tensor], dict[str, str]]  # tensors, and texts about them


def check_writable(folder: str) -> None:
    """Raises ValueError for a folder that files cannot be written into."""
    try:
        writable(Path(folder).expanduser(), "metrics.cache_dir")
    except NotWritten as error:
        raise ValueError(str(error)) from error


def cached(folder: str, kind: str, key: str, make: Callable[[], Kept]) -> Kept:
    """The result of `make`, which the first process computes once for each key while others wait for its file.

    Args:
        folder: of the files; ~ is the home folder.
        kind: begins the file's name.
        key: everything that the result depends on. The file contains it; a file with another key, or an unreadable one,
            is replaced.
    """
    path = Path(folder).expanduser() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    check_writable(folder)
    make_folder(path.parent)
    with FileLock(f"{path}.lock"):
        kept = _read(path, key)
        if kept is None:
            tensors, texts = make()
            kept = {name: tensor.contiguous() for name, tensor in tensors.items()}, texts
            write(path, lambda file: _fill(file, *kept, key))
        return kept


def _fill(file: IO[bytes], tensors: dict[str, Tensor], texts: dict[str, str], key: str) -> None:
    try:
        save_file(tensors, file.name, metadata=texts | {"key": key})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _read(path: Path, key: str) -> Kept | None:
    try:
        with safe_open(path, "pt") as file:
            texts = file.metadata() or {}
            if texts.pop("key", None) != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, texts  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError):
        return None
