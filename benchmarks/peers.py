"""What users would train with instead: each peer's own network, loss, optimizer and moving average, as its examples put
them together. pip install -e '.[peers]'
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.loop import BareLoop, configuration, module_of, random_batches
from src.backbones.unet import UNet
from src.exchange.config import unet_config


@dataclass(frozen=True)
class Size:
    """A U-Net as all but lucidrains' can build it, and a batch for it; what is the default has 1.62 M parameters and
    takes 0.55 GFLOPs forward."""

    image_size: int = 28
    image_channels: int = 1
    channels: int = 32
    mults: tuple[int, ...] = (1, 2, 2)
    num_blocks: int = 2
    attends_at: tuple[int, ...] = (7,)
    batch_size: int = 128
    bf16: bool = False
    device: str = "cpu"

    @property
    def precision(self) -> str:
        """The network's, as src.train and src.sample call it."""
        return "bf16-mixed" if self.bf16 else "32-true"

    @property
    def words(self) -> list[str]:
        """Of src.train."""
        return [
            "data=fashion_mnist", "backbone=unet", "optimizer=adamw", "callbacks=default", "logger=csv",
            "data.num_classes=null",
            f"data.image_size={self.image_size}", f"data.channels={self.image_channels}",
            f"data.batch_size={self.batch_size}", f"backbone.channels={self.channels}",
            f"backbone.channel_mults={list(self.mults)}", f"backbone.num_blocks={self.num_blocks}",
            f"backbone.attention_resolutions={list(self.attends_at)}",
            f"trainer.precision={self.precision}",
        ]  # fmt: skip

    def batch(self) -> Tensor:
        """Images in [−1, 1]."""
        shape = (self.batch_size, self.image_channels, self.image_size, self.image_size)
        return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(self.device) - 1


@dataclass(frozen=True)
class Contender:
    """A network, and a whole training step of it: loss, gradient, clipping, optimizer, moving average."""

    network: nn.Module
    step: Callable[[], object]


def ours(size: Size, *words: str) -> Contender:
    plain = configuration([*size.words, *words])
    module = module_of(plain).to(size.device)
    loop = BareLoop(module, random_batches(plain["data"]), plain["trainer"])
    return Contender(module.denoiser.backbone, loop.step)


def diffusers(size: Size) -> Contender:
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    network = diffusers_network(size)
    scheduler, ema = DDPMScheduler(1000), EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    x_0 = size.batch()

    def step() -> None:
        noise = torch.randn_like(x_0)
        t = torch.randint(1000, (len(x_0),), device=x_0.device)
        noised = scheduler.add_noise(x_0, noise, t)
        with _precision(size):
            predicted = network(noised, t).sample
        F.mse_loss(predicted.float(), noise).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())

    return Contender(network, step)


def diffusers_network(size: Size) -> nn.Module:
    """The network of this project in diffusers' words."""
    from diffusers import UNet2DModel

    twin = UNet(
        size.image_size, size.image_channels, size.channels, size.mults, size.num_blocks, size.attends_at
    )  # fmt: skip
    config = unet_config(twin, size.image_size, size.image_channels)
    return UNet2DModel.from_config(config).to(size.device)


def torchcfm(size: Size) -> Contender:
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
    from torchcfm.models.unet import UNetModel

    shape = (size.image_channels, size.image_size, size.image_size)
    at = ",".join(map(str, size.attends_at))
    network = UNetModel(
        shape, size.channels, size.num_blocks, channel_mult=size.mults, attention_resolutions=at, num_heads=1
    ).to(size.device)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    matcher, optimizer = ConditionalFlowMatcher(sigma=0.0), torch.optim.Adam(network.parameters(), lr=2e-4)
    x_1 = size.batch()

    def step() -> None:
        optimizer.zero_grad()
        t, x_t, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x_1), x_1)
        with _precision(size):
            predicted = network(t, x_t)
        (predicted.float() - velocity).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        for name, value in network.state_dict().items():
            average[name].copy_(average[name] * 0.9999 + value * 0.0001)

    return Contender(network, step)


def lucidrains(size: Size) -> Contender:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    network = Unet(size.channels, dim_mults=size.mults, channels=size.image_channels)
    diffusion = GaussianDiffusion(network, image_size=size.image_size).to(size.device)
    ema = EMA(diffusion, beta=0.995, update_every=10).to(size.device)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    images = size.batch() / 2 + 0.5  # in [0, 1], as it wants them

    def step() -> None:
        with _precision(size):
            loss = diffusion(images)
        loss.backward()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    return Contender(network, step)


PEERS: dict[str, Callable[[Size], Contender]] = {
    "diffusers": diffusers,
    "torchcfm": torchcfm,
    "denoising-diffusion-pytorch": lucidrains,
}


def available() -> dict[str, Callable[[Size], Contender]]:
    """The peers that are installed."""
    found = {}
    for name, build in PEERS.items():
        try:
            __import__(name.replace("-", "_"))
        except ImportError:
            print(f"{name} is not installed and left out: pip install -e '.[peers]'")
        else:
            found[name] = build
    return found


def _precision(size: Size) -> torch.autocast:
    return torch.autocast(torch.device(size.device).type, torch.bfloat16, enabled=size.bf16)


def forward_flops(network: nn.Module, size: Size) -> float:
    """Of one image, by the definition of its layers."""
    from torch.utils.flop_counter import FlopCounterMode

    plain = copy.deepcopy(network).to("meta")
    x, time = size.batch()[:1].to("meta"), torch.full((1,), 500.0, device="meta")
    flipped = type(network).__module__.startswith("torchcfm")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(time, x) if flipped else plain(x, time)
    return float(counter.get_total_flops())
