"""Networks compared on the embedded digits: size, speed, and quality of samples after equal training time.

python -m benchmarks.backbones [SECONDS]

Needs:  nothing beyond this project.
Prints: the table of docs/backbones.md.
Takes:  five times SECONDS (60 by default) of training, besides timings and sampling.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.digits import NETWORK, Reading, judge
from benchmarks.loop import configuration
from benchmarks.turns import Table, in_turns, parser_of
from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.pixels import to_model, to_uint8
from lightning_diffusion.diffusion.guidance import Clip
from lightning_diffusion.diffusion.objective import Objective
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.time_grid import Trailing
from lightning_diffusion.networks.summary import noisy_images, summarize
from lightning_diffusion.training.ema import ExponentialMovingAverage

BACKBONES = ("unet", "adm", "unet_lecture", "dit", "uvit")
SHAPE, BATCH, SAMPLES, LR = (1, 8, 8), 64, 500, 1e-3


def built(backbone: str) -> tuple[Any, Objective]:
    arguments = configuration([f"backbone={backbone}"])
    torch.manual_seed(0)
    return arguments.nodes["denoiser"].make(), arguments.nodes["objective"].make()


def digits() -> tuple[Tensor, Condition]:
    from lightning_diffusion.data.digits import Digits

    data = Digits(channels=1, image_size=8, num_classes=10, batch_size=BATCH)
    data.setup()
    images, labels = data.splits["train"][torch.arange(len(data.splits["train"]))]
    assert labels is not None
    return to_model(images), Condition(label=labels)


def speeds(backbone: str, x_0: Tensor, condition: Condition) -> dict[str, float]:
    """Images per second for training in float32 and bf16 and for sampling, each in both memory formats."""
    steps: dict[str, Callable[[], object]] = {}
    y, t = condition[:BATCH], torch.tensor(500.0, dtype=torch.float64)
    for name, memory_format in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        denoiser, objective = built(backbone)
        denoiser = denoiser.to(memory_format=memory_format)
        batch = x_0[:BATCH].to(memory_format=memory_format)
        optimizer = torch.optim.AdamW(denoiser.parameters(), lr=LR, fused=True)

        def train(precise: bool, denoiser=denoiser, objective=objective, optimizer=optimizer, batch=batch) -> None:  # type: ignore[no-untyped-def]
            with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
                loss = objective(denoiser, batch, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        @torch.inference_mode()
        def sample(denoiser=denoiser, batch=batch) -> None:  # type: ignore[no-untyped-def]
            denoiser(batch, t, y)

        steps[f"float32 {name}"] = functools.partial(train, True)
        steps[f"bf16 {name}"] = functools.partial(train, False)
        steps[f"sample {name}"] = sample
    return {name: BATCH / statistics.median(taken) for name, taken in in_turns(steps, rounds=15, warm_up=3).items()}


def learned(backbone: str, x_0: Tensor, condition: Condition, seconds: float) -> tuple[int, Reading]:
    """Trains for some seconds. Returns the number of steps and how a classifier reads the averaged weights' samples."""
    denoiser, objective = built(backbone)
    average = ExponentialMovingAverage(denoiser, 0.995)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=LR, fused=True)
    started, step = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 50) * max(0.01, 1 - elapsed / seconds)
        chosen = torch.randint(len(x_0), (BATCH,))
        objective(denoiser, x_0[chosen], condition[chosen]).backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(denoiser, step)
        step += 1
    labels = torch.arange(SAMPLES) % 10
    x = DDIM(Trailing(), 50).sample(
        Clip(average.model), range(SAMPLES), SHAPE, 0, Condition(label=labels), batch_size=100
    )
    return step, judge(to_uint8(x).permute(0, 2, 3, 1).numpy(), labels.numpy()).readings[NETWORK]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=60.0, help="of training for each; 60 by default")
    given = parser.parse_args()
    seconds: float = given.seconds
    x_0, condition = digits()
    table = Table(
        "backbones", "backbone", "parameters", "MFLOPs", "train, images/s", "NHWC", "train bf16", "NHWC", "sample",
        "NHWC", f"steps in {seconds:.0f} s", "sure", "right class",
    )  # fmt: skip
    for backbone in BACKBONES:
        summary = summarize(built(backbone)[0].backbone, noisy_images(SHAPE, 10))
        speed = speeds(backbone, x_0, condition)
        steps, reading = learned(backbone, x_0, condition, seconds)
        table.add(
            f"`{backbone}`",
            f"{summary.parameters:,}",
            f"{summary.flops / 1e6:.1f}",
            *(
                cell
                for kind in ("float32", "bf16", "sample")
                for ratio in [speed[f"{kind} NHWC"] / speed[f"{kind} NCHW"]]
                for cell in (f"{speed[f'{kind} NCHW']:,.0f}", f"×{ratio:.2f}")
            ),
            f"{steps:,}",
            f"{reading.sure:.3f}",
            f"{reading.right:.1%}",
        )


if __name__ == "__main__":
    main()
