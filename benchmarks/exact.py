"""Runs a program and writes a hash of its networks' outputs and of its images before rounding.

python -m benchmarks.exact FILE PROGRAM [WORD …]     # runs python -m PROGRAM WORD …

Needs:  the module PROGRAM.
Prints: what PROGRAM prints; the hash, of 16 hex digits, goes into FILE.
Takes:  as long as PROGRAM.

Pixels of 8 bits hide changes of 1e-6. A network's output depends, to the bit, on all earlier steps of the sampler.
"""

import argparse
import hashlib
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.turns import parser_of


def digest(tensors: Iterable[Tensor]) -> str:
    """The first 16 hex digits of the SHA-256 of the tensors' dtypes, shapes and bytes, in order."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


class Recorder(TorchFunctionMode):
    """Hashes the outputs of convolutions and linear layers, and the inputs of rounding, while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (F.conv2d, F.linear):
            self.found.append(digest([result]))
        elif func is Tensor.round:
            self.found.append(digest(args[:1]))
        return result


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("file", type=Path, help="where to write the hash")
    parser.add_argument("program", help="a module, such as src.sample")
    parser.add_argument("words", metavar="WORD", nargs=argparse.REMAINDER, help="arguments of the program")
    given = parser.parse_args()
    file, recorder = given.file.resolve(), Recorder()
    sys.argv = [given.program, *given.words]
    try:
        with recorder:
            runpy.run_module(given.program, run_name="__main__", alter_sys=True)
    finally:
        whole = hashlib.sha256("".join(recorder.found).encode()).hexdigest()[:16]
        file.write_text(whole if recorder.found else "nothing")


if __name__ == "__main__":
    main()
