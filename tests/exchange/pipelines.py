"""Small pipelines, written by diffusers itself."""

import json

import diffusers
import torch

from lightning_diffusion.checkpoints.loading import load
from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.denoiser import NetworkDenoiser
from lightning_diffusion.diffusion.parameterization import V
from lightning_diffusion.networks.unet import UNet
from tests.backbones.test_unet import randomized

CIFAR10 = {  # google/ddpm-cifar10-32
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip
CONDITIONAL = {  # the library's own defaults, on 28×28 with ten classes
    "sample_size": 28, "in_channels": 1, "out_channels": 1, "layers_per_block": 2, "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "num_class_embeds": 10,
}  # fmt: skip
ADM = {
    "sample_size": 16, "in_channels": 1, "out_channels": 2, "layers_per_block": 1, "block_out_channels": (32, 64),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
}  # fmt: skip
SMALL = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}  # fmt: skip


def load_pretrained(path):
    """The denoiser, and the options in its file."""
    model = load(path, "pretrained")
    node = model.file.node["denoiser"]
    return model.model.denoiser, {"data": model.file.data, "denoiser": node, **node}


def pipeline(path, config, scheduler=None, **save):
    """Writes a pipeline with random weights and returns its network."""
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**config).eval()
    variance = "learned_range" if config["out_channels"] > config["in_channels"] else "fixed_small"
    scheduler = scheduler or diffusers.DDPMScheduler(variance_type=variance)
    diffusers.DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(path, **save)
    return network


def ours(schedule=None, parameterization=None, **options):
    """This project's denoiser of 8×8 pixels."""
    defaults = {"channels": 16, "channel_mults": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)}
    network = randomized(UNet(8, 1, **(defaults | options)))
    return NetworkDenoiser(network, schedule or schedules.cosine(), parameterization or V(), label_dropout=0.1).eval()


def edit(path, changes=(), without=()):
    """Changes values in a JSON file, or removes keys."""
    content = json.loads(path.read_text()) | dict(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in without}))
