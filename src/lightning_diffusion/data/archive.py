"""Unpacks images from an untrusted archive: once, into a single folder, with a limit on the unpacked size."""

import contextlib
import gzip
import hashlib
import os
import shutil
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, NamedTuple

from filelock import FileLock

from lightning_diffusion.data.decoding import is_array_file, is_image_file, reason
from lightning_diffusion.data.limited_reader import CHUNK, LimitedReader, most, open_member
from lightning_diffusion.system.progress import Phase

DEFAULT_CACHE = "~/.cache/lightning-diffusion"
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
INDEX = 5 * 2**22  # largest index of a zip in bytes, read at once: enough for CelebA's 200,000 members
BLOCK = 512  # bytes that each member counts for at least, even an empty one; tar's unit
LONGEST = (255, 1000)  # bytes of a name and of a path; file systems accept no more

Kind = Literal["file", "folder", "other"]


class Member(NamedTuple):
    """size: in bytes, as declared. kind: "other" is a link, a device or a pipe. open: opens the content."""

    name: str
    size: int
    kind: Kind
    open: Callable[[], Any]


def cache_folder(cache_dir: str | None = None) -> Path:
    """cache_dir if given, else $LIGHTNING_DIFFUSION_CACHE if set, else ~/.cache/lightning-diffusion."""
    return Path(cache_dir or os.environ.get("LIGHTNING_DIFFUSION_CACHE") or DEFAULT_CACHE).expanduser()


def unpacked(archive: Path, cache_dir: str | None) -> Path:
    """The folder with the archive's images, named after the content's hash. The first process to need it unpacks it.

    If the archive holds only one folder, and that folder holds class folders, the result is the inner folder. Files
    other than images and arrays are not unpacked.

    Raises:
        ValueError: the archive cannot be read, the folder cannot be written, or a member is refused: it climbs out of
            the folder, has an absolute or impossible name, occurs twice, is a link, a device or encrypted, or unpacks
            to more than `limited_reader.most` allows.
    """
    if not archive.name.lower().endswith(ENDINGS):
        raise ValueError(f"data.root={archive}: neither a folder nor one of {' '.join(ENDINGS)}")
    try:
        folder = cache_folder(cache_dir) / f"images-{_digest(archive)[:24]}"
    except OSError as error:
        raise ValueError(f"data.root={archive}: cannot be read ({reason(error)})") from error
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                with Phase(f"unpacking {archive.name}", unit="file") as phase:
                    _unpack(archive, folder, phase.advance)
    except OSError as error:
        raise ValueError(
            f"data.cache_dir={folder.parent}: cannot be written ({reason(error)}); free some space or choose another"
        ) from error
    while len(inside := list(folder.iterdir())) == 1 and any(path.is_dir() for path in inside[0].glob("*")):
        folder = inside[0]
    return folder


def _unpack(archive: Path, folder: Path, on_file: Callable[[], None]) -> None:
    """Unpack into a temporary folder, then rename it. Remove the remains of a killed process first."""
    beside, total, limit = folder.with_suffix(".partial"), 0, most(archive)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        for member in _members(archive):
            with _refused(archive, member):
                path = _inside(member)
                total += max(member.size, BLOCK)
                if member.size < 0 or total > limit:
                    raise ValueError(f"makes it more than {limit:,} bytes, too many for an archive of this size")
                if member.kind == "file" and (is_image_file(path.name) or is_array_file(path.name)):
                    _write(member, beside / path)
                    on_file()
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _inside(member: Member) -> Path:
    """The member's path below the folder. Raises ValueError for a path outside the folder or an impossible name."""
    path = PureWindowsPath(member.name)  # understands both separators, and drives
    if member.kind == "other":
        raise ValueError("is a link, a device or a pipe")
    if path.drive or path.root:
        raise ValueError("has an absolute path")
    if ".." in path.parts:
        raise ValueError("climbs out of its folder")
    lengths = max((len(os.fsencode(part)) for part in path.parts), default=0), len(os.fsencode(member.name))
    if any(length > longest for length, longest in zip(lengths, LONGEST, strict=True)):
        raise ValueError("has too long a name")
    if any(ord(character) < 32 for character in member.name):
        raise ValueError("has control characters in its name")
    return Path(*path.parts)


def _write(member: Member, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise ValueError("comes twice") from error
    with file:
        for chunk in _content(member):
            file.write(chunk)


def _content(member: Member) -> Iterator[bytes]:
    """The member's bytes, exactly as many as declared. Raises ValueError if reading fails."""
    left = member.size
    try:
        with member.open() as file:
            while chunk := file.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
    except Exception as error:  # zipfile, tarfile and zlib raise nearly anything on garbage
        raise ValueError(f"cannot be unpacked ({reason(error)})") from error
    if left:
        raise ValueError("is shorter than declared")


def _members(archive: Path) -> Iterator[Member]:
    """All members, in the archive's order. Raises ValueError if reading fails."""
    try:
        yield from (_zipped if archive.name.lower().endswith(".zip") else _tarred)(archive)
    except Exception as error:
        raise ValueError(f"data.root={archive}: not a readable archive ({reason(error)}); fetch it again") from error


def _zipped(archive: Path) -> Iterator[Member]:
    with archive.open("rb") as raw, zipfile.ZipFile(source := LimitedReader(raw, INDEX)) as file:
        source.left = sys.maxsize  # zipfile reads content in small pieces
        for info in file.infolist():
            plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            kind: Kind = "other" if not plain else "folder" if info.is_dir() else "file"
            yield Member(info.filename, info.file_size, kind, partial(open_member, file, info))


def _tarred(archive: Path) -> Iterator[Member]:
    plain = archive.name.lower().endswith(".tar")
    with archive.open("rb") if plain else gzip.open(archive) as raw:
        source: Any = LimitedReader(raw, CHUNK)
        file: Any = tarfile.TarFile(fileobj=source)
        while info := file.next():
            file.members.clear()  # tarfile would keep them all
            kind: Kind = "file" if info.isreg() else "folder" if info.isdir() else "other"
            source.left = max(0, info.size)
            yield Member(info.name, info.size, kind, partial(file.extractfile, info))
            source.left = CHUNK  # for the next header
        raw.seek(file.offset)
        if raw.read(BLOCK) != bytes(BLOCK):  # tarfile takes a damaged header for the end
            raise ValueError("it is truncated, or one of its headers is damaged")


def _digest(archive: Path) -> str:
    with Phase(f"reading {archive.name}"), archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _refused(archive: Path, member: Member) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"data.root={archive}: refused, its member {member.name!r} {reason(error)}; pack the images without it"
        ) from error
