"""What a network costs, measured by running it once."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from src.backbones.layers import SelfAttention
from src.backbones.transformer import TokenAttention


@dataclass
class Level:
    """The layers whose output has one resolution."""

    channels: set[int] = field(default_factory=set)
    layers: int = 0  # convolutions and linear maps
    attentions: int = 0
    heads: set[int] = field(default_factory=set)


@dataclass
class Summary:
    """A network's size.

    Args:
        parameters: their number.
        flops: of one image's forward pass, a multiplication and an addition as two.
        activation_bytes: kept for the backward pass of one image, parameters apart.
        levels: by (height, width), or (tokens,).
    """

    parameters: int
    flops: int
    activation_bytes: int
    levels: dict[tuple[int, ...], Level]


def summarize(network: nn.Module, shape: tuple[int, int, int], num_classes: int | None) -> Summary:
    """Runs the network forward on one image of `shape` (C, H, W), in training mode and float32, on the CPU."""
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

    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, time = torch.zeros(1, *shape), torch.full((1,), 500.0)
    cond = None if num_classes is None else torch.zeros(1, dtype=torch.long)
    network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(x, time, cond)  # alive until here, so that no storage's address is used twice
    del output
    spatial = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, SelfAttention, TokenAttention)
    handles = [
        module.register_forward_hook(lambda m, i, o: record(m, i, o) if o.ndim > 2 else None)
        for module in network.modules()
        if isinstance(module, spatial)
    ]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # the counter does not know the CPU's fused attention
        network(x, time, cond)  # every layer is called here; with gradients some are fused
    for handle in handles:
        handle.remove()
    return Summary(
        sum(parameter.numel() for parameter in network.parameters()),
        counter.get_total_flops(),
        sum(kept.values()),
        levels,
    )
