"""Runs a program and writes a hash of what its networks put out, and of the images before they are rounded, in float32.

python -m benchmarks.exact FILE PROGRAM [WORD …]     # as python -m PROGRAM WORD …

Pixels of 8 bits hide changes of 1e-6. What a network puts out depends, to the bit, on all steps of the sampler before.
"""

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


def digest(tensors: Iterable[Tensor]) -> str:
    """The first 16 hex digits of the SHA-256 of each tensor's dtype, shape and bytes, in their order."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


class Recorder(TorchFunctionMode):
    """Within, takes in the outputs of convolutions and linear layers, and what is rounded."""

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
    path, program, *words = sys.argv[1:]
    file, recorder = Path(path).resolve(), Recorder()
    sys.argv = [program, *words]
    try:
        with recorder:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    finally:
        whole = hashlib.sha256("".join(recorder.found).encode()).hexdigest()[:16]
        file.write_text(whole if recorder.found else "nothing")


if __name__ == "__main__":
    main()
