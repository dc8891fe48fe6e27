"""Other projects for the same task: each with its own network, loss, optimizer, moving average and sampler, combined
as in its examples. pip install -e '.[peers]'
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.sizes import Size
from lightning_diffusion.checkpoints.diffusers.network import unet_config
from lightning_diffusion.networks.unet import UNet


class Peer(ABC):
    """Another project's training.

    Args:
        size: of network and batch.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    batch_size: int  # in its example
    lr: float

    @abstractmethod
    def __init__(self, size: Size) -> None: ...

    @abstractmethod
    def step(self, x_0: Tensor) -> None:
        """Takes a training step on images in [−1, 1]: loss, gradient, clipping, optimizer and moving average."""

    @abstractmethod
    def draw(self, count: int, evaluations: int, averaged: bool) -> Tensor:
        """Samples in [0, 1] from its own sampler, by the averaged or the trained weights."""

    def lr_at(self, number: int, share: float) -> float:
        """The learning rate of step `number`, counted from 0, after this share of the training."""
        return self.lr

    def learn(self, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Diffusers(Peer):
    """examples/unconditional_image_generation, with its README's options."""

    batch_size, lr, warm_up = 16, 1e-4, 500

    def __init__(self, size: Size) -> None:
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel

        self.size, self.network, self.scheduler = size, diffusers_network(size), DDPMScheduler(1000)
        self.ema = EMAModel(self.network.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.lr, betas=(0.95, 0.999), weight_decay=1e-6
        )  # fmt: skip

    def lr_at(self, number: int, share: float) -> float:
        return self.lr * min((number + 1) / self.warm_up, (1 + math.cos(math.pi * share)) / 2)

    def step(self, x_0: Tensor) -> None:
        noise = torch.randn_like(x_0)
        t = torch.randint(1000, (len(x_0),), device=x_0.device)
        noised = self.scheduler.add_noise(x_0, noise, t)
        with self.size.autocast():
            predicted = self.network(noised, t).sample
        self.learn(F.mse_loss(predicted.float(), noise))
        self.ema.step(self.network.parameters())

    def draw(self, count: int, evaluations: int, averaged: bool) -> Tensor:
        from diffusers import DDIMPipeline, DDIMScheduler

        self.ema.store(self.network.parameters())
        if averaged:
            self.ema.copy_to(self.network.parameters())
        pipeline = DDIMPipeline(self.network, DDIMScheduler.from_config(self.scheduler.config))
        pipeline.set_progress_bar_config(disable=True)
        with self.size.autocast():
            images = pipeline(count, num_inference_steps=evaluations, output_type="np").images
        self.ema.restore(self.network.parameters())
        return torch.from_numpy(images).permute(0, 3, 1, 2)


class TorchCFM(Peer):
    """Its MNIST example, with the moving average of its CIFAR-10 script."""

    batch_size, lr = 128, 1e-3

    def __init__(self, size: Size) -> None:
        from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
        from torchcfm.models.unet import UNetModel

        self.size, self.shape = size, (size.image_channels, size.image_size, size.image_size)
        at = ",".join(map(str, size.attends_at))
        self.network = UNetModel(
            self.shape, size.channels, size.num_blocks, channel_mult=size.mults, attention_resolutions=at, num_heads=1
        ).to(size.device)
        self.average = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.matcher = ConditionalFlowMatcher(sigma=0.0)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.lr)

    def step(self, x_0: Tensor) -> None:
        t, x_t, velocity = self.matcher.sample_location_and_conditional_flow(torch.randn_like(x_0), x_0)
        with self.size.autocast():
            predicted = self.network(t, x_t)
        self.learn((predicted.float() - velocity).square().mean())
        for name, value in self.network.state_dict().items():
            self.average[name].copy_(self.average[name] * 0.9999 + value * 0.0001)

    @torch.no_grad()
    def draw(self, count: int, evaluations: int, averaged: bool) -> Tensor:
        trained = {name: value.clone() for name, value in self.network.state_dict().items()}
        if averaged:
            self.network.load_state_dict(self.average)
        x = torch.randn(count, *self.shape, device=self.size.device)
        for i in range(evaluations):
            time = torch.full((count,), i / evaluations, device=x.device)
            with self.size.autocast():
                x = x + self.network(time, x).float() / evaluations
        self.network.load_state_dict(trained)
        return (x.cpu().clamp(-1, 1) + 1) / 2


class Lucidrains(Peer):
    """The README of denoising-diffusion-pytorch, with one batch of 64 for its two accumulated batches of 32."""

    batch_size, lr = 64, 8e-5

    def __init__(self, size: Size) -> None:
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        from ema_pytorch import EMA

        self.size, self.network = size, Unet(size.channels, dim_mults=size.mults, channels=size.image_channels)
        self.diffusion = GaussianDiffusion(self.network, image_size=size.image_size).to(size.device)
        self.ema = EMA(self.diffusion, beta=0.995, update_every=10).to(size.device)
        self.optimizer = torch.optim.Adam(self.diffusion.parameters(), lr=self.lr, betas=(0.9, 0.99))

    def step(self, x_0: Tensor) -> None:
        with self.size.autocast():
            loss = self.diffusion(x_0 / 2 + 0.5)  # expects images in [0, 1]
        self.learn(loss)
        self.ema.update()

    def draw(self, count: int, evaluations: int, averaged: bool) -> Tensor:
        diffusion = self.ema.ema_model if averaged else self.diffusion
        diffusion.sampling_timesteps, diffusion.is_ddim_sampling = evaluations, True
        with self.size.autocast():
            return diffusion.sample(batch_size=count).cpu().float()


PEERS: dict[str, type[Peer]] = {
    "diffusers": Diffusers,
    "torchcfm": TorchCFM,
    "denoising-diffusion-pytorch": Lucidrains,
}


def installed() -> list[str]:
    """The names of the installed peers; prints a line for each of the others."""
    found = []
    for name in PEERS:
        try:
            __import__(name.replace("-", "_"))
        except ImportError:
            print(f"omitting {name}, which is not installed: pip install -e '.[peers]'")
        else:
            found.append(name)
    return found


def diffusers_network(size: Size) -> nn.Module:
    """This project's network as diffusers builds it."""
    from diffusers import UNet2DModel

    twin = UNet(
        size.image_size, size.image_channels, size.channels, size.mults, size.num_blocks, size.attends_at
    )  # fmt: skip
    config = unet_config(twin, size.image_size, size.image_channels)
    return UNet2DModel.from_config(config).to(size.device)
