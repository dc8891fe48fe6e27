"""Reads numpy's .npz files, only arrays of plain numbers: no code in them is executed."""

import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from lightning_diffusion.data.limited_reader import CHUNK, LimitedReader, most, open_member, read_promised


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


def _read(file: zipfile.ZipFile, info: zipfile.ZipInfo, kinds: str, limit: int) -> np.ndarray:
    with open_member(file, info) as member:
        if npy.read_magic(member) != (1, 0):  # later versions are for structures, with headers of any length
            raise ValueError(f"{info.filename} is not in numpy's format 1.0")
        shape, fortran, dtype = npy.read_array_header_1_0(member)
        if dtype.kind not in kinds or (fortran and len(shape) > 1):
            raise ValueError(f"{info.filename} holds {dtype}{' in Fortran order' if fortran else ''}")
        try:
            data = read_promised(member, (*shape, dtype.itemsize), limit)
        except ValueError as error:
            raise ValueError(f"{info.filename}: {error}") from error
    return np.frombuffer(data, dtype).reshape(shape)
