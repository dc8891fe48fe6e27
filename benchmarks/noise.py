"""The time of a draw of noise compared with torch.randn of the same shape, which draws by one sequential generator.

python -m benchmarks.noise [--rounds 200] [--out FOLDER]

Needs:  nothing beyond this project.
Prints: for each shape, the medians of torch.randn, of sampling and of training, and their ratios to torch.randn.
Takes:  seconds.
"""

import statistics

import torch

from benchmarks.turns import Table, in_turns, options, speed_up
from lightning_diffusion.diffusion.noise import BatchRNG, IndexedNoise

SHAPES = (1, 1, 28, 28), (64, 1, 28, 28), (128, 3, 32, 32), (16, 3, 64, 64)


def main() -> None:
    given = options(__doc__, 200)
    table = Table("noise", "shape", "torch.randn, ms", "sampling, ms", "ratio", "training, ms", "ratio")
    for shape in SHAPES:
        noise, like = IndexedNoise(0, range(shape[0]), shape[1:]), torch.empty(shape)
        cases = {
            "torch.randn": lambda shape=shape: torch.randn(shape),
            "sampling": noise,
            "training": lambda like=like: BatchRNG(0, 0).normal(like),
        }
        seconds = in_turns(cases, given.rounds, warm_up=20)
        cells = [f"{1000 * statistics.median(values):.3f}" for values in seconds.values()]
        ratios = [f"×{1 / speed_up(seconds, of=name, over='torch.randn'):.2f}" for name in ("sampling", "training")]
        table.add("×".join(map(str, shape)), *cells[:2], ratios[0], cells[2], ratios[1])
    table.write(given.out)


if __name__ == "__main__":
    main()
