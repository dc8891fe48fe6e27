"""Speed of sampling at 20 evaluations compared with diffusers' pipeline, with the same weights and output.

python -m benchmarks.sampling [--bf16] [--rounds 5] [--out FOLDER]

Needs:  diffusers: pip install -e '.[dev,peers]'.
Prints: samples per second in batches of 64 and 256, their ratio, and the largest difference between the samples.
Takes:  about five minutes on two CPU cores in float32.
"""

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import diffusers_network
from benchmarks.sizes import Size
from benchmarks.turns import Table, in_turns, options, speed_up
from lightning_diffusion.checkpoints.loading import load
from lightning_diffusion.diffusion.guidance import Unguided
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.time_grid import Trailing
from lightning_diffusion.models.contracts import Compile
from lightning_diffusion.models.diffusion.model import DiffusionModel
from lightning_diffusion.training.devices import prepare_for_inference

STEPS, SMALL, LARGE = 20, 64, 256


def theirs(size: Size, folder: str) -> Any:
    """diffusers' DDIMPipeline with a network of random weights, which it also saves into the folder."""
    import diffusers

    torch.manual_seed(0)
    network = diffusers_network(size).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    pipeline = diffusers.DDIMPipeline(network, scheduler)
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.inference_mode()
def pair(
    size: Size, batch_size: int, compiled: Compile = False
) -> tuple[Callable[[], Tensor], Callable[[], Tensor], float]:
    """Two functions that draw a batch, this project's and diffusers', and the largest difference of their samples."""
    shape = (size.image_channels, size.image_size, size.image_size)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = theirs(size, folder)
        loaded = load(folder, "pretrained").model
    assert isinstance(loaded, DiffusionModel)
    sampler = DDIM(Trailing(), STEPS)
    model = loaded.with_parts(sampler=sampler, guidance=Unguided)
    prepare_for_inference(model, torch.device(size.device), size.precision, compiled)

    def diffusers_step() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        with size.autocast():
            images = pipeline(batch_size, generator, num_inference_steps=STEPS, output_type="np").images
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def our_step() -> Tensor:
        return model.draw(range(batch_size), None, seed=0).images

    noise = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))
    *_, x = sampler.walk(model.denoiser, lambda: noise.to(size.device))
    apart = (x.clamp(-1, 1).cpu() / 2 + 0.5 - diffusers_step()).abs().max()
    return our_step, diffusers_step, float(apart)


def measure(name: str, size: Size, rounds: int, compiled: Compile = False) -> Table:
    """Measures both batch sizes."""
    columns = ("images/s by batch", "this project", "diffusers", "ratio", "largest difference, of 1")
    table = Table(name, *columns, drawn=columns[1:3])
    for batch_size in (SMALL, LARGE):
        torch.compiler.reset()  # otherwise the second size would use dynamic shapes
        ours, diffusers_, apart = pair(size, batch_size, compiled)
        seconds = in_turns({"ours": ours, "diffusers": diffusers_}, rounds, warm_up=1)
        rates = [batch_size / statistics.median(values) for values in seconds.values()]
        table.add(batch_size, *rates, f"×{speed_up(seconds, 'ours', over='diffusers'):.2f}", f"{apart:.1e}")
    return table


def main() -> None:
    given = options(__doc__, rounds=5)
    size = Size(bf16=given.bf16)
    measure(f"sampling_{'bf16' if size.bf16 else 'float32'}", size, given.rounds).write(given.out)


if __name__ == "__main__":
    main()
