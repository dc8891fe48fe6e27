"""What takes long to make, kept between runs under a hash of all that it depends on."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_diffusion.system.files import NotWritten, make_folder, writable, write

Kept = tuple[dict[str, Tensor], dict[str, str]]  # tensors, and words about them


def check_writable(folder: str) -> None:
    """Raises ValueError for a folder that files cannot be written into."""
    try:
        writable(Path(folder).expanduser(), "metrics.cache_dir")
    except NotWritten as error:
        raise ValueError(str(error)) from error


def cached(folder: str, kind: str, key: str, make: Callable[[], Kept]) -> Kept:
    """What `make` gives, made once for each key by whichever process comes first; others wait for its file.

    Args:
        folder: of the files; ~ is the home folder.
        kind: begins the file's name.
        key: everything that the result depends on. The file carries it, and one that carries another, or that
            cannot be read, is made anew.
    """
    path = Path(folder).expanduser() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    check_writable(folder)
    make_folder(path.parent)
    with FileLock(f"{path}.lock"):
        kept = _read(path, key)
        if kept is None:
            tensors, words = make()
            kept = {name: tensor.contiguous() for name, tensor in tensors.items()}, words
            write(path, lambda file: _fill(file, *kept, key))
        return kept


def _fill(file: IO[bytes], tensors: dict[str, Tensor], words: dict[str, str], key: str) -> None:
    try:
        save_file(tensors, file.name, metadata=words | {"key": key})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _read(path: Path, key: str) -> Kept | None:
    try:
        with safe_open(path, "pt") as file:
            words = file.metadata() or {}
            if words.pop("key", None) != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, words  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError):
        return None
