"""Peak memory of training compared with the peers, beyond the memory before the first step, and the speed.

python -m benchmarks.memory [--bf16] [--rounds 3] [--out FOLDER]

Needs:  the peers: pip install -e '.[dev,peers]'; those that are not installed are omitted.
Prints: MiB and images per second, and both relative to diffusers.
Takes:  about eight minutes on two CPU cores.

Each case runs in its own process. At every step, the peers return freed memory to the system; this project keeps it.
"""

import multiprocessing
import resource
import statistics
from multiprocessing.queues import Queue

from benchmarks.contenders import ours, theirs
from benchmarks.peers import PEERS, installed
from benchmarks.sizes import Size
from benchmarks.turns import Table, in_turns, options
from lightning_diffusion.system.memory import keep_freed_memory

STEPS, WARM_UP = 8, 2
HANDS_BACK = "this project, freed memory handed back"
OURS = {"this project": (), HANDS_BACK: (), "this project, checkpointing": ("backbone.checkpointing=true",)}


def peak() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, size: Size, answer: "Queue[tuple[float, float]]") -> None:
    """Puts MiB and seconds per step into the queue."""
    if name in OURS and name != HANDS_BACK:
        keep_freed_memory()
    contender = ours(size, *OURS[name]) if name in OURS else theirs(PEERS[name], size)
    before, seconds = peak(), in_turns({name: contender.step}, STEPS, WARM_UP)[name]
    answer.put((peak() - before, statistics.median(seconds)))


def main() -> None:
    given = options(__doc__, rounds=3)
    size, context = Size(bf16=given.bf16), multiprocessing.get_context("spawn")
    names = [*OURS, *installed()]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            answer: Queue[tuple[float, float]] = context.Queue()
            process = context.Process(target=measure, args=(name, size, answer))
            process.start()
            found[name].append(answer.get())
            process.join()
    precision = "bf16" if size.bf16 else "float32"
    columns = (f"{precision}, batches of {size.batch_size}", "MiB", "of diffusers'", "images/s", "of diffusers'")
    table = Table(f"memory_{precision}", *columns, drawn=["MiB"])
    memory, seconds = ({name: statistics.median(one[i] for one in found[name]) for name in names} for i in (0, 1))
    nothing = float("nan")
    for name in names:
        less = memory[name] / memory.get("diffusers", nothing)
        faster = seconds.get("diffusers", nothing) / seconds[name]
        table.add(name, f"{memory[name]:.0f}", f"×{less:.2f}", size.batch_size / seconds[name], f"×{faster:.2f}")
    table.write(given.out)


if __name__ == "__main__":
    main()
