"""Weights sharded over devices: each device holds a part of every weight."""

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shards each weight over the devices, and gathers a block's weights while it computes.

    Blocks are the entries of the network's ModuleLists. On a mesh of nodes × devices, the weights are sharded over the
    devices of one node and replicated on every node.
    """
    for container in network.modules():
        if isinstance(container, nn.ModuleList):
            for block in container:
                if not isinstance(block, nn.ModuleList) and any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def align_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gives each gradient the strides of its parameter, in the same memory.

    A 1×1 convolution's gradient can have other strides along its sides of length 1, where they have no meaning. DDP
    compares them too, warns, and copies such a gradient more slowly.
    """
    for parameter in parameters:
        if parameter.requires_grad and 1 in parameter.shape:
            parameter.register_hook(partial(_aligned, parameter))


def _aligned(parameter: Tensor, gradient: Tensor) -> Tensor:
    strides = parameter.stride()
    sides = zip(gradient.shape, gradient.stride(), strides, strict=True)
    if gradient.stride() == strides or any(length > 1 and its != wanted for length, its, wanted in sides):
        return gradient
    return gradient.as_strided(gradient.shape, strides)


def unshard(tensor: Tensor) -> Tensor:
    """Gathers a sharded tensor; returns any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, values: Tensor) -> Tensor:
    """Shards values, equal on every device, in the way that `tensor` is sharded: the inverse of `unshard`."""
    if not isinstance(tensor, DTensor):
        return values
    return distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None)
