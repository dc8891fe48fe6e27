"""Training and sampling on one GPU compared with the peers, in bf16, with DDPM's network for CIFAR-10.

python -m benchmarks.gpu PEAK_TFLOPS [--out FOLDER]       # the card's dense bf16 peak: 312 on an A100, 989 on an H100

Needs:  a GPU, diffusers, and for the other rows the peers: pip install -e '.[dev,peers]'.
Prints: images per second, share of the GPU's peak (MFU) and memory of training; seconds until a network is compiled;
        samples per second at 20 evaluations.
Takes:  under ten minutes on an H100.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import sampling
from benchmarks.contenders import Contender, ours, peers
from benchmarks.sizes import Size, forward_flops
from benchmarks.turns import Table, in_turns, parser_of, speed_up
from lightning_diffusion.models.contracts import GRAPHS

CIFAR = {"image_size": 32, "image_channels": 3, "channels": 128, "num_blocks": 2, "bf16": True, "device": "cuda"}
DDPM = Size(**CIFAR, mults=(1, 2, 2, 2), attends_at=(16,))  # type: ignore[arg-type]  # 35.7 M parameters
NHWC = "module.channels_last=true"
WAYS = {
    "this project": (),
    "this project, channels_last, compile=true": (NHWC, "compile=true"),
    f"this project, channels_last, compile={GRAPHS}": (NHWC, f"compile={GRAPHS}"),
}
COMPILED = "diffusers"  # the peer that is also compiled; graphs share memory, so its own is not measurable
ROUNDS, WARM_UP, STEPS = 5, 1, 10


def contenders(size: Size) -> dict[str, Callable[[], Contender]]:
    found: dict[str, Callable[[], Contender]] = {
        name: lambda words=words: ours(size, *words)  # type: ignore[misc]
        for name, words in WAYS.items()
    }
    found |= {name: lambda build=build: build(size) for name, build in peers().items()}  # type: ignore[misc]
    if COMPILED in found:
        found[f"{COMPILED}, channels_last, compiled by {GRAPHS}"] = lambda: compiled(peers()[COMPILED](size))
    return found


def compiled(contender: Contender) -> Contender:
    contender.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    contender.network.compile(mode=GRAPHS)
    return contender


def several(step: Callable[[], object]) -> Callable[[], None]:
    """Several steps in a row, with one wait for the device at the end."""

    def run() -> None:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()

    return run


def settled(build: Callable[[], Contender]) -> tuple[Contender, float]:
    """Builds and compiles a contender. Returns it with the GiB of GPU memory that it and a step of it occupy."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    contender = build()
    several(contender.step)()
    torch.cuda.empty_cache()
    contender.step()
    torch.cuda.synchronize()
    return contender, (free - torch.cuda.mem_get_info()[0]) / 2**30


def training(size: Size, peak: float) -> Table:
    runners = {}
    for name, build in contenders(size).items():
        began = time.perf_counter()
        runners[name] = settled(build)
        print(
            f"{name}: built, compiled and run for {STEPS + 1} steps in {time.perf_counter() - began:.0f} s", flush=True
        )
    seconds = in_turns({name: several(runner.step) for name, (runner, _) in runners.items()}, ROUNDS, WARM_UP)
    columns = ("bf16, 32×32×3", "parameters, M", "ms a step", "images/s", "MFU", "GiB", "time in ours")
    table = Table("gpu_training", *columns, drawn=["images/s"])
    for name, (runner, memory) in runners.items():
        step = statistics.median(seconds[name]) / STEPS
        rate = size.batch_size / step
        share = 3 * rate * forward_flops(runner.network, size) / peak / 1e12
        parameters = sum(p.numel() for p in runner.network.parameters()) / 1e6
        ratio = speed_up(seconds, next(iter(runners)), over=name)
        table.add(
            name,
            parameters,
            1e3 * step,
            round(rate),
            f"{share:.1%}",
            "–" if "compiled" in name else memory,
            f"×{ratio:.2f}",
        )
    return table


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("peak", type=float, metavar="PEAK_TFLOPS", help="the card's dense bf16 peak")
    parser.add_argument("--out", type=Path, help="folder for the tables as CSV and as plots")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks.gpu: this machine has no GPU")
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)
    training(DDPM, given.peak).write(given.out)
    torch.cuda.empty_cache()
    for name, how in (("eager", False), ("graphs", GRAPHS)):
        print(f"\n20 evaluations, this project {'eager' if not how else f'with compile={how}'}:")
        sampling.measure(f"gpu_sampling_{name}", DDPM, 3, how).write(given.out)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
