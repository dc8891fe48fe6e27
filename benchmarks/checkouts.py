"""Compares two checkouts of this project in turns: start, training step, peak memory and --help of src.train.

python -m benchmarks.checkouts OTHER [WORD …] [--rounds 5]     # words of src.train

Needs:  the folder of the other checkout, made by `git worktree add OTHER COMMIT`, and a quiet machine.
Prints: the medians of both, and the ratio of this checkout to the other within a round.
Takes:  about six minutes on two CPU cores.

In each round both checkouts start a training, then train 8 blocks of 4 steps in turns: one waits while the other
trains.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.turns import Table, parser_of

HERE = Path(__file__).parent.parent
BLOCKS, STEPS = 8, 4
WORDS = ["data=fashion_mnist", "data.root=/usr/share/datasets/fashion-mnist", "backbone=unet_28", "data.batch_size=64"]
CLOCK = ["callbacks=default", "logger=csv", "+callbacks.clock._target_=clock.Clock", f"+callbacks.clock.block={STEPS}"]


class Training:
    """A running src.train of a checkout that trains a block of steps on request."""

    def __init__(self, checkout: Path, words: list[str], folder: Path) -> None:
        shutil.copy(HERE / "benchmarks" / "clock.py", folder)
        path = os.pathsep.join([str(checkout), str(folder)])
        command = [sys.executable, "-m", "src.train", *words, *CLOCK, "trust=[clock]", f"hydra.run.dir={folder}/run"]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "log.txt").open("w"),
            text=True,
        )
        self.log = folder / "log.txt"
        self.answer()
        self.start = time.perf_counter() - began

    def answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("clock:"):
                return line.removeprefix("clock:")
        sys.exit(f"{self.process.args}: ended early\n{self.log.read_text()[-2000:]}")

    def block(self) -> float:
        """Mean seconds of a step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.answer())

    def end(self) -> float:
        """Ends the process and returns its peak memory, MiB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        _, _, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = 0
        return usage.ru_maxrss / 1024


def measure(checkouts: list[Path], words: list[str]) -> Iterator[tuple[str, list[float]]]:
    """Yields the measurements of one round: a name and the figures of both checkouts."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        pairs = zip(checkouts, (Path(first), Path(second)), strict=True)
        trainings = [Training(checkout, words, folder) for checkout, folder in pairs]
        yield "start of src.train, s", [training.start for training in trainings]
        for _ in range(BLOCKS):
            yield "training step, s", [training.block() for training in trainings]
        yield "peak memory, MiB", [training.end() for training in trainings]
    yield "src.train --help, s", [help_of(checkout) for checkout in checkouts]


def help_of(checkout: Path) -> float:
    began = time.perf_counter()
    command = [sys.executable, "-m", "src.train", "--help"]
    subprocess.run(
        command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, check=True, capture_output=True
    )
    return time.perf_counter() - began


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("other", type=Path, metavar="OTHER", help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds; 5 by default")
    parser.add_argument("words", nargs="*", metavar="WORD", help=f"of src.train; default: {' '.join(WORDS)}")
    given = parser.parse_intermixed_args()
    if not (given.other / "src" / "train.py").exists():
        parser.error(f"{given.other}: no checkout of this project; give a folder with src/train.py")
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(given.rounds):
        backwards = number % 2 == 1  # neither checkout always comes first
        order = [given.other.resolve(), HERE][:: -1 if backwards else 1]
        for name, figures in measure(order, given.words or WORDS):
            other, this = figures[:: -1 if backwards else 1]
            found.setdefault(name, []).append((other, this))
    table = Table("checkouts", "medians", "other", "this", "difference", "ratio", "quartiles of the ratio", "pairs")
    for name, pairs in found.items():
        medians = [statistics.median(values) for values in zip(*pairs, strict=True)]
        ratios = [this / other for other, this in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        difference = statistics.median(this - other for other, this in pairs)
        table.add(name, *medians, difference, f"{middle:.3f}", f"{low:.3f} … {high:.3f}", len(pairs))


if __name__ == "__main__":
    main()
