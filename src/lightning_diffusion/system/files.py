"""Durable files: after a kill or on a full disk a file is complete, or the one before it is still there."""

import contextlib
import csv
import errno
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

MOST = 2**28  # bytes of the largest file that is read in one piece
BLOCK = 4096  # bytes; even a full disk takes an empty file


class NotWritten(OSError):
    """A file could not be written; the one before it is still there."""


class Unreadable(ValueError):
    """A file is missing or not as expected; the message gives its path and the reason."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a file system error inside the context into NotWritten, with the path and the reason."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise NotWritten(f"{path}: could not be written ({reason})") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path next to `path`. The file made there replaces the one at `path` in one step.

    The caller makes the file and waits until its content is on the disk. Afterwards its name is, too.

    Raises:
        NotWritten: with the path and the reason; nothing of the attempt is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        try:
            temporary.unlink(missing_ok=True)
            yield temporary
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write(path: Path, content: Callable[[IO[bytes]], None]) -> None:
    """Writes a temporary file, waits until it is on the disk, and renames it to `path`.

    Args:
        path: of the file, in a folder that exists.
        content: writes the content into a file opened as "w+b".

    Raises:
        NotWritten: with the path and the reason; nothing of the attempt is left.
    """
    with replacing(path) as temporary, temporary.open("w+b") as file:
        content(file)
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes as `write` does."""

    def fill(file: IO[bytes]) -> None:
        file.write(data)

    write(path, fill)


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, as `write` does; lone surrogates become backslash escapes."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows of cells as CSV; None is an empty cell."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def link(path: Path, target: Path) -> None:
    """Makes `path` a link to its neighbour `target`, in one step. Raises NotWritten."""
    with replacing(path) as temporary:
        temporary.symlink_to(target.name)


def remove_leftovers(folder: Path, *names: str) -> None:
    """Removes the temporary files that killed processes left for files with these names (patterns)."""
    for name in names:
        for path in folder.glob(f".{name}.*"):
            if path.suffix[1:].isdigit():
                path.unlink(missing_ok=True)


def writable(folder: Path, key: str) -> None:
    """Checks that files can be written into a folder, which does not have to exist yet; leaves nothing behind.

    Args:
        key: configuration key of the folder, for the message.

    Raises:
        NotWritten: the folder, or the nearest existing one above it, is not writable or not a folder.
    """
    try:
        existing = _nearest_existing(folder.absolute())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{existing} is not a folder")
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(BLOCK))
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise NotWritten(f"{key}={folder}: cannot be written into ({reason}); choose another folder") from error


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents unless they exist. Raises NotWritten."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritten(f"{folder}: could not be made ({error.strerror})") from error


def open_regular(path: Path) -> IO[bytes]:
    """Opens a regular file for reading. Raises Unreadable for anything else, without blocking."""
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise Unreadable(f"{path}: not a regular file")
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return file


def read_bytes(path: Path, most: int = MOST) -> bytes:
    """The content of a regular file. Pipes and devices, which could block forever, are refused.

    Args:
        most: bytes of the largest file that is accepted.

    Raises:
        Unreadable: a file that is missing, not regular, or too large.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Unreadable(f"{path}: {size:,} bytes, more than the limit of {most:,}")
        try:
            return file.read()
        except OSError as error:
            raise Unreadable(f"{path}: cannot be read ({error.strerror})") from error


def read_text(path: Path, most: int = MOST) -> str:
    """The text of a regular UTF-8 file. Raises Unreadable as `read_bytes` does, and for bytes that are not text."""
    try:
        text = read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path}: not a text file") from error
    if "\0" in text:
        raise Unreadable(f"{path}: not a text file")
    return text


def _nearest_existing(path: Path) -> Path:
    """The path itself or the nearest one above it that exists; a broken link counts."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return _nearest_existing(path.parent)
    return path


def _sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
