"""Layers that are optimized for speed, compared with plain ones."""

import pytest
import torch
from torch.nn import functional as F

from lightning_diffusion.networks.layers import SHORT, attend
from lightning_diffusion.networks.unet_blocks import Upsample

F64 = torch.float64


@pytest.mark.parametrize(("dtype", "bound"), [(F64, 1e-7), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("positions", [1, 49, SHORT, SHORT + 1])
def test_attention_is_that_of_torch_at_any_length(positions, dtype, bound):
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, positions, 8).bfloat16().to(F64).requires_grad_() for _ in range(3)]
    qkv = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    plain, ours = F.scaled_dot_product_attention(*exact), attend(*qkv)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.to(F64), plain, rtol=bound, atol=bound)
    expected = torch.autograd.grad(plain, exact, torch.ones_like(plain))
    for found, wanted in zip(torch.autograd.grad(ours, qkv, torch.ones_like(ours)), expected, strict=True):
        torch.testing.assert_close(found.to(F64), wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize("size", [(5, 4), (1, 3)])
def test_doubling_is_nearest_neighbour_and_a_convolution(size):
    torch.manual_seed(0)
    upsample, x = Upsample(6).to(F64), torch.randn(2, 6, *size, dtype=F64, requires_grad=True)
    to = torch.Size(2 * side for side in size)
    plain, ours = upsample.conv(F.interpolate(x, size=to, mode="nearest")), upsample(x, to)
    torch.testing.assert_close(ours, plain)
    inputs, weights = (x, *upsample.parameters()), torch.randn_like(plain)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, weights), torch.autograd.grad(plain, inputs, weights))
