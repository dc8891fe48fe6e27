"""The pieces that are written for speed or memory, against the plain ones."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src.backbones.layers import SHORT, NormSiLU, attend

F64 = torch.float64


def randomized(channels, groups=4):
    torch.manual_seed(0)
    norm = NormSiLU(groups, channels, eps=1e-6).to(F64)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def gradients(output, *inputs):
    torch.manual_seed(1)
    return torch.autograd.grad(output, inputs, torch.randn(output.shape, dtype=output.dtype))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norm_and_activation_are_those_of_torch(layout):
    norm = randomized(8)
    x = torch.randn(3, 8, 5, 4, dtype=F64).to(memory_format=layout).requires_grad_()
    inputs = (x, norm.weight, norm.bias)
    plain = F.silu(F.group_norm(x, 4, norm.weight, norm.bias, 1e-6))
    with torch.no_grad():
        torch.testing.assert_close(norm(x), plain)
    torch.testing.assert_close(norm(x), plain)
    torch.testing.assert_close(gradients(norm(x), *inputs), gradients(plain, *inputs))


@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_norm_and_activation_of_large_images_in_either_layout(offset):
    norm = randomized(8).float()
    x = torch.randn(3, 8, 28, 28) + offset * torch.randn(3, 8, 1, 1)
    plain = F.silu(F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), 1e-6))
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            torch.testing.assert_close(norm(x.to(memory_format=layout)).double(), plain, rtol=1e-4, atol=1e-4)


def test_norm_and_activation_leave_their_input_alone():
    norm, x = randomized(8), torch.randn(2, 8, 3, 3, dtype=F64)
    before = x.clone()
    with torch.inference_mode():
        norm(x)
    assert torch.equal(x, before)


def test_norm_and_activation_keep_no_image_but_their_input():
    norm, kept, x = randomized(8), [], torch.randn(2, 8, 3, 3, dtype=F64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        y = norm(x)
    assert [tensor.data_ptr() for tensor in kept if tensor.ndim == 4] == [x.data_ptr()]
    assert y.requires_grad


def test_norm_and_activation_round_to_bfloat16_as_torch_does():
    torch.manual_seed(0)
    norm = NormSiLU(4, 16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 16, 6, 6).bfloat16().requires_grad_()
    inputs = (x, norm.weight, norm.bias)
    with torch.autocast("cpu", torch.bfloat16):
        plain, ours = F.silu(F.group_norm(x, 4, norm.weight, norm.bias, norm.eps)), norm(x)
    assert torch.equal(ours, plain)
    for found, expected in zip(gradients(ours, *inputs), gradients(plain, *inputs), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


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
