"""GroupNorm and SiLU before a convolution, in few passes over memory and with few activations kept."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten

LARGE = 512  # positions from which `_by_channels` is faster than torch's kernel for NHWC images on a CPU


class GroupNorm(nn.GroupNorm):
    """torch's GroupNorm. Compiled for a GPU, it reads NHWC images in place; torch's kernels would copy them to NCHW."""

    def forward(self, x: Tensor) -> Tensor:
        if _compiles_for_gpu(x) and _is_nhwc(x):
            return _by_channels(self, x.float())
        return super().forward(x)


class NormSiLU(GroupNorm):
    """SiLU(GroupNorm(x)); without gradients, SiLU works in place."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return F.silu(super().forward(x))
        return F.silu(_by_channels(self, x) if _is_large_nhwc(x) else super().forward(x), inplace=True)


def norm_silu_conv(norm: NormSiLU, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv(SiLU(GroupNorm(x))) for a convolution with stride 1 and a bias; eager training on a CPU keeps only x of it.

    Compiled code decides by itself which activations to keep.
    """
    if not _trains_eagerly_on_cpu(x, conv) or conv.bias is None:
        return conv(norm(x))
    parameters = norm.weight, norm.bias, conv.weight.to(x.dtype), conv.bias.to(x.dtype)
    return cast(Tensor, _NormSiLUConv.apply(x, *parameters, norm.num_groups, norm.eps, conv.padding))


def _compiles_for_gpu(x: Tensor) -> bool:
    return torch.compiler.is_compiling() and x.device.type == "cuda"


def _trains_eagerly_on_cpu(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether gradients are recorded outside torch.compile, on a CPU, and x already has the convolution's type."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.device.type != "cpu":
        return False
    return x.dtype == (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else conv.weight.dtype)


class _NormSiLUConv(torch.autograd.Function):
    """Keeps x. The backward pass repeats normalization and SiLU, which cost little compared with the convolution."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor,
        groups: int, eps: float, padding: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        ctx.sizes, ctx.eps, ctx.padding = (len(x), x.shape[1], x.shape[2:].numel(), groups), eps, padding
        ctx.save_for_backward(x, scale, shift, weight, bias)
        normalized = aten.native_group_norm(x, scale, shift, *ctx.sizes, eps)[0]
        return F.conv2d(F.silu(normalized, inplace=True), weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            normalized = F.group_norm(x, ctx.sizes[-1], scale, shift, ctx.eps)
            y = F.conv2d(F.silu(normalized), weight, bias, padding=ctx.padding)
            needed = [tensor for tensor in ctx.saved_tensors if tensor.requires_grad]
            found = iter(torch.autograd.grad(y, needed, gradient, create_graph=True))
            return *(next(found) if tensor.requires_grad else None for tensor in ctx.saved_tensors), None, None, None
        normalized, mean, rstd = aten.native_group_norm(x, scale, shift, *ctx.sizes, ctx.eps)
        options = [1, 1], ctx.padding, [1, 1], False, [0, 0], 1  # from stride to groups
        of_input, of_weight, of_bias = aten.convolution_backward(
            gradient, F.silu(normalized), weight, [len(weight)], *options, [True] * 3
        )
        of_input = aten.silu_backward(of_input, normalized)
        of_norm = aten.native_group_norm_backward(of_input, x, mean, rstd, scale, *ctx.sizes, [True] * 3)
        return *of_norm, of_weight, of_bias, None, None, None


def _is_large_nhwc(x: Tensor) -> bool:
    """Whether torch's GroupNorm would take more than twice as long as for NCHW images."""
    large = x.ndim == 4 and x.shape[2:].numel() >= LARGE
    return large and x.dtype == torch.float32 and x.device.type == "cpu" and _is_nhwc(x)


def _is_nhwc(x: Tensor) -> bool:
    """Whether the channels of a pixel, more than one, are adjacent in memory."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _by_channels(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm(x) as a x + b, with a and b from each channel's mean and mean square."""
    B, C = x.shape[:2]
    mean, square = (F.adaptive_avg_pool2d(y, 1).view(B, norm.num_groups, -1) for y in (x, x * x))
    centre = mean.mean(2, keepdim=True)
    variance = (square.mean(2, keepdim=True) - centre.square()).clamp(min=0)
    a = (variance + norm.eps).rsqrt() * norm.weight.view(1, norm.num_groups, -1)
    b = norm.bias.view(1, norm.num_groups, -1) - centre * a
    return torch.addcmul(b.view(B, C, 1, 1), x, a.view(B, C, 1, 1))
