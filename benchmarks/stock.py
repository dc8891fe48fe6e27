"""Trains the peers with their own recipes on Fashion-MNIST and draws samples for benchmarks.judge.

python -m benchmarks.stock ROOT FOLDER SECONDS [--bf16] [--evaluations 20 50] [--only NAME …]
python -m benchmarks.judge ROOT FOLDER/*.npz

Needs:  Fashion-MNIST in ROOT, and the peers: pip install -e '.[dev,peers]'.
Prints: the number of steps of each peer; the samples are FOLDER/PEER_WEIGHTS_EVALUATIONS.npz.
Takes:  for each peer SECONDS of training, besides drawing 2,000 samples of both kinds of weights.

Each peer trains a U-Net of about 1.6 M parameters with its example's loss, optimizer, batch size and learning rate, on
images in memory. It draws with its own sampler, from its averaged weights and from its trained weights.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import PEERS, Peer, installed
from benchmarks.sizes import Size
from benchmarks.turns import parser_of
from lightning_diffusion.codecs.pixels import to_model
from lightning_diffusion.data.dataset import ImageDataset
from lightning_diffusion.data.mnist import MNIST
from lightning_diffusion.system.memory import keep_freed_memory

COUNT, AT_ONCE = 2000, 200


def train(peer: Peer, batch: Callable[[], Tensor], seconds: float = float("inf"), steps: int | None = None) -> int:
    """Trains for some seconds or a number of steps. Returns the number of steps."""
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
    """Writes images (N, 1, H, W) in [0, 1] in the format of src.sample."""
    np.savez(path, images=(images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy())


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("root", help="folder of Fashion-MNIST")
    parser.add_argument("folder", type=Path, help="where to write the samples")
    parser.add_argument("seconds", type=float, help="of training for each peer")
    parser.add_argument("--bf16", action="store_true", help="run the networks in bfloat16 autocast")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[20], help="per sample; 20 by default")
    parser.add_argument("--only", nargs="+", choices=PEERS, help="peers to train; all installed ones by default")
    given = parser.parse_args()
    keep_freed_memory()
    data = MNIST(given.root, "FashionMNIST", channels=1, image_size=28, num_classes=10, batch_size=1)
    data.setup()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.only or installed():
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
