"""MNIST's file format, read and validated here: some distributions' files have other gzip checksums than torchvision's.

Ref: "The IDX file format", LeCun et al., The MNIST database
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

UINT8 = 0x08


def read_idx(path: Path, ndim: int) -> Tensor:
    """An IDX file of unsigned bytes, plain or gzip by its content -> uint8 tensor of `ndim` dimensions.

    Layout: two zero bytes, type code 0x08, number of dimensions, each size as a big-endian uint32, then the bytes.

    Raises:
        ValueError: a damaged gzip stream, another magic number, or another byte count than the header promises.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error}); fetch it again") from error
    magic = bytes([0, 0, UINT8, ndim])
    if raw[:4] != magic:
        raise ValueError(
            f"{path}: magic number {raw[:4].hex() or 'missing'}, expected {magic.hex()}; not the right file"
        )
    header = 4 + 4 * ndim
    if len(raw) < header:
        raise ValueError(f"{path}: truncated in its header; fetch it again")
    shape = struct.unpack(f">{ndim}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        raise ValueError(
            f"{path}: holds {len(raw) - header} bytes where its header promises {math.prod(shape)}; fetch it again"
        )
    return torch.frombuffer(bytearray(raw[header:]), dtype=torch.uint8).reshape(shape)


def find(root: Path, folders: list[str], name: str) -> Path | None:
    """The first of root/folder/name and root/folder/name.gz that exists."""
    candidates = [root / folder / (name + suffix) for folder in folders for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)
