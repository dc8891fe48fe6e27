"""Reads MNIST's file format. torchvision rejects the files of some distributions, whose gzip checksums differ.

Ref: "The IDX file format", LeCun et al., The MNIST database
"""

import gzip
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path

import torch
from torch import Tensor

from lightning_diffusion.data.limited_reader import most, read_promised

UINT8 = 0x08


def read_idx(path: Path, ndim: int) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or gzip, as a uint8 tensor of `ndim` dimensions.

    Layout: two zero bytes, type code 0x08, number of dimensions, each size as a big-endian uint32, then the bytes.
    A damaged gzip stream fails its own checksum. torchvision checks the published checksums when it downloads.

    Raises:
        ValueError: an unreadable file, a damaged gzip stream, a wrong magic number, or a header that does not match the
            number of bytes or declares more than `limited_reader.most` allows.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            return _read(file, ndim, most(path))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}; fetch it again") from error


def _read(file: BufferedIOBase, ndim: int, limit: int) -> Tensor:
    magic, found = bytes([0, 0, UINT8, ndim]), file.read(4)
    if found != magic:
        raise ValueError(f"magic number {found.hex() or 'missing'}, expected {magic.hex()}: not the right file")
    header = file.read(4 * ndim)
    if len(header) < 4 * ndim:
        raise ValueError("truncated in its header")
    shape = struct.unpack(f">{ndim}I", header)
    return torch.frombuffer(read_promised(file, shape, limit), dtype=torch.uint8).reshape(shape)


def find(root: Path, folders: list[str], name: str) -> Path | None:
    """The first of root/folder/name and root/folder/name.gz that exists."""
    candidates = [root / folder / (name + suffix) for folder in folders for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)
