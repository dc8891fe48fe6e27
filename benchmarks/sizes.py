"""The networks and batches that benchmarks compare."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """A U-Net that all projects but lucidrains' can build, and its batch. The default has 1.62 M parameters and takes
    0.55 GFLOPs forward."""

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
        """The network's precision, as src.train and src.sample name it."""
        return "bf16-mixed" if self.bf16 else "32-true"

    def autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16)

    @property
    def words(self) -> list[str]:
        """The words of src.train for this network and batch."""
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


def forward_flops(network: nn.Module, size: Size) -> float:
    """FLOPs of one image, counted from the layers."""
    from torch.utils.flop_counter import FlopCounterMode

    plain = copy.deepcopy(network).to("meta")
    x, time = size.batch()[:1].to("meta"), torch.full((1,), 500.0, device="meta")
    flipped = type(network).__module__.startswith("torchcfm")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(time, x) if flipped else plain(x, time)
    return float(counter.get_total_flops())
