import diffusers
import pytest
import torch
from torch.nn import functional as F

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.networks.layers import sinusoidal_embedding
from lightning_diffusion.networks.unet import UNet
from lightning_diffusion.networks.unet_blocks import BlockConfig, Downsample, Halve, ResidualBlock, SelfAttention
from lightning_diffusion.networks.unet_plan import Level, plan_levels


def tiny(image_size=8, **options):
    defaults = {
        "in_channels": 1,
        "channels": 16,
        "channel_mults": (1, 2),
        "num_blocks": 1,
        "attention_resolutions": (),
    }
    return UNet(image_size, **(defaults | options))


def randomized(network):
    """Gives all parameters random values: zero-initialized layers would hide the layers before them."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return network


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_default_is_ddpms_cifar10_network():
    """35.7 M parameters. Ref: DDPM App. B; the published weights in diffusers' form have as many."""
    theirs = diffusers.UNet2DModel(
        sample_size=32,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
    )
    assert count(UNet(32, 3)) == count(theirs) == 35_746_307


def test_plan_of_the_levels_by_hand():
    """Skip connections of 8 (stem), 16, 16 (stage, downsampling) and 24 channels, taken from the last to the first."""
    down, up = plan_levels(8, [2, 3], 1, [False, True])
    assert down == [Level((8,), 16, False, True), Level((16,), 24, True, False)]
    assert up == [Level((24 + 24, 24 + 16), 24, True, True), Level((24 + 16, 16 + 8), 16, False, False)]


def test_sinusoidal_embedding_is_ddpms():
    time = torch.tensor([1.0, 17.0, 1000.0])
    theirs = diffusers.models.embeddings.get_timestep_embedding(time, 32, downscale_freq_shift=1)
    # an angle of 1000 has a spacing of 6e-5 in float32
    torch.testing.assert_close(sinusoidal_embedding(time, 32), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [7, 8, 9, 28, 31, 33])
def test_any_size_comes_back(size):
    x = torch.randn(2, 1, size, size)
    assert tiny(size, channel_mults=(1, 2, 2))(x, torch.ones(2)).shape == x.shape


@pytest.mark.parametrize("size", [7, 8])
def test_every_pixel_reaches_the_output(size):
    """A hidden crop or misplaced padding would cut off pixels."""
    network = randomized(tiny(size))
    x = torch.randn(1, 1, size, size, requires_grad=True)
    network(x, torch.ones(1)).square().sum().backward()
    assert (x.grad != 0).all()


def test_starts_at_zero_and_gradients_reach_every_parameter():
    network = tiny(num_classes=10, attention_resolutions=(4,), num_heads=2)
    x, time, condition = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 900.0]), by_label(torch.tensor([3, 10]))
    assert (network(x, time, condition) == 0).all()
    randomized(network)(x, time, condition).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_time_and_class_matter_and_no_class_is_a_class_of_its_own():
    network = randomized(tiny(num_classes=10)).eval()
    x, time = torch.randn(1, 1, 8, 8), torch.tensor([500.0])
    outputs = [
        network(x, time, by_label(torch.tensor([3]))),
        network(x, time, by_label(torch.tensor([4]))),
        network(x, torch.tensor([501.0]), by_label(torch.tensor([3]))),
        network(x, time),
    ]
    for i, first in enumerate(outputs):
        for second in outputs[i + 1 :]:
            assert not torch.allclose(first, second)
    assert torch.equal(outputs[-1], network(x, time, by_label(torch.tensor([10]))))


@pytest.mark.parametrize("channels", [8, 16, 32, 48, 64, 128])
def test_normalization_does_not_undo_the_embedding(channels):
    """With one channel a group, GroupNorm would subtract the constant that the embedding adds to a channel."""
    block = randomized(tiny(channels=channels).down[0][0].block).eval()
    x, embedding = torch.randn(1, channels, 8, 8), torch.ones(1, 4 * channels)
    first, second = block(x, embedding), block(x, -embedding)
    assert ((first - second).abs().mean((0, 2, 3)) > 1e-3 * first.abs().mean()).all()


