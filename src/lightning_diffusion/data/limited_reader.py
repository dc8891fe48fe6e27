"""Reads no more than a header declares: headers can lie, and a small file can unpack to more than the memory."""

import math
import zipfile
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import cast

# Images hardly compress. A file that unpacks to more than ENOUGH bytes and more than RATIO times its size is a bomb.
ENOUGH = 3 * 2**26
RATIO = 20
CHUNK = 2**16


def most(path: Path) -> int:
    """The largest number of bytes that a file is allowed to unpack to."""
    return max(ENOUGH, RATIO * path.stat().st_size)


def read_promised(file: BufferedIOBase, shape: Sequence[int], limit: int) -> bytearray:
    """The file's remaining bytes, exactly as many as its header declares. No memory is allocated beyond `limit`.

    Raises:
        ValueError: a declared size of 0 or beyond the limit, or one that differs from the real size.
    """
    count = math.prod(shape)
    if not 0 < count <= limit or min(shape) < 0:
        raise ValueError(f"its header declares {'×'.join(map(str, shape))} bytes; 1 to {limit:,} are allowed")
    data = bytearray(count)
    view, held = memoryview(data), 0
    while held < count and (read := file.readinto(view[held : held + CHUNK])):
        held += read
    view.release()
    if held < count:
        raise ValueError(f"holds {held} bytes, but its header declares {count}")
    if file.read(1):  # to the end, which holds the checksum of a compressed stream
        raise ValueError(f"holds more than the {count} bytes that its header declares")
    return data


class LimitedReader:
    """A file that returns no more than `left` bytes, so that an archive's index cannot fill the memory."""

    def __init__(self, file: BufferedIOBase, left: int) -> None:
        self.file, self.left = file, left
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        data = self.file.read(count if 0 <= count <= self.left else self.left + 1)
        self.left -= max(len(data), 1)  # at the end of the file too, where some callers would loop forever
        if self.left < 0:
            raise ValueError("its index is too long")
        return data


def open_member(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> zipfile.ZipExtFile:
    """Open a member. Raises ValueError for an encrypted one, and for any compression but deflate."""
    if member.flag_bits & 1:
        raise ValueError("encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("compressed by another method than deflate")
    return cast(zipfile.ZipExtFile, file.open(member))
