"""Weights that are shared out over devices, each holding a part of every one."""

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Keeps a part of each weight on each device, and puts a block's weights together while it computes.

    Blocks are the entries of the network's ModuleLists. On a mesh of nodes × devices the parts are those of one node's
    devices, and every node has them all.
    """
    for container in network.modules():
        if isinstance(container, nn.ModuleList):
            for block in container:
                if not isinstance(block, nn.ModuleList) and any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def align_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gives each gradient the strides of its parameter, in the same memory.

    A 1×1 convolution's gradient may come with others along its sides of length 1, which mean nothing; DDP compares all
    of them, warns, and copies the gradient on a slower way.
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
    """A tensor that is shared out, put together; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, values: Tensor) -> Tensor:
    """Values, the same ones on every device, shared out as a tensor is: `unshard` the other way round."""
    if not isinstance(tensor, DTensor):
        return values
    return distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None)
