"""Training on one GPU beside the peers, on random images of CIFAR-10's shape: images a second, share of the GPU's peak
(MFU), memory. No figure of the documentation comes from it yet.

python -m benchmarks.gpu PEAK_TFLOPS [--out FOLDER]       # the card's dense bf16 peak: 312 on an A100, 989 on an H100
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.peers import Contender, Size, available, forward_flops, ours
from benchmarks.turns import Table, in_turns, speed_up

CIFAR = {"image_size": 32, "image_channels": 3, "channels": 128, "num_blocks": 2, "bf16": True, "device": "cuda"}
DDPM = Size(**CIFAR, mults=(1, 2, 2, 2), attends_at=(16,))  # type: ignore[arg-type]  # 35.7 M parameters
NHWC = "module.channels_last=true"
WAYS = {
    "this project": (),
    "this project, channels_last": (NHWC,),
    "this project, compile": ("compile=true",),
    "this project, channels_last, compile": (NHWC, "compile=true"),
}
ROUNDS, WARM_UP, STEPS = 5, 2, 10


def synchronized(step: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()

    return run


def contenders(size: Size) -> dict[str, Contender]:
    found = {name: ours(size, *words) for name, words in WAYS.items()}
    return found | {name: build(size) for name, build in available().items()}


def memory(step: Callable[[], object]) -> float:
    """GiB at the peak of one step, all contenders' weights included."""
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peak", type=float, metavar="PEAK_TFLOPS", help="the card's dense bf16 peak")
    parser.add_argument("--out", type=Path, help="folder for the table as CSV")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks.gpu: there is no GPU here")
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)
    runners = contenders(DDPM)
    seconds = in_turns({name: synchronized(runner.step) for name, runner in runners.items()}, ROUNDS, WARM_UP)
    columns = ("bf16, 32×32×3", "parameters, M", "images/s", "MFU", "GiB", "time in ours")
    table = Table("gpu", *columns)
    for name, runner in runners.items():
        rate = STEPS * DDPM.batch_size / statistics.median(seconds[name])
        flops = 3 * rate * forward_flops(runner.network, DDPM)
        parameters = sum(p.numel() for p in runner.network.parameters()) / 1e6
        ratio = speed_up(seconds, next(iter(runners)), over=name)
        table.add(name, parameters, rate, f"{flops / given.peak / 1e12:.1%}", memory(runner.step), f"×{ratio:.2f}")
    table.write(given.out)


if __name__ == "__main__":
    main()
