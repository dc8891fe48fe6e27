"""The cost of a network, measured by running it."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.networks.transformer import TokenAttention
from lightning_diffusion.networks.unet_blocks import SelfAttention

Inputs = Sequence[Tensor | Condition | None]
Example = Callable[[int, str], Inputs]  # (number of images, device) -> inputs of a network


@dataclass
class Level:
    """Counts of the layers whose outputs have one resolution."""

    channels: set[int] = field(default_factory=set)
    layers: int = 0  # convolutions and linear maps
    attentions: int = 0
    heads: set[int] = field(default_factory=set)


@dataclass
class Summary:
    """The size and cost of a network.

    Args:
        parameters: number of parameters.
        flops: operations of one image's forward pass; a multiplication and an addition count as two.
        activation_bytes: memory kept for one image's backward pass, without the parameters.
        levels: by (height, width) or (tokens,).
    """

    parameters: int
    flops: int
    activation_bytes: int
    levels: dict[tuple[int, ...], Level]


def noisy_images(
    shape: Sequence[int],
    num_classes: int | None,
    condition_channels: int = 0,
    num_attributes: int = 0,
    has_caption: bool = False,
) -> Example:
    """Inputs of a denoiser's network: images of `shape` (C, H, W), a time on DDPM's clock, a condition or None.

    Args:
        num_classes: None for a condition without label.
        condition_channels: of the condition's picture; 0 for a condition without image.
        num_attributes: of the condition; 0 for a condition without.
        has_caption: whether the condition has one, of a single word.
    """

    def example(count: int, device: str) -> Inputs:
        label = None if num_classes is None else torch.zeros(count, dtype=torch.long, device=device)
        parts = {} if label is None else {"label": label}
        if condition_channels:
            parts["image"] = torch.zeros(count, condition_channels + 1, *shape[1:], device=device)
        if num_attributes:
            parts["attributes"] = torch.zeros(count, num_attributes + 1, device=device)
        if has_caption:
            parts["tokens"] = torch.ones(count, 1, dtype=torch.long, device=device)
        condition = Condition(**parts) if parts else None
        return torch.zeros(count, *shape, device=device), torch.full((count,), 500.0, device=device), condition

    return example


def summarize(network: nn.Module, example: Example) -> Summary:
    """Measures the network for one image, in training mode and float32, on the CPU."""
    levels: dict[tuple[int, ...], Level] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        place = tuple(output.shape[2:]) if output.ndim == 4 else tuple(output.shape[1:2])
        level = levels.setdefault(place, Level())
        if isinstance(module, (SelfAttention, TokenAttention)):
            level.attentions += 1
            level.heads.add(module.num_heads)
        else:
            level.layers += 1
            level.channels.add(output.shape[1] if output.ndim == 4 else output.shape[-1])

    network.train()
    one, two = (_kept_bytes(network, *example(size, "cpu")) for size in (1, 2))
    plain = copy.deepcopy(network).to("meta")  # where each layer runs on its own, without the fused CPU functions
    spatial = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, SelfAttention, TokenAttention)
    for module in plain.modules():
        if isinstance(module, spatial):
            module.register_forward_hook(lambda m, i, o: record(m, i, o) if o.ndim > 2 else None)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        plain(*example(1, "meta"))
    return Summary(
        sum(parameter.numel() for parameter in network.parameters()),
        counter.get_total_flops(),
        two - one,  # parameters and other constants cancel
        levels,
    )


def _kept_bytes(network: nn.Module, *inputs: Tensor | Condition | None) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(*inputs)  # kept alive until all is counted, so that no address is reused
    del output
    return sum(kept.values())
