"""Requirements for every network."""

import pytest
import torch
from sklearn.datasets import load_digits

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.networks.dit import DiT
from lightning_diffusion.networks.unet import UNet
from lightning_diffusion.networks.unet_lecture import LectureUNet
from lightning_diffusion.networks.uvit import UViT
from tests.backbones.test_unet import randomized


def unet(image_size=8, **options):
    return UNet(image_size, 1, 16, (1, 2), 1, (4,), **options)


def adm(image_size=8, **options):
    return unet(image_size, head_dim=8, scale_shift=True, resampling="residual", **options)


def symmetric(image_size=8, **options):
    return unet(image_size, resampling="symmetric_conv", norm_groups=8, norm_eps=1e-5, **options)


def lecture(image_size=8, **options):
    return LectureUNet(1, 16, depth=2, image_size=image_size, **options)


def dit(image_size=8, **options):
    return DiT(image_size, 1, patch_size=2, dim=64, depth=2, num_heads=2, **options)


def uvit(image_size=8, **options):
    return UViT(image_size, 1, patch_size=2, dim=64, depth=3, num_heads=2, **options)


ALL = [unet, adm, symmetric, lecture, dit, uvit]
CHECKPOINTING = [unet, adm, dit, uvit]
each = pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)


def batch(count=2):
    return torch.randn(count, 1, 8, 8), torch.linspace(1, 900, count), by_label(torch.arange(count) % 11)


@each
def test_starts_at_zero_and_gradients_reach_every_parameter(make):
    network = make(num_classes=10, outputs=2)
    x, time, condition = batch(11)
    output = network(x, time, condition)
    assert output.shape == (11, 2, 8, 8)
    assert (output == 0).all()
    randomized(network)(x, time, condition).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@each
def test_overfits_a_batch_of_eight_digits(make):
    """With their noise and times fixed, the loss falls below 2% of its start."""
    torch.manual_seed(0)
    digits = load_digits()
    x_0 = torch.tensor(digits.images[:8, None] / 8 - 1).float()
    labels, time = torch.tensor(digits.target[:8]), torch.linspace(50, 950, 8)
    level = (time / 1000)[:, None, None, None]
    eps = torch.randn_like(x_0)
    x_t, target = (1 - level) * x_0 + level * eps, eps - x_0
    network, losses = make(num_classes=10), []
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(400):
        loss = (network(x_t, time, by_label(labels)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if losses[-1] < 0.02 * losses[0]:
            break
    assert losses[-1] < 0.02 * losses[0], losses[-1] / losses[0]


@each
def test_time_and_class_matter_and_images_of_a_batch_do_not_meet(make):
    network = randomized(make(num_classes=10)).eval()
    x, time, condition = batch(5)
    together = network(x, time, condition)
    scale = float(together.detach().abs().max())
    torch.testing.assert_close(network(x[3:4], time[3:4], condition[3:4]), together[3:4], rtol=1e-4, atol=1e-5 * scale)
    for other in (
        network(x, time + 1, condition),
        network(x, time, by_label((condition.label + 1) % 10)),
        network(x, time),
    ):
        assert ((other - together).flatten(1).abs().amax(1) > 1e-6 * scale).all()
    assert torch.equal(network(x, time), network(x, time, by_label(torch.full((5,), 10))))


@each
def test_every_pixel_reaches_the_output(make):
    network = randomized(make())
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    network(x, torch.ones(1)).square().sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize("make", [unet, adm, symmetric, lecture], ids=lambda make: make.__name__)
@pytest.mark.parametrize("size", [7, 9, 13])
def test_odd_sizes_come_back(make, size):
    network = randomized(LectureUNet(1, 8, 2) if make is lecture else make_without_attention(make, size))
    x = torch.randn(1, 1, size, size, requires_grad=True)
    output = network(x, torch.ones(1))
    assert output.shape == x.shape
    output.square().sum().backward()
    assert (x.grad != 0).all()


def make_without_attention(make, size):
    resampling = {"unet": "conv", "adm": "residual", "symmetric": "symmetric_conv"}[make.__name__]
    return UNet(size, 1, 16, (1, 2, 2), 1, (), resampling=resampling)


@pytest.mark.parametrize("make", CHECKPOINTING, ids=lambda make: make.__name__)
def test_checkpointing_changes_nothing_but_what_is_kept(make):
    network, again = randomized(make()), randomized(make(checkpointing=True))
    x, time, _ = batch()
    kept = {}
    for model in (network, again):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
            loss = model(x, time).square().mean()
        loss.backward()
        kept[model] = sum(sizes)
    assert kept[again] < 0.5 * kept[network]
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def compiled_equals_eager(make, backend):
    network = randomized(make(num_classes=10)).eval()
    x, time, condition = batch()
    expected = network(x, time, condition)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend=backend)(x, time, condition)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("make", [dit], ids=lambda make: make.__name__)
def test_traced_whole_it_gives_the_same(make):
    compiled_equals_eager(make, "aot_eager")


@pytest.mark.slow
@each
def test_compiled_it_gives_the_same(make):
    compiled_equals_eager(make, "inductor")


def test_lectures_network_without_time_is_a_plain_image_to_image_network():
    network = randomized(LectureUNet(3, 8, depth=2, out_channels=5, time=False))
    assert network.embedding is None
    assert network(torch.randn(2, 3, 20, 12)).shape == (2, 5, 20, 12)


def test_lectures_channels_double_on_the_way_down_and_halve_on_the_way_up():
    network = LectureUNet(1, 8, depth=3)
    widths = [step.conv_2.out_channels for step in network.contracting_path]
    assert (widths, network.bottom.conv_2.out_channels) == ([8, 16, 32], 64)
    assert [step.up_convolution.out_channels for step in network.expanding_path] == [32, 16, 8]
    assert [step.double_convolution.conv_1.in_channels for step in network.expanding_path] == [64, 32, 16]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: dit(9), r"patch_size=2 and data.image_size=9: .* among \[1, 3, 9\], or data.image_size=8 or 10"),
        (lambda: uvit(9), "backbone.patch_size=2 and data.image_size=9"),
        (lambda: DiT(8, 1, dim=30), "backbone.dim=30, num_heads=4"),
        (lambda: UViT(8, 1, depth=4), "backbone.depth=4: choose an odd number"),
        (lambda: LectureUNet(1, 8, depth=4, image_size=8), "backbone.depth=4 and data.image_size=8.*depth <= 3"),
        (lambda: LectureUNet(1, 7), "backbone.channels=7"),
        (lambda: UNet(8, 1, 16, (1, 2), 1, (4,), head_dim=5), "backbone.head_dim=5 does not divide"),
        (lambda: UNet(8, 1, 16, (1, 2), 1, (), norm_groups=3), "backbone.norm_groups=3 and backbone.channels=16"),
    ],
)  # fmt: skip
def test_refusals(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()
