"""The peers' own recipes on Fashion-MNIST for as long as this project's: their samples, for benchmarks.judge.

python -m benchmarks.stock ROOT FOLDER SECONDS [--bf16] [--evaluations 20 50] [--only NAME …]
python -m benchmarks.judge ROOT FOLDER/*.npz

Each trains a U-Net of 1.62 M parameters with its example's loss, optimizer, batch and learning rate, on images in
memory, and draws 2,000 samples by its own sampler: of its averaged weights, and of the trained ones as they are.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import PEERS, Peer, installed
from benchmarks.sizes import Size
from lightning_diffusion.codecs.pixels import to_model
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.data.mnist import MNIST
from lightning_diffusion.system.memory import keep_freed_memory

COUNT, AT_ONCE = 2000, 200


def train(peer: Peer, batch: Callable[[], Tensor], seconds: float = float("inf"), steps: int | None = None) -> int:
    """For some seconds, or so many steps; returns the number of steps."""
    began, number = time.perf_counter(), 0
    while number != steps and (share := (time.perf_counter() - began) / seconds) < 1:
        for group in peer.optimizer.param_groups:
            group["lr"] = peer.lr_at(number, share)
        peer.step(batch())
        number += 1
    return number


def batches(images: ImageDataset, size: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda: to_model(images[torch.randint(len(images), (size,), generator=generator)][0])


def save(path: Path, images: Tensor) -> None:
    """[0, 1] (N, 1, H, W) as src.sample writes them."""
    np.savez(path, images=(images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("folder", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--bf16", action="store_true", help="the networks in bfloat16 autocast")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[20])
    parser.add_argument("--only", nargs="+", choices=PEERS, default=installed())
    given = parser.parse_args()
    keep_freed_memory()
    data = MNIST(given.root, "FashionMNIST", channels=1, image_size=28, num_classes=10, batch_size=1)
    data.setup()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        torch.manual_seed(0)
        kind = PEERS[name]
        peer = kind(dataclasses.replace(Size(bf16=given.bf16), batch_size=kind.batch_size))
        steps = train(peer, batches(data.splits["train"], kind.batch_size), given.seconds)
        print(f"{name}: {steps} steps of {kind.batch_size} images", flush=True)
        for evaluations in given.evaluations:
            for averaged in (True, False):
                parts = [peer.draw(AT_ONCE, evaluations, averaged) for _ in range(COUNT // AT_ONCE)]
                weights = "averaged" if averaged else "trained"
                save(given.folder / f"{name}_{weights}_{evaluations}.npz", torch.cat(parts))


if __name__ == "__main__":
    main()
