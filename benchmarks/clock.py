"""A callback that trains a block of steps for each line on standard input, and times it: for benchmarks.checkouts."""

import os
import sys
import time
from typing import Any

import lightning as L

WARM_UP = 3  # steps


class Clock(L.Callback):
    """Prints the mean seconds of a step after each block of `block` steps; ends the process at the end of the input."""

    def __init__(self, block: int) -> None:
        self.block, self.count, self.began = block, 0, 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        if self.count >= WARM_UP and (self.count - WARM_UP) % self.block == 0:
            if not sys.stdin.readline():
                os._exit(0)
            self.began = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.count += 1
        if self.count == 1:
            print("clock: first step", flush=True)
        elif self.count > WARM_UP and (self.count - WARM_UP) % self.block == 0:
            print("clock:", (time.perf_counter() - self.began) / self.block, flush=True)
