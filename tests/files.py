"""Small data sets in the real formats."""

import gzip
import struct
from pathlib import Path

import torch
from torch import Tensor

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def idx(values: Tensor) -> bytes:
    """An IDX file of unsigned bytes."""
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.numpy().tobytes()


def write_mnist(root: Path, suffix: str = "", count: int = 20) -> tuple[Tensor, Tensor]:
    """Four IDX files; returns the training images (N, 28, 28) and labels (N,)."""
    root.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    written = []
    for prefix in ("t10k", "train"):
        images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.arange(count, dtype=torch.uint8) % 10
        for name, values in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            raw = idx(values)
            (root / f"{prefix}-{name}{suffix}").write_bytes(gzip.compress(raw) if suffix else raw)
        written = [images, labels]
    return written[0], written[1]
