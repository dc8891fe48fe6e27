"""What can happen to a rank, on purpose: +callbacks.fault._target_=tests.training.faults.Fault"""

import os
import resource
import signal
from pathlib import Path

import lightning as L
import torch


class Fault(L.Callback):
    """Befalls one rank at one step.

    Args:
        kind: "kill", "raise", "memory" (more than the process may have), or a signal's name.
        where: "step", "validation" (its second batch) or "scores" (after its last).
    """

    def __init__(self, kind, where="step", step=4, rank=0):
        self.kind, self.where, self.step, self.rank = kind, where, step, rank

    def on_train_batch_start(self, trainer, *args):
        self._befall(trainer, "step")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *args):
        if batch_idx == 1:
            self._befall(trainer, "validation")

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, *args):
        if batch_idx == trainer.num_val_batches[0] - 1:
            self._befall(trainer, "scores")

    def _befall(self, trainer, where):
        if (where, trainer.global_step, trainer.global_rank) != (self.where, self.step, self.rank):
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "raise":
            raise RuntimeError("something went wrong on purpose")
        elif self.kind == "memory":
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + 2**26, resource.RLIM_INFINITY))
            torch.empty(2**30).fill_(1.0)
        else:
            os.kill(os.getpid(), getattr(signal, self.kind))
