"""The overhead of Lightning: a training step through the Trainer compared with the same step in a bare loop.

python -m benchmarks.overhead                                                  # 28×28, batch 128, float32
python -m benchmarks.overhead trainer.precision=bf16-mixed data.batch_size=64  # or any other key=value of src.train

Needs:  nothing beyond this project.
Prints: milliseconds per step of both in each block of 20 steps, and the median overhead with its quartiles.
Takes:  about twelve minutes on two CPU cores in float32, two for the second command on cores with bf16.

The Trainer runs with callbacks and a logger. The two take turns step by step, and end with the same weights, to the
bit.
"""

import statistics
import tempfile
import time
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from benchmarks.loop import BareLoop, configuration, module_of
from benchmarks.turns import Table, parser_of
from lightning_diffusion.data.dataset import Batches, InMemory
from lightning_diffusion.data.module import ImageDataModule, Split
from lightning_diffusion.data.order import EndlessShuffle
from lightning_diffusion.training.module import TrainingModule
from lightning_diffusion.training.results import quiet

BLOCK, BLOCKS, WARM_UP = 20, 12, 2  # steps in a block (one of them logs), measured blocks, warm-up blocks
STEPS = BLOCK * (WARM_UP + BLOCKS) + 1  # the last block ends when one more step begins
OPTIONS = [
    "backbone=unet_28", "data=fashion_mnist", "callbacks=default", "logger=csv", "name=x", "trainer.accelerator=cpu",
    f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS + 1}", f"trainer.log_every_n_steps={BLOCK}",
    "trainer.limit_val_batches=0", "callbacks.samples.num_samples=1", "sampler.num_steps=1",
]  # fmt: skip


class Noise(ImageDataModule):
    """Random images of random classes, in memory."""

    def read(self, split: Split) -> InMemory:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (2000, *self.shape), dtype=torch.uint8, generator=generator)
        return InMemory(images, torch.randint(self.num_classes or 1, (2000,), generator=generator))


class Turns(L.Callback):
    """Lets the bare loop take a step after each step of the Trainer, and times both."""

    def __init__(self, bare: BareLoop) -> None:
        self.bare, self._since = bare, 0.0
        self.through: list[float] = []  # seconds of each step through the Trainer
        self.plain: list[float] = []  # of the bare loop's

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        began = time.perf_counter()
        if batch_idx:
            self.bare.step()
            self.through.append(began - self._since)
            self.plain.append(time.perf_counter() - began)
        self._since = time.perf_counter()

    def blocks(self) -> list[tuple[float, float]]:
        """Seconds per step through the Trainer and in the bare loop, averaged over each measured block."""
        starts = range(WARM_UP * BLOCK, (WARM_UP + BLOCKS) * BLOCK, BLOCK)
        return [
            (statistics.fmean(self.through[i : i + BLOCK]), statistics.fmean(self.plain[i : i + BLOCK])) for i in starts
        ]


def train(run_dir: str, overrides: list[str]) -> tuple[TrainingModule, Turns]:
    """Trains as src.train does, with the steps of the bare loop in between."""
    arguments = configuration([*OPTIONS, f"run_dir={run_dir}", *overrides])
    options, keys = arguments.data.node, ("channels", "image_size", "num_classes", "batch_size", "seed")
    data = Noise(**{key: options[key] for key in keys})
    data.setup()
    modules = module_of(arguments), module_of(arguments)
    order = EndlessShuffle(len(data.splits["train"]), data.batch_size, STEPS, data.seed)
    batches = iter(DataLoader(Batches(data.splits["train"], data.num_classes), sampler=order, batch_size=None))
    callbacks = list(arguments.callbacks.make().values())
    loggers = list(arguments.logger.make().values())
    trainer = arguments.trainer.make(callbacks=callbacks, logger=loggers)
    turns = Turns(BareLoop(modules[1], batches, arguments.trainer))
    trainer.callbacks.append(turns)
    trainer.fit(modules[0], data)
    while turns.bare.number < STEPS:
        turns.bare.step()
    return modules[0], turns


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("words", metavar="KEY=VALUE", nargs="*", help="as for src.train")
    given = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as run_dir:
        module, turns = train(run_dir, given.words)
    bare = turns.bare.module.state_dict()
    assert all(torch.equal(weight, bare[name]) for name, weight in module.state_dict().items()), "other weights"
    table = Table("overhead", "block", "Trainer, ms a step", "bare loop", "overhead")
    for number, (through, plain) in enumerate(turns.blocks(), 1):
        table.add(number, f"{1e3 * through:.2f}", f"{1e3 * plain:.2f}", f"{through / plain - 1:+.2%}")
    low, middle, high = statistics.quantiles([through / plain - 1 for through, plain in turns.blocks()])
    print(f"median overhead {middle:+.2%}, quartiles {low:+.2%} … {high:+.2%}; the same weights, to the bit")


if __name__ == "__main__":
    main()
