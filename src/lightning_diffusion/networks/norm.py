"""GroupNorm and SiLU before a convolution, in few passes and with few activations kept."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten

LARGE = 512  # positions from which a CPU normalizes NHWC images faster by their channels' moments


class GroupNorm(nn.GroupNorm):
    """torch's. Compiled for a GPU, it reads NHWC images as they lie; torch's kernels copy them to NCHW first."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and x.device.type == "cuda" and _is_nhwc(x):
            return _by_channels(self, x.float())
        return super().forward(x)


class NormSiLU(GroupNorm):
    """SiLU(GroupNorm(x)), in one buffer where no gradient is asked for."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return F.silu(super().forward(x))
        return F.silu(_by_channels(self, x) if _is_large_nhwc(x) else super().forward(x), inplace=True)


def norm_silu_conv(norm: NormSiLU, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv(SiLU(GroupNorm(x))), convolved with padding alone; training on a CPU keeps nothing of it but x.

    A compiler weighs for itself what to keep.
    """
    here = x.device.type == "cpu" and x.dtype == _precision(conv) and not torch.compiler.is_compiling()
    if not (here and torch.is_grad_enabled() and conv.bias is not None):
        return conv(norm(x))
    parameters = norm.weight, norm.bias, conv.weight.to(x.dtype), conv.bias.to(x.dtype)
    return cast(Tensor, _NormSiLUConv.apply(x, *parameters, norm.num_groups, norm.eps, conv.padding))


def _precision(conv: nn.Conv2d) -> torch.dtype:
    """That a CPU convolves in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else conv.weight.dtype


class _NormSiLUConv(torch.autograd.Function):
    """Keeps x; the backward pass normalizes and activates anew, which is little beside the convolution."""

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
        if torch.is_grad_enabled():  # what is returned is to be differentiated again
            normalized = F.group_norm(x, ctx.sizes[-1], scale, shift, ctx.eps)
            y = F.conv2d(F.silu(normalized), weight, bias, padding=ctx.padding)
            needed = [tensor for tensor in ctx.saved_tensors if tensor.requires_grad]
            found = iter(torch.autograd.grad(y, needed, gradient, create_graph=True))
            return *(next(found) if tensor.requires_grad else None for tensor in ctx.saved_tensors), None, None, None
        normalized, mean, rstd = aten.native_group_norm(x, scale, shift, *ctx.sizes, ctx.eps)
        plain = [1, 1], ctx.padding, [1, 1], False, [0, 0], 1  # stride, padding, dilation, transposed or not, groups
        through, of_weight, of_bias = aten.convolution_backward(
            gradient, F.silu(normalized), weight, [len(weight)], *plain, [True] * 3
        )
        through = aten.silu_backward(through, normalized)
        of_norm = aten.native_group_norm_backward(through, x, mean, rstd, scale, *ctx.sizes, [True] * 3)
        return *of_norm, of_weight, of_bias, None, None, None


def _is_large_nhwc(x: Tensor) -> bool:
    """Whether torch's GroupNorm would take more than twice as long as it does in NCHW."""
    large = x.ndim == 4 and x.shape[2:].numel() >= LARGE
    return large and x.dtype == torch.float32 and x.device.type == "cpu" and _is_nhwc(x)


def _is_nhwc(x: Tensor) -> bool:
    """Whether the channels of a pixel, more than one, lie side by side."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _by_channels(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm(x) from each channel's mean and mean square, in one pass as a x + b."""
    B, C = x.shape[:2]
    mean, square = (F.adaptive_avg_pool2d(y, 1).view(B, norm.num_groups, -1) for y in (x, x * x))
    centre = mean.mean(2, keepdim=True)
    variance = (square.mean(2, keepdim=True) - centre.square()).clamp(min=0)
    a = (variance + norm.eps).rsqrt() * norm.weight.view(1, norm.num_groups, -1)
    b = norm.bias.view(1, norm.num_groups, -1) - centre * a
    return torch.addcmul(b.view(B, C, 1, 1), x, a.view(B, C, 1, 1))
