"""Images that are not square: every network takes them, and [n, n] equals n to the bit."""

import pytest
import torch

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.codecs.image_size import height_width, simplest
from lightning_diffusion.networks.dit import DiT
from lightning_diffusion.networks.summary import noisy_images, summarize
from lightning_diffusion.networks.transformer import Patches, position_embedding
from lightning_diffusion.networks.unet import UNet
from lightning_diffusion.networks.unet_blocks import SelfAttention
from lightning_diffusion.networks.unet_lecture import LectureUNet
from lightning_diffusion.networks.uvit import UViT
from tests.backbones.test_unet import randomized

NETWORKS = {
    "unet": lambda size: UNet(size, 2, 16, (1, 2), 1, (10,), num_classes=3),
    "folded": lambda size: UNet(size, 2, 16, (1, 2), 1, (5,), num_classes=3, patch_size=2),
    "adm": lambda size: UNet(size, 2, 16, (1, 2), 1, (10,), num_classes=3, scale_shift=True, resampling="residual"),
    "lecture": lambda size: LectureUNet(2, 8, depth=2, num_classes=3, image_size=size),
    "dit": lambda size: DiT(size, 2, patch_size=4, dim=32, depth=2, num_heads=2, num_classes=3),
    "uvit": lambda size: UViT(size, 2, patch_size=4, dim=32, depth=3, num_heads=2, num_classes=3),
}
each = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
TIME, CONDITION = torch.tensor([3.0, 700.0]), by_label(torch.tensor([0, 2]))


@each
@pytest.mark.parametrize("size", [[12, 20], (20, 12)])
def test_images_that_are_not_square_come_back_and_every_pixel_counts(make, size):
    network = randomized(make(size))
    x = torch.randn(2, 2, *size, requires_grad=True)
    output = network(x, TIME, CONDITION)
    assert output.shape == x.shape
    output.square().sum().backward()
    assert (x.grad != 0).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert tuple(size) in summarize(network, noisy_images((2, *size), 3)).levels or not isinstance(network, LectureUNet)


@each
def test_a_square_by_both_sides_is_the_same_network(make):
    networks = []
    for size in (20, [20, 20]):
        torch.manual_seed(0)
        networks.append(make(size))
    one, other = (dict(network.named_parameters()) | dict(network.named_buffers()) for network in networks)
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    x = torch.randn(2, 2, 20, 20)
    first, second = (randomized(network)(x, TIME, CONDITION) for network in networks)
    assert torch.equal(first, second)


def test_patches_go_back_to_where_they_were():
    patches = Patches([4, 6], channels=3, patch_size=2, dim=12, out_channels=3)
    with torch.no_grad():  # a token is its patch, (row, column, channel)
        patches.embed.weight.copy_(torch.eye(12).reshape(12, 2, 2, 3).permute(0, 3, 1, 2))
        patches.unembed.weight.copy_(torch.eye(12))
        x = torch.randn(2, 3, 4, 6)
        tokens = patches.to_tokens(x)
        assert tokens.shape == (2, 6, 12)
        assert torch.equal(tokens[:, 4], x[:, :, 2:4, 2:4].permute(0, 2, 3, 1).flatten(1))  # the second of row two
        assert torch.equal(patches.to_image(tokens), x)


def test_a_position_is_that_of_its_row_and_column_in_any_image():
    whole = position_embedding(5, 5, 16).reshape(5, 5, 16)
    assert torch.equal(position_embedding(3, 5, 16).reshape(3, 5, 16), whole[:3])
    assert torch.equal(position_embedding(5, 2, 16).reshape(5, 2, 16), whole[:, :2])


@pytest.mark.parametrize("size", [[12, 20], [20, 12]])
def test_a_level_attends_by_its_longer_side(size):
    network = UNet(size, 1, 16, (1, 2), 1, (10,))
    assert [isinstance(stages[0].attention, SelfAttention) for stages in network.down] == [False, True]
    with pytest.raises(ValueError, match=r"no level is 6 pixels wide on its longer side; choose among \[20, 10\]"):
        UNet(size, 1, 16, (1, 2), 1, (6,))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: DiT([12, 22], 1, 4, 32), r"patch_size=4 and data.image_size=\[12,22\]: .* among \[1, 2\], or "
         r"data.image_size=\[12,20\] or \[12,24\]"),
        (lambda: UNet([4, 20], 1, 16, (1, 1, 1), 1, ()), r"data.image_size=\[4,20\]: the levels shrink to \[4, 2, 1\]"),
        (lambda: LectureUNet(1, 8, depth=3, image_size=[20, 6]), r"data.image_size=\[20,6\]: .* backbone.depth <= 2"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


@pytest.mark.parametrize(
    "size",
    [0, -1, True, 2.0, "a", "ab", None, [], [16], [16, 0], [16, 24, 3], [16, 2.0], [True, 8], [[8], [8]], [9] * 10**6],
    ids=lambda size: str(size)[:20],
)  # fmt: skip
def test_what_is_no_size(size):
    with pytest.raises(ValueError, match=r"^data.image_size=.*: choose a whole number") as caught:
        height_width(size)
    assert len(str(caught.value)) < 200


def test_what_is_a_size():
    assert [height_width(size) for size in (7, [7, 9], (9, 7))] == [(7, 7), (7, 9), (9, 7)]
    assert [simplest(size) for size in (7, [7, 7], [7, 9], "a", None)] == [7, 7, [7, 9], "a", None]
