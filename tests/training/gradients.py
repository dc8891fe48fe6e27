"""One of several ranks that take three training steps: python -m tests.training.gradients FOLDER DTYPE [WORD …]

Writes FOLDER/<rank>.pt: the gradients as the optimizer meets them, and the noise that the rank drew. The run is that of
tests.runs, or of the words of src.train.
"""

import os
import sys
from pathlib import Path

import hydra
import lightning as L
import torch

from lightning_diffusion.app.assembly import assemble
from lightning_diffusion.configuration.trusted_targets import CONF
from lightning_diffusion.diffusion.noise import BatchRNG
from tests import runs


class Keep(L.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameters = pl_module.named_parameters()
        self.gradients = {name: p.grad.clone() for name, p in parameters if p.grad is not None}


def parts(words):
    """A training module and its data."""
    if not words:
        return runs.module(dropout=0.0), runs.digits()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        made = assemble(hydra.compose("train", ["name=gradients", "run_dir=run", *words]))
    return made.module, made.datamodule


def main(folder, dtype, *words):
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    (module, data), keep, drawn = parts(words), Keep(), []
    normal = BatchRNG.normal
    BatchRNG.normal = lambda self, like: drawn.append(normal(self, like)) or drawn[-1]
    strategy = "ddp" if count > 1 else "auto"
    runs.trainer(3, [keep], devices=count, strategy=strategy, limit_val_batches=0).fit(module.to(dtype), data)
    torch.save({"gradients": keep.gradients, "noise": drawn[:1]}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), getattr(torch, sys.argv[2]), *sys.argv[3:])
