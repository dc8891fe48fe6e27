"""The growth of a training step's time with batch size, resolution and width.

python -m benchmarks.scaling [--bf16] [--rounds 5] [--out FOLDER]

Needs:  nothing beyond this project.
Prints: FLOPs and seconds per step at each size, and the exponent of time against FLOPs: 1 if twice the work takes
        twice the time.
Takes:  about a minute on two CPU cores.
"""

import dataclasses
import math
import statistics

from benchmarks.contenders import ours
from benchmarks.sizes import Size, forward_flops
from benchmarks.turns import Table, in_turns, options

START = Size(image_size=16, attends_at=(4,), batch_size=32)
GROWTH = {"batch_size": (16, 32, 64, 128), "image_size": (16, 24, 32, 48), "channels": (16, 32, 48, 64)}


def exponent(work: list[float], seconds: list[float]) -> float:
    """The slope of log seconds over log work, by least squares."""
    x, y = ([math.log(value) for value in values] for values in (work, seconds))
    return statistics.linear_regression(x, y).slope


def main() -> None:
    given = options(__doc__, rounds=5)
    precision = "bf16" if given.bf16 else "float32"
    columns = (precision, "GFLOPs a step", "seconds", "GFLOP/s", "exponent")
    table = Table(f"scaling_{precision}", *columns, drawn=["GFLOP/s"])
    for key, values in GROWTH.items():
        sizes = [dataclasses.replace(START, bf16=given.bf16, **{key: value}) for value in values]
        sizes = [dataclasses.replace(size, attends_at=(size.image_size // 4,)) for size in sizes]
        contenders = [ours(size) for size in sizes]
        seconds = in_turns({str(v): c.step for v, c in zip(values, contenders, strict=True)}, given.rounds)
        medians = [statistics.median(taken) for taken in seconds.values()]
        work = [3 * s.batch_size * forward_flops(c.network, s) for s, c in zip(sizes, contenders, strict=True)]
        for value, flops, taken in zip(values, work, medians, strict=True):
            slope = f"{exponent(work, medians):.2f}" if value == values[-1] else ""
            table.add(f"{key}={value}", flops / 1e9, taken, flops / taken / 1e9, slope)
    table.write(given.out)


if __name__ == "__main__":
    main()
