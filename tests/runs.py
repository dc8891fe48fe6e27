"""Small real runs: the digits, a network of a few thousand weights, Lightning's trainer without ornaments."""

import functools
from typing import Any

import lightning as L
import torch

from src.backbones.unet import UNet
from src.data.digits import Digits
from src.diffusion import beta as schedule
from src.diffusion.denoiser import NetworkDenoiser
from src.diffusion.objective import Objective
from src.diffusion.parameterization import V
from src.diffusion.time_sampler import Uniform
from src.diffusion.weighting import Simple
from src.training.lr import warmup_cosine
from src.training.module import DiffusionModule

# what a command line needs to train as small a network
TINY = [
    "backbone.channels=8",
    "backbone.channel_mults=[1]",
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


def module(dropout: float = 0.1, max_steps: int = 100, **options: Any) -> DiffusionModule:
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
    return DiffusionModule(
        NetworkDenoiser(network, schedule.cosine(), V()),
        Objective(Uniform(), Simple()),
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
