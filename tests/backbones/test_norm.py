"""The optimized GroupNorm, SiLU and convolution, compared with torch's in sequence."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_diffusion.networks.norm import NormSiLU, _by_channels, norm_silu_conv

F64 = torch.float64
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def randomized(channels, groups=4):
    torch.manual_seed(0)
    norm = NormSiLU(groups, channels, eps=1e-6)
    conv = nn.Conv2d(channels, 6, 3, padding=1)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm, conv


def plain(norm, conv, x):
    return conv(F.silu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)))


def gradients(output, *inputs):
    torch.manual_seed(1)
    return torch.autograd.grad(output, inputs, torch.randn(output.shape, dtype=output.dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_and_gradients_are_those_of_torch(layout):
    norm, conv = (module.to(F64) for module in randomized(8))
    x = torch.randn(3, 8, 5, 4, dtype=F64).to(memory_format=layout).requires_grad_()
    inputs = (x, *norm.parameters(), *conv.parameters())
    expected, found = plain(norm, conv, x), norm_silu_conv(norm, conv, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, *inputs), gradients(expected, *inputs))
    torch.testing.assert_close(gradients(norm_silu_conv(norm, conv, x), *inputs), gradients(conv(norm(x)), *inputs))
    with torch.no_grad():
        torch.testing.assert_close(norm_silu_conv(norm, conv, x), expected)


def test_a_frozen_norm_leaves_the_rest_its_gradients():
    norm, conv = (module.to(F64) for module in randomized(8))
    norm.requires_grad_(False)
    x = torch.randn(3, 8, 5, 4, dtype=F64)
    expected, found = (gradients(f(norm, conv, x), *conv.parameters()) for f in (plain, norm_silu_conv))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_large_images_in_either_layout(offset):
    norm, _ = randomized(8)
    x = torch.randn(3, 8, 28, 28) + offset * torch.randn(3, 8, 1, 1)
    expected = F.silu(F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), 1e-6))
    with torch.no_grad():
        for layout in LAYOUTS:
            torch.testing.assert_close(norm(x.to(memory_format=layout)).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_the_input_is_left_alone(mode):
    norm, conv = randomized(8)
    x = torch.randn(2, 8, 3, 3)
    before = x.clone()
    with mode():
        norm_silu_conv(norm, conv, x)
    assert torch.equal(x, before)


def test_nothing_but_the_input_is_kept():
    norm, conv = randomized(8)
    kept, x = [], torch.randn(2, 8, 3, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        norm_silu_conv(norm, conv, x)
    assert {tensor.data_ptr() for tensor in kept if tensor.ndim == 4} == {x.data_ptr(), conv.weight.data_ptr()}


@pytest.mark.parametrize("frozen", [False, True])
def test_it_can_be_differentiated_twice(frozen):
    norm, conv = (module.to(F64) for module in randomized(4, groups=2))
    norm.requires_grad_(not frozen)
    x = torch.randn(2, 4, 3, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: norm_silu_conv(norm, conv, x), (x, *conv.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])  # of the input under autocast
def test_bfloat16_rounds_as_torch_does(dtype):
    norm, conv = randomized(16)
    x = torch.randn(3, 16, 6, 6).to(dtype).requires_grad_()
    inputs = (x, *norm.parameters(), *conv.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = plain(norm, conv, x), norm_silu_conv(norm, conv, x)
    assert torch.equal(found, expected)
    assert found.dtype == torch.bfloat16
    for ours, theirs in zip(gradients(found, *inputs), gradients(expected, *inputs), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=5e-2)


def test_gradients_by_the_moments_of_channels():
    """The form of GroupNorm that is compiled for NHWC images on a GPU."""
    norm, _ = randomized(8)
    norm.to(F64)
    x = (torch.randn(3, 8, 5, 4, dtype=F64) + 2).to(memory_format=torch.channels_last).requires_grad_()
    inputs = (x, *norm.parameters())
    expected, found = F.group_norm(x, 4, norm.weight, norm.bias, norm.eps), _by_channels(norm, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, *inputs), gradients(expected, *inputs))
