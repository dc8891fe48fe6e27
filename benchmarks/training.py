"""Training speed compared with the peers: images per second, and the share of the speed that convolutions reach.

python -m benchmarks.training [--bf16] [--rounds 6] [--out FOLDER]

Needs:  the peers: pip install -e '.[dev,peers]'; those that are not installed are omitted.
Prints: parameters, images per second, GFLOP/s, share of the peak, and the time relative to this project's.
Takes:  about a minute on two CPU cores.
"""

import statistics
from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.contenders import Contender, ours, peers
from benchmarks.sizes import Size, forward_flops
from benchmarks.turns import Table, in_turns, options, speed_up

PEAK_AT = ((128, 14), (64, 14))  # channels and sides of the convolutions that measure the peak


def convolution(channels: int, side: int, size: Size) -> tuple[Callable[[], object], float]:
    """A 3×3 convolution, forward and backward, in the network's precision and the best layout, and its FLOPs."""
    dtype = torch.bfloat16 if size.bf16 else torch.float32
    x, weight = torch.randn(size.batch_size, channels, side, side), torch.randn(channels, channels, 3, 3)
    x, weight = (
        tensor.to(size.device, dtype, memory_format=torch.channels_last).requires_grad_() for tensor in (x, weight)
    )

    def run() -> None:
        y = F.conv2d(x, weight, padding=1)
        torch.autograd.grad(y, (x, weight), y)

    return run, 3 * 2 * size.batch_size * channels**2 * 9 * side**2


def contenders(size: Size) -> dict[str, Contender]:
    found = {
        "this project": ours(size),
        "this project, channels_last": ours(size, "module.channels_last=true"),
    }
    return found | {name: build(size) for name, build in peers().items()}


def main() -> None:
    given = options(__doc__, rounds=6)
    size = Size(bf16=given.bf16)
    runners = contenders(size)
    peaks = {f"convolution of {c} channels": convolution(c, side, size) for c, side in PEAK_AT}
    cases = {name: runner.step for name, runner in runners.items()} | {name: run for name, (run, _) in peaks.items()}
    seconds = in_turns(cases, given.rounds)
    peak = max(flops / statistics.median(seconds[name]) for name, (_, flops) in peaks.items())
    precision = "bf16" if size.bf16 else "float32"
    columns = (precision, "parameters, M", "images/s", "GFLOP/s", "of the peak", "time in ours")
    table = Table(f"training_{precision}", *columns, drawn=["images/s"])
    for name, runner in runners.items():
        rate = size.batch_size / statistics.median(seconds[name])
        flops = 3 * rate * forward_flops(runner.network, size)
        parameters = sum(p.numel() for p in runner.network.parameters()) / 1e6
        ratio = speed_up(seconds, next(iter(runners)), over=name)
        table.add(name, parameters, rate, flops / 1e9, f"{flops / peak:.0%}", f"×{ratio:.2f}")
    table.write(given.out)
    print(f"single convolutions reach {peak / 1e9:.0f} GFLOP/s; a step counts as three times the forward FLOPs")


if __name__ == "__main__":
    main()
