"""The most memory that training takes, a process each: what it holds at its peak beyond the start of its first step.

python -m benchmarks.memory [--bf16] [--rounds 1] [--out FOLDER]
"""

import multiprocessing
import resource
import statistics
from multiprocessing.queues import Queue

from benchmarks.peers import PEERS, Size, available, ours
from benchmarks.turns import Table, options

STEPS = 3
OURS = {"this project": (), "this project, checkpointing": ("backbone.checkpointing=true",)}


def peak() -> float:
    """MiB that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, size: Size, answer: "Queue[float]") -> None:
    contender = ours(size, *OURS[name]) if name in OURS else PEERS[name](size)
    before = peak()
    for _ in range(STEPS):
        contender.step()
    answer.put(peak() - before)


def main() -> None:
    given = options(__doc__, rounds=1)
    size, context = Size(bf16=given.bf16), multiprocessing.get_context("spawn")
    names = [*OURS, *available()]
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            answer: Queue[float] = context.Queue()
            process = context.Process(target=measure, args=(name, size, answer))
            process.start()
            found[name].append(answer.get())
            process.join()
    precision = "bf16" if size.bf16 else "float32"
    table = Table(f"memory_{precision}", f"{precision}, batches of {size.batch_size}", "MiB", "of diffusers'")
    theirs = statistics.median(found.get("diffusers", [float("nan")]))
    for name in names:
        mine = statistics.median(found[name])
        table.add(name, f"{mine:.0f}", f"×{mine / theirs:.2f}")
    table.write(given.out)


if __name__ == "__main__":
    main()
