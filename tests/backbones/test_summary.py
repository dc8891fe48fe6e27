"""The cost of a network, compared with counts by hand."""

import pytest
import torch
from torch import nn

from lightning_diffusion.networks.dit import DiT
from lightning_diffusion.networks.summary import noisy_images, summarize
from lightning_diffusion.networks.unet import UNet
from src.summary import main
from tests.command import in_process
from tests.test_mistakes import check_one_line


class OneConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x, time, condition):
        return torch.relu(self.conv(x))


def test_one_convolution_by_hand():
    summary = summarize(OneConvolution(), noisy_images((1, 8, 8), None))
    assert summary.parameters == 4 * 9 + 4
    assert summary.flops == 2 * 64 * 4 * 9
    assert summary.activation_bytes == 4 * (64 + 4 * 64)  # the input, for the convolution; the output, for the ReLU
    assert {place: (level.layers, level.channels) for place, level in summary.levels.items()} == {(8, 8): (1, {4})}


def test_attention_is_counted_and_placed():
    network = DiT(8, 1, patch_size=2, dim=32, depth=1, num_heads=2)
    N, d = 16, 32
    block = 2 * N * d * (3 * d + d + 8 * d) + 2 * 2 * N * N * d  # projections and MLP; QKᵀ and its product with V
    embedding = 2 * 32 * 32 * 2 + 2 * d * (6 + 2) * d
    patches = 2 * N * d * 4 + 2 * N * 4 * d
    summary = summarize(network, noisy_images((1, 8, 8), None))
    assert summary.flops == block + embedding + patches
    assert summary.levels[16,].attentions == 1
    assert summary.levels[16,].heads == {2}
    unet = summarize(UNet(9, 1, 16, (1, 2, 2), 1, (5,)), noisy_images((1, 9, 9), None))
    assert set(unet.levels) == {(9, 9), (5, 5), (3, 3)}
    assert [unet.levels[n, n].attentions for n in (9, 5, 3)] == [0, 3, 1]  # one down, two up; the middle


def test_checkpointing_shows_in_the_memory():
    options = (8, 1, 16, (1, 2), 1, ())
    plain, frugal = (summarize(UNet(*options, checkpointing=c), noisy_images((1, 8, 8), None)) for c in (False, True))
    assert frugal.activation_bytes < 0.6 * plain.activation_bytes  # one kept image per block instead of two
    assert frugal.parameters == plain.parameters


@pytest.mark.parametrize("backbone", ["unet", "adm", "dit", "uvit", "unet_lecture"])
def test_table_of_every_network(tmp_path, backbone):
    status, out, err = in_process(main, f"backbone={backbone}", cwd=tmp_path)
    assert status == 0, err
    for word in ("parameters", "FLOPs", "activations", "resolution", "attention"):
        assert word in out
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_one_line(tmp_path):
    status, _, err = in_process(main, "backbone=dit", "backbone.patch_size=3", cwd=tmp_path)
    check_one_line(status, err, "backbone.patch_size=3 and data.image_size=8", tmp_path)
