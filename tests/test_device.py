"""Networks as samples are drawn from them."""

import torch

from src.backbones.unet import UNet
from src.device import placed
from src.diffusion import beta
from src.diffusion.denoiser import NetworkDenoiser
from src.diffusion.parameterization import V

CPU = torch.device("cpu")


def kernels(precision):
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(UNet(8, 1, 16, (1, 2), 1, ()), beta.linear(10), V()).eval()
    torch.nn.init.normal_(denoiser.backbone.head.weight)
    return placed(denoiser, CPU, precision, compiled=False), denoiser.backbone.down[0][0].block.conv_1.weight


def test_a_cpu_draws_in_nhwc_in_float32_alone():
    (ours, nhwc), (reduced, nchw) = kernels("32-true"), kernels("bf16-mixed")
    assert nhwc.is_contiguous(memory_format=torch.channels_last)
    assert not nhwc.is_contiguous()
    assert nchw.is_contiguous()
    x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 0.5)
    with torch.inference_mode():
        exact, rounded = ours(x, t), reduced(x, t)
    assert exact.dtype == rounded.dtype == torch.float32
    assert 1e-5 < float((exact - rounded).abs().mean()) < 0.05
