"""The seal of a checkpoint, in the file itself: which save it was, of which step, and the SHA-256 of its bytes.

torch.save writes a zip archive. The seal is the archive's comment, its last bytes, which torch.load skips. It is read
without unpickling anything, and no copy, rename or clock can part it from the file.

    lightning-diffusion 1 counter=0000000012 step=0000004000 sha256=<64 digits> crc32=<8 digits>\\n

The SHA-256 covers every byte before it; the CRC-32 covers the seal, so that a damaged one is recognised on its own.

python -m lightning_diffusion.checkpoints.seal FILE.ckpt …      seals files that torch.save wrote
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
SAVED = "step_*.ckpt"  # a run's own; its links have other names
CHUNK = 2**20


class Seal(NamedTuple):
    """Orders checkpoints: the later save is the greater one."""

    counter: int
    step: int
    sha256: str


def write_sealed(path: Path, content: Callable[[IO[bytes]], None], counter: int, step: int) -> None:
    """Writes a checkpoint as lightning_diffusion.system.files.write does, with its seal.

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
    """The seal at the end of an open file; None where there is none, or a damaged one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - LENGTH))
    match = PATTERN.fullmatch(file.read(LENGTH))
    if match is None or _crc32(match[1]) != match[5]:
        return None
    return Seal(int(match[2]), int(match[3]), match[4].decode())


def seal_of(path: Path) -> Seal | None:
    """The seal of a file; None where there is no such file, or none that can be read."""
    try:
        with open_regular(path) as file:
            return read_seal(file)
    except (Unreadable, OSError):
        return None


def is_intact(file: IO[bytes]) -> bool:
    """Whether every byte of an open file is as its seal says."""
    seal = read_seal(file)
    if seal is None:
        return False
    covered = file.seek(0, os.SEEK_END) - LENGTH + len(HEAD.format(0, 0))
    return _sha256(file, covered) == seal.sha256


def saved(folder: Path) -> dict[Path, Seal]:
    """A run's checkpoints, the newest first: their seals decide, never clocks or names. Without a seal, left out."""
    seals = {path: seal for path in folder.glob(SAVED) if not path.is_symlink() and (seal := seal_of(path))}
    return dict(sorted(seals.items(), key=lambda item: item[1], reverse=True))


def next_counter(folder: Path) -> int:
    """The number of the next save in a folder, from 1."""
    return 1 + max((seal.counter for seal in saved(folder).values()), default=0)


def seal(path: Path) -> None:
    """Seals a checkpoint that other means have written, as the newest of its folder. The caller vouches for it.

    Raises:
        ValueError, NotWritten: not a checkpoint, one that was damaged since it was sealed, or no place to write.
    """
    with open_regular(path) as source:
        if read_seal(source) is not None:
            if is_intact(source):
                return
            raise ValueError(f"{path}: damaged, it is not what its SHA-256 says")
        source.seek(0)
        try:
            step = int(torch.load(source, map_location="cpu", weights_only=True)["global_step"])
        except Exception as error:
            raise ValueError(f"{path}: not a checkpoint that can be sealed ({type(error).__name__})") from error
        source.seek(0)
        write_sealed(path, lambda file: shutil.copyfileobj(source, file, CHUNK), next_counter(path.parent), step)


def _append_seal(file: IO[bytes], counter: int, step: int) -> None:
    """Ends a zip archive, open "w+b", with its seal; one that it has already is replaced."""
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
    """Of the first bytes of an open file."""
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
