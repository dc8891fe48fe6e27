"""Reads numpy's .npy and .npz files, only arrays of plain numbers: no code in them is executed."""

import contextlib
import sys
import zipfile
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from lightning_diffusion.data.limited_reader import CHUNK, LimitedReader, most, open_member, read_promised

ARRAYS = (".npy", ".npz")  # endings of files with arrays
NUMBERS = "uifb"  # numpy's letters of all kinds of numbers


def read_npz(path: Path, kinds: dict[str, str]) -> dict[str, np.ndarray]:
    """The arrays of the file that `kinds` names.

    Args:
        kinds: for each name, the letters of the allowed kinds of numbers: "u" unsigned, "i", "f", "b".

    Raises:
        Exception: nearly any, if the file is damaged or its headers are false, an array has another kind, or all arrays
            together are larger than `limited_reader.most` allows.
    """
    limit = most(path)
    arrays: dict[str, np.ndarray] = {}
    with path.open("rb") as raw, zipfile.ZipFile(source := LimitedReader(raw, 4 * CHUNK)) as file:
        source.left = sys.maxsize
        members = {info.filename: info for info in file.infolist()}
        for name, kind in kinds.items():
            if info := members.get(f"{name}.npy"):
                arrays[name] = _read(file, info, kind, limit)
                limit -= arrays[name].nbytes
    return arrays


def array_shape(path: Path) -> tuple[int, int, int]:
    """(C, H, W) of the image in a .npy or .npz file, from its header. Raises as `read_array_image` does."""
    with _one_array(path) as (file, name):
        *sides, channels = _image_shape(*_header(file, name, NUMBERS))
        return channels, sides[0], sides[1]


def read_array_image(path: Path, limit: int) -> np.ndarray:
    """The one array in a .npy or .npz file, uint8 H×W×C or H×W -> (H, W, C).

    Args:
        limit: bytes of the largest array that is read.

    Raises:
        Exception: nearly any, if the file is damaged, holds several arrays or another kind, or is too large.
    """
    with _one_array(path) as (file, name):
        H, W, C = _image_shape(*_header(file, name, NUMBERS))
        return np.frombuffer(read_promised(file, (H, W, C), min(most(path), limit)), np.uint8).reshape(H, W, C)


@contextlib.contextmanager
def _one_array(path: Path) -> Iterator[tuple[BufferedIOBase, str]]:
    """The open .npy file, or the only member of a .npz file, with its name."""
    with path.open("rb") as raw:
        if path.suffix.lower() == ".npy":
            yield raw, path.name
            return
        with zipfile.ZipFile(source := LimitedReader(raw, 4 * CHUNK)) as file:
            source.left = sys.maxsize
            members = file.infolist()
            if len(members) != 1:
                raise ValueError(f"it holds {len(members)} arrays; one image with the shape H×W×C is needed")
            with open_member(file, members[0]) as member:
                yield member, members[0].filename


def _image_shape(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int]:
    """(H, W, C) of an image's array."""
    if dtype != np.uint8 or len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"it holds {'×'.join(map(str, shape))} {dtype}; H×W×C or H×W uint8 is needed")
    return shape[0], shape[1], (*shape, 1)[2]


def _read(file: zipfile.ZipFile, info: zipfile.ZipInfo, kinds: str, limit: int) -> np.ndarray:
    with open_member(file, info) as member:
        shape, dtype = _header(member, info.filename, kinds)
        try:
            data = read_promised(member, (*shape, dtype.itemsize), limit)
        except ValueError as error:
            raise ValueError(f"{info.filename}: {error}") from error
    return np.frombuffer(data, dtype).reshape(shape)


def _header(file: BufferedIOBase, name: str, kinds: str) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the type of the array in an open .npy file."""
    if npy.read_magic(file) != (1, 0):  # later versions are for structures, with headers of any length
        raise ValueError(f"{name} is not in numpy's format 1.0")
    shape, fortran, dtype = npy.read_array_header_1_0(file)
    if dtype.kind not in kinds or (fortran and len(shape) > 1):
        raise ValueError(f"{name} holds {dtype}{' in Fortran order' if fortran else ''}")
    return shape, dtype
