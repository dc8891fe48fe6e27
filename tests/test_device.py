"""Networks as samples are drawn from them."""

import torch

from lightning_diffusion.diffusion import beta
from lightning_diffusion.diffusion.denoiser import NetworkDenoiser
from lightning_diffusion.diffusion.parameterization import V
from lightning_diffusion.models.diffusion.model import DiffusionModel
from lightning_diffusion.networks.unet import UNet
from lightning_diffusion.training.devices import prepare_for_inference

CPU = torch.device("cpu")


def kernels(precision):
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(UNet(8, 1, 16, (1, 2), 1, ()), beta.linear(10), V()).eval()
    torch.nn.init.normal_(denoiser.backbone.head.weight)
    model = prepare_for_inference(DiffusionModel(denoiser, 1, 8), CPU, precision, compiled=False)
    return model.denoiser, denoiser.backbone.down[0][0].block.conv_1.weight


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
