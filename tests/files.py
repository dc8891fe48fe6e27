"""Small data sets in the real formats."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from lightning_diffusion.checkpoints.seal import write_sealed

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


def write_cifar10(root: Path, monkeypatch: Any) -> tuple[Tensor, Path]:
    """An archive of four images in CIFAR-10's format, whose checksums torchvision is made to expect.

    Returns the images (4, 3, 32, 32) and the archive's path.
    """
    cls, archive = torchvision.datasets.CIFAR10, root / "cifar-10-python.tar.gz"
    root.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    batch, meta = {"data": pixels, "labels": [3, 1, 4, 1]}, {"label_names": ["a"]}
    checksums = {}
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in {"data_batch_1": batch, "test_batch": batch, "batches.meta": meta}.items():
            blob = pickle.dumps(content)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size, checksums[name] = len(blob), hashlib.md5(blob).hexdigest()
            tar.addfile(info, io.BytesIO(blob))
    monkeypatch.setattr(cls, "train_list", [["data_batch_1", checksums["data_batch_1"]]])
    monkeypatch.setattr(cls, "test_list", [["test_batch", checksums["test_batch"]]])
    monkeypatch.setattr(
        cls, "meta", {"filename": "batches.meta", "key": "label_names", "md5": checksums["batches.meta"]}
    )
    monkeypatch.setattr(cls, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cls, "url", "file:///nowhere")
    return torch.from_numpy(pixels).reshape(4, 3, 32, 32), archive


def seal_anyway(path: Path) -> None:
    """Seals a file with any content, as an attacker could without calling `seal`."""
    content = path.read_bytes()
    if zipfile.is_zipfile(path):
        write_sealed(path, lambda file: file.write(content), 1, 1)
