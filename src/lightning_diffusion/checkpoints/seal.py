"""The seal of a checkpoint, inside the file: the number of the save, its step, and the SHA-256 of its bytes.

torch.save writes a zip archive. The seal is the comment at the end of the archive, which torch.load skips. Reading it
unpickles nothing, and copies, renames and clocks cannot separate it from the file.

    lightning-diffusion 1 counter=0000000012 step=0000004000 sha256=<64 digits> crc32=<8 digits>\\n

The SHA-256 covers every byte before it; the CRC-32 covers the seal, so that a damaged seal is recognised.

python -m lightning_diffusion.checkpoints.seal FILE.ckpt …      seals files written by torch.save
"""

import hashlib
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import torch

from lightning_diffusion.system.files import NotWritten, Unreadable, open_regular, write

HEAD = "lightning-diffusion 1 counter={:010d} step={:010d} sha256="
PATTERN = re.compile(
    rb"(lightning-diffusion 1 counter=(\d{10}) step=(\d{10}) sha256=([0-9a-f]{64})) crc32=([0-9a-f]{8})\n"
)
LENGTH = len(HEAD.format(0, 0)) + 64 + len(" crc32=") + 8 + 1
END = b"PK\x05\x06"  # begins the last 22 bytes of a zip archive, whose last two are the length of a comment
SAVED = "step_*.ckpt"  # the files of a run; its links have other names
CHUNK = 2**20


class Seal(NamedTuple):
    """Orders checkpoints: a later save is greater."""

    counter: int
    step: int
    sha256: str


def write_sealed(path: Path, content: Callable[[IO[bytes]], None], counter: int, step: int) -> None:
    """Writes a checkpoint with its seal, as `system.files.write` does.

    Args:
        content: writes a zip archive, as torch.save does.

    Raises:
        NotWritten: with the path and the reason; nothing of the attempt is left.
    """

    def fill(file: IO[bytes]) -> None:
        content(file)
        _append_seal(file, counter, step)

    write(path, fill)


def read_seal(file: IO[bytes]) -> Seal | None:
    """The seal at the end of an open file, or None if it is missing or damaged."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - LENGTH))
    match = PATTERN.fullmatch(file.read(LENGTH))
    if match is None or _crc32(match[1]) != match[5]:
        return None
    return Seal(int(match[2]), int(match[3]), match[4].decode())


def seal_of(path: Path) -> Seal | None:
    """The seal of a file, or None if the file or its seal cannot be read."""
    try:
        with open_regular(path) as file:
            return read_seal(file)
    except (Unreadable, OSError):
        return None


def is_intact(file: IO[bytes]) -> bool:
    """Whether the bytes of an open file match its seal."""
    seal = read_seal(file)
    if seal is None:
        return False
    covered = file.seek(0, os.SEEK_END) - LENGTH + len(HEAD.format(0, 0))
    return _sha256(file, covered) == seal.sha256


def saved(folder: Path) -> dict[Path, Seal]:
    """A run's sealed checkpoints, the newest first by their seals, never by clocks or names."""
    seals = {path: seal for path in folder.glob(SAVED) if not path.is_symlink() and (seal := seal_of(path))}
    return dict(sorted(seals.items(), key=lambda item: item[1], reverse=True))


def next_counter(folder: Path) -> int:
    """The number of the next save in a folder, counted from 1."""
    return 1 + max((seal.counter for seal in saved(folder).values()), default=0)


def seal(path: Path) -> None:
    """Seals a checkpoint that was written without a seal, as the newest of its folder. The caller vouches for it.

    Raises:
        ValueError: not a checkpoint, or one that was damaged after it was sealed.
        NotWritten: the sealed file cannot be written.
    """
    with open_regular(path) as source:
        if read_seal(source) is not None:
            if is_intact(source):
                return
            raise ValueError(f"{path}: damaged, its SHA-256 does not match")
        source.seek(0)
        try:
            step = int(torch.load(source, map_location="cpu", weights_only=True)["global_step"])
        except Exception as error:
            raise ValueError(f"{path}: not a checkpoint that can be sealed ({type(error).__name__})") from error
        source.seek(0)
        write_sealed(path, lambda file: shutil.copyfileobj(source, file, CHUNK), next_counter(path.parent), step)


def _append_seal(file: IO[bytes], counter: int, step: int) -> None:
    """Appends the seal to a zip archive opened as "w+b", or replaces the seal that it has."""
    size = file.seek(0, os.SEEK_END)
    for comment in (0, LENGTH):
        file.seek(max(0, size - comment - 22))
        end = file.read(22)
        if end.startswith(END) and int.from_bytes(end[20:], "little") == comment:
            break
    else:
        raise OSError("not an archive of torch.save")
    file.truncate(size - comment)
    head = HEAD.format(counter, step)
    file.seek(-2, os.SEEK_END)
    file.write(LENGTH.to_bytes(2, "little") + head.encode())
    sealed = (head + _sha256(file, file.tell())).encode()
    file.seek(-len(head), os.SEEK_END)
    file.write(sealed + b" crc32=" + _crc32(sealed) + b"\n")


def _sha256(file: IO[bytes], length: int) -> str:
    """The SHA-256 of the first `length` bytes of an open file."""
    digest = hashlib.sha256()
    file.seek(0)
    while length and (chunk := file.read(min(length, CHUNK))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest()


def _crc32(data: bytes) -> bytes:
    return f"{zlib.crc32(data):08x}".encode()


if __name__ == "__main__":
    try:
        for name in sys.argv[1:]:
            seal(Path(name))
    except (ValueError, NotWritten) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
