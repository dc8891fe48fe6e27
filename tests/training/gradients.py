"""One of several ranks that take a training step: python -m tests.training.gradients FOLDER DTYPE

Writes FOLDER/<rank>.pt: the gradients as the optimizer meets them, and the noise that the rank drew.
"""

import os
import sys
from pathlib import Path

import lightning as L
import torch

import lightning_diffusion.training.module
from lightning_diffusion.diffusion.noise import BatchRNG
from tests import runs


class Keep(L.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients = {name: p.grad.clone() for name, p in pl_module.model.denoiser.named_parameters()}


def main(folder, dtype):
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    module, keep, drawn = runs.module(dropout=0.0).to(dtype), Keep(), []
    lightning_diffusion.training.module.to_model = lambda images: images.to(dtype) / 127.5 - 1
    normal = BatchRNG.normal
    BatchRNG.normal = lambda self, like: drawn.append(normal(self, like)) or drawn[-1]
    strategy = "ddp" if count > 1 else "auto"
    runs.trainer(3, [keep], devices=count, strategy=strategy, limit_val_batches=0).fit(module, runs.digits())
    torch.save({"gradients": keep.gradients, "noise": drawn[0]}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), getattr(torch, sys.argv[2]))