@pytest.mark.parametrize("outputs", [1, 2])
def test_patches_are_pixels_folded_into_channels(outputs):
    """Equals folding, the network for half the side and four times the channels, and unfolding."""
    folding = randomized(tiny(8, in_channels=2, patch_size=2, outputs=outputs, num_classes=3)).eval()
    inner = tiny(4, in_channels=8, outputs=outputs, num_classes=3).eval()
    inner.load_state_dict(folding.state_dict())
    x, time, labels = torch.randn(3, 2, 8, 8), torch.tensor([1.0, 300.0, 1000.0]), torch.tensor([0, 1, 3])
    inside = inner(F.pixel_unshuffle(x, 2), time, by_label(labels))
    expected = [F.pixel_shuffle(part, 2) for part in inside.chunk(outputs, dim=1)]  # an image, and its variance
    assert torch.equal(folding(x, time, by_label(labels)), torch.cat(expected, dim=1))


def test_images_of_a_batch_do_not_meet():
    network = randomized(tiny(attention_resolutions=(4,))).eval()
    x, time = torch.randn(5, 1, 8, 8), torch.linspace(1, 1000, 5)
    torch.testing.assert_close(network(x, time)[3:4], network(x[3:4], time[3:4]))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (
            {"attention_resolutions": (5,)},
            r"attention_resolutions=\[5\]: no level is 5 pixels wide.*\[8, 4\]",
        ),
        ({"channel_mults": (1, 1, 1, 1, 1)}, r"channel_mults=.*data.image_size=8"),
        ({"channel_mults": ()}, "channel_mults"),
        ({"channels": 3}, "backbone.channels=3"),
        ({"num_blocks": 0}, "backbone.num_blocks=0"),
        ({"dropout": 1.5}, "backbone.dropout=1.5"),
        ({"norm_groups": 0}, "backbone.norm_groups=0"),
        ({"num_heads": 0}, "backbone.num_heads=0"),
        ({"num_heads": 3}, "backbone.num_heads=3 does not divide"),
        ({"patch_size": 3}, "backbone.patch_size=3 and data.image_size=8: patches do not fill the image"),
        ({"patch_size": 0}, "backbone.patch_size=0 .*choose backbone.patch_size among"),
        ({"patch_size": 4, "channel_mults": (1, 1, 1)}, "shrink to"),
    ],
)
def test_refuses_what_cannot_be_built(options, key):
    with pytest.raises(ValueError, match=key):
        tiny(**options)


@pytest.mark.parametrize("size", [7, 8])
def test_downsampling_is_aligned_as_in_the_published_weights(size):
    """TensorFlow's SAME padding: with stride 2 an even side is padded at its end only, an odd one at both ends."""
    layer = Downsample(1)
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.bias.zero_()
        layer.conv.weight[0, 0, 1, 1] = 1  # the middle of the window
    x = torch.arange(size * size, dtype=torch.float32).reshape(1, 1, size, size)
    first = 1 if size % 2 == 0 else 0
    assert torch.equal(layer(x), x[..., first::2, first::2])


def test_branches_start_as_the_identity():
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(SelfAttention(16, BlockConfig(8, norm_groups=4))(x), x)
    assert torch.equal(ResidualBlock(16, 16, BlockConfig(8, norm_groups=4))(x, torch.randn(2, 8)), x)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_dropout_acts_only_in_training(scale_shift):
    block = randomized(ResidualBlock(8, 8, BlockConfig(4, norm_groups=2, dropout=0.5, scale_shift=scale_shift)))
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    assert not torch.equal(block(x, embedding), block(x, embedding))
    block.eval()
    assert torch.equal(block(x, embedding), block(x, embedding))


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad])
def test_a_block_that_resamples_does_so_before_its_convolution(grad):
    """Also in training, where a norm and the next convolution are otherwise one function."""
    block, plain = (randomized(ResidualBlock(8, 8, BlockConfig(4, norm_groups=2), halve)) for halve in (Halve(), None))
    x, embedding = torch.randn(2, 8, 6, 6), torch.randn(2, 4)
    with grad():
        expected = F.avg_pool2d(x, 2) + plain.conv_2(
            plain.norm_2(
                plain.conv_1(F.avg_pool2d(plain.norm_1(x), 2)) + plain.embedding(F.silu(embedding))[:, :, None, None]
            )
        )
        torch.testing.assert_close(block(x, embedding), expected)
