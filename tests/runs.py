"""Small real runs: the digits, a network of a few thousand weights, Lightning's trainer without ornaments."""

import functools
from typing import Any

import lightning as L
import torch

from lightning_diffusion.data.digits import Digits
from lightning_diffusion.diffusion import beta as schedule
from lightning_diffusion.diffusion.denoiser import NetworkDenoiser
from lightning_diffusion.diffusion.parameterization import V
from lightning_diffusion.diffusion.time_sampler import Uniform
from lightning_diffusion.diffusion.weighting import Simple
from lightning_diffusion.models.diffusion.model import DiffusionModel
from lightning_diffusion.models.diffusion.objective import Denoising
from lightning_diffusion.networks.unet import UNet
from lightning_diffusion.training.module import TrainingModule
from lightning_diffusion.training.optimizers.warmup import warmup_cosine

# what a command line needs to train as small a network
TINY = [
    "backbone.channels=8",
    "backbone.channel_mults=[1]",
    "backbone.num_blocks=1",
    "data.batch_size=16",
    "trainer.accelerator=cpu",
    "trainer.limit_val_batches=2",
    "callbacks.samples.num_samples=10",
    "sampler.num_steps=4",
    "logger=csv",
    "callbacks=default",
]


def digits(**options: Any) -> Digits:
    return Digits(**({"channels": 1, "image_size": 8, "num_classes": 10, "batch_size": 16} | options))


def module(dropout: float = 0.1, max_steps: int = 100, **options: Any) -> TrainingModule:
    torch.manual_seed(0)
    network = UNet(
        8,
        1,
        channels=8,
        channel_mults=(1,),
        num_blocks=1,
        attention_resolutions=(),
        dropout=dropout,
        num_classes=10,
    )
    return TrainingModule(
        DiffusionModel(NetworkDenoiser(network, schedule.cosine(), V()), 1, 8, 10),
        Denoising(Uniform(), Simple()),
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-3),
        lr_scheduler=functools.partial(warmup_cosine, warmup_steps=5, max_steps=max_steps),
        **options,
    )


def trainer(max_steps: int, callbacks: list[L.Callback] | None = None, **options: Any) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "limit_val_batches": 2,
        "val_check_interval": 1000,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(max_steps=max_steps, callbacks=callbacks or [], **(defaults | options))
