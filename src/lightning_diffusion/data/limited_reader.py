"""Reading what a header promises and no more: headers lie, and a small file may unpack to a machineful."""

import math
import zipfile
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import cast

# Images hardly compress. What unpacks to more than ENOUGH bytes and to more than RATIO times its own size is a bomb.
ENOUGH = 3 * 2**26
RATIO = 20
CHUNK = 2**16


def most(path: Path) -> int:
    """The bytes that a file may unpack to."""
    return max(ENOUGH, RATIO * path.stat().st_size)


def read_promised(file: BufferedIOBase, shape: Sequence[int], limit: int) -> bytearray:
    """The file's remaining bytes, as many as its header promises; nothing is allocated for a promise beyond `limit`.

    Raises:
        ValueError: a promise of nothing or beyond the limit, fewer bytes or more.
    """
    count = math.prod(shape)
    if not 0 < count <= limit or min(shape) < 0:
        raise ValueError(f"its header promises {'×'.join(map(str, shape))} bytes; 1 to {limit:,} are read")
    data = bytearray(count)
    view, held = memoryview(data), 0
    while held < count and (read := file.readinto(view[held : held + CHUNK])):
        held += read
    view.release()
    if held < count:
        raise ValueError(f"holds {held} bytes where its header promises {count}")
    if file.read(1):  # to the very end, where the checksum of a compressed stream is
        raise ValueError(f"holds more than the {count} bytes that its header promises")
    return data


class LimitedReader:
    """A file that gives no more than `left` bytes: what an archive says about itself shall not fill the memory."""

    def __init__(self, file: BufferedIOBase, left: int) -> None:
        self.file, self.left = file, left
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        data = self.file.read(count if 0 <= count <= self.left else self.left + 1)
        self.left -= max(len(data), 1)  # at the end of the file too, where some would ask forever
        if self.left < 0:
            raise ValueError("what it says about its content is too long")
        return data


def open_member(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> zipfile.ZipExtFile:
    """Raises ValueError for an encrypted member, and for a compression that cannot be undone a piece at a time."""
    if member.flag_bits & 1:
        raise ValueError("encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("compressed by another method than deflate")
    return cast(zipfile.ZipExtFile, file.open(member))
