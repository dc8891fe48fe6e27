"""Honest timings on a machine that is not: cases in turns, medians, ratios within a round; tables as text and CSV."""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from src.memory import keep_freed_memory


def in_turns(cases: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each case in each round that counts; whatever slows the machine for a while slows all cases alike."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(warm_up + rounds):
        for name, case in cases.items():
            began = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - began)
    return {name: values[warm_up:] for name, values in seconds.items()}


def speed_up(seconds: Mapping[str, Sequence[float]], of: str, over: str) -> float:
    """How many times as fast, the median over the rounds."""
    return statistics.median(slow / fast for slow, fast in zip(seconds[over], seconds[of], strict=True))


class Table:
    """Rows as they come, printed as Markdown; `write` keeps them as CSV too."""

    def __init__(self, name: str, *columns: str) -> None:
        self.name, self.columns, self.rows = name, columns, list[tuple[str, ...]]()
        print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def add(self, *cells: object) -> None:
        row = tuple(f"{cell:.3g}" if isinstance(cell, float) else f"{cell}" for cell in cells)
        self.rows.append(row)
        print(f"| {' | '.join(row)} |", flush=True)

    def write(self, folder: Path | None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{self.name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([self.columns, *self.rows])


def options(doc: str | None, rounds: int) -> argparse.Namespace:
    """What the command line says: precision, rounds, and the folder for the CSV. Memory is freed as in src.train."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bf16", action="store_true", help="the networks in bfloat16 autocast, all of them")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"that count; {rounds} unless told otherwise")
    parser.add_argument("--out", type=Path, help="folder for the tables as CSV")
    return parser.parse_args()
