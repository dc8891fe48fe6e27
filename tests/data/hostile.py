"""Files that are not what they say: images, archives and arrays, built byte by byte where no library would."""

import contextlib
import gzip
import io
import signal
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MB = 2**20
GROWTH = 300  # MB that reading any file may take


@contextlib.contextmanager
def little_time(seconds=60):
    """Fails where what is done inside waits, for the other end of a pipe for instance."""

    def stop(signum, frame):
        raise TimeoutError(f"more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def little_memory(most=GROWTH):
    """Fails if the code inside needs more than `most` MB beyond the memory that the process already had."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        pytest.skip("the peak of this process's memory cannot be measured here")
    before = _kilobytes("VmRSS")
    yield
    grown = (_kilobytes("VmHWM") - before) / 1024
    assert grown < most, f"{grown:.0f} MB more"


def _kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def tree(folder):
    """Every path below it, with the content of files."""
    return {path: path.read_bytes() if path.is_file() and not path.is_symlink() else None for path in folder.rglob("*")}


def saved(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def image(array, mode=None):
    return Image.fromarray(np.asarray(array, np.uint8), mode)


def png(width, height, depth, colour, rows, *chunks):
    """A handmade PNG: `rows` are its bytes before compression, or how many zeros; `chunks` precede its pixels."""
    packed = zeros(rows) if isinstance(rows, int) else zlib.compress(rows)
    header = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def zeros(count):
    """`count` zero bytes, compressed without ever being whole."""
    packer = zlib.compressobj()
    pieces = [packer.compress(bytes(min(MB, count - start))) for start in range(0, count, MB)]
    return b"".join(pieces) + packer.flush()


SMALL = saved(Image.new("RGB", (8, 8), (9, 9, 9)))
SIZE = len(SMALL)


def zipped(*names, content=SMALL, contents=None, compression=zipfile.ZIP_DEFLATED, mode=None):
    """A .zip of members with that content, or with their own; two of the same name are two members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names or contents:
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it stands, with its backslashes and control characters
            info.compress_type, info.external_attr = compression, (mode or stat.S_IFREG | 0o644) << 16
            archive.writestr(info, contents[name] if contents else content)
    return file.getvalue()


def tarred(*members, packed=True, end=True):
    """A .tar.gz or .tar of members: each a name, or a TarInfo with the content after its header or None."""
    raw = b""
    for member in members:
        info, content = (tar_info(member), SMALL) if isinstance(member, str) else member
        raw += info.tobuf(tarfile.GNU_FORMAT)
        raw += (content or b"") + bytes(-len(content or b"") % 512)
    raw += bytes(1024) if end else b""
    return gzip.compress(raw, 1) if packed else raw


def tar_info(name, size=SIZE, type=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, type, link
    return info


def npz(**members):
    """An .npz whose members are these bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(shape, content=b"", dtype="|u1"):
    """An .npy file: a header that promises `shape`, and what follows."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content
