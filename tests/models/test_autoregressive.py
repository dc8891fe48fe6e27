"""The gated PixelCNN and its family: what a pixel depends on, that probabilities sum to 1, that samples follow them."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.models.autoregressive.model import Autoregressive
from lightning_diffusion.models.autoregressive.objective import MaximumLikelihood
from lightning_diffusion.models.contracts import Training
from lightning_diffusion.networks.patch_by_patch import PatchByPatch
from lightning_diffusion.networks.pixelcnn import GatedPixelCNN


def random_network(**changes) -> GatedPixelCNN:
    """With weights that leave nothing at zero, in float64."""
    options = {"in_channels": 2, "image_size": [5, 4], "levels": 8, "width": 12, "depth": 3, "kernel_size": 5}
    torch.manual_seed(0)
    network = GatedPixelCNN(**{**options, **changes})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.double()


def order(network: GatedPixelCNN, H: int, W: int) -> list[tuple[int, int, int]]:
    """(channel, row, column) in the order of the factorization: patches, then rows, columns and channels of a patch."""
    p, C = network.patch_size, network.channels
    return [
        (c, p * i + a, p * j + b)
        for i, j in itertools.product(range(H // p), range(W // p))
        for a, b, c in itertools.product(range(p), range(p), range(C))
    ]


def binary(patch_size: int = 1) -> Autoregressive:
    """A random model of 2×2 images of two levels."""
    network = random_network(in_channels=1, image_size=2, levels=2, width=6, num_classes=3, patch_size=patch_size)
    return Autoregressive(network, 1, 2, num_classes=3)


def all_binary_images() -> torch.Tensor:
    return torch.tensor(list(itertools.product([0, 255], repeat=4)), dtype=torch.uint8).reshape(16, 1, 2, 2)


@pytest.mark.parametrize(("channels", "patch_size"), [(1, 1), (2, 1), (3, 1), (1, 2), (3, 2)])
def test_a_pixel_depends_on_all_before_it_and_on_nothing_else(channels, patch_size):
    network = random_network(in_channels=channels, image_size=[6, 4], patch_size=patch_size)
    x, pixels = torch.rand(1, channels, 6, 4, dtype=torch.float64).requires_grad_(), order(network, 6, 4)
    logits = network(x)[0].flatten(0, 2)  # of the values in the order of the factorization
    for place, pixel in enumerate(pixels):
        (gradient,) = torch.autograd.grad(logits[place].square().sum(), x, retain_graph=True)
        depends = [gradient[0][other].item() != 0 for other in pixels]
        assert not any(depends[place:]), f"pixel {pixel} depends on a pixel after it"
        assert all(depends[:place]), f"pixel {pixel} does not see all pixels before it"


@pytest.mark.parametrize(("channels", "patch_size"), [(3, 1), (1, 2), (3, 2)])
def test_patches_hold_an_image_in_the_order_of_the_factorization(channels, patch_size):
    network = random_network(in_channels=channels, image_size=[6, 4], patch_size=patch_size)
    x = torch.arange(2 * channels * 24).reshape(2, channels, 6, 4)
    patches = network.patches(x)
    assert patches[1].flatten().tolist() == [x[1][pixel].item() for pixel in order(network, 6, 4)]
    assert torch.equal(network.image(patches), x)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_logits_patch_by_patch_are_those_of_the_whole_image(patch_size):
    network = random_network(image_size=[6, 4], num_classes=3, patch_size=patch_size)
    x, condition = torch.rand(2, 2, 6, 4, dtype=torch.float64) * 2 - 1, by_label(torch.tensor([1, 2]))
    expected, patches, cached = network(x, condition), network.patches(x), PatchByPatch(network, 2, condition)
    (rows, columns), row = network.size, None
    for i in range(rows):
        cached.begin_row(row)
        row = torch.zeros(2, network.num_values, 1, columns, dtype=torch.float64)
        for j in range(columns):
            h = cached.features(row, j)
            for k in range(network.num_values):
                found = cached.logits(h, row[..., j : j + 1])[:, k]
                torch.testing.assert_close(found, expected[:, i, j, k], rtol=0, atol=1e-12)
                row[:, k, 0, j] = patches[:, i, j, k]


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("condition", [None, by_label(torch.full((16,), 2))])
def test_probabilities_of_all_images_sum_to_one(condition, patch_size):
    log_p = binary(patch_size).log_probability(all_binary_images(), condition).flatten(1).sum(1)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert log_p.std() > 0.1, "the model should prefer some images"


def test_without_a_class_is_a_class_of_its_own():
    model, images = binary(), all_binary_images()
    without = model.log_probability(images, None)
    for label in range(4):
        same = torch.equal(without, model.log_probability(images, by_label(torch.full((16,), label))))
        assert same == (label == 3), f"class {label}"  # the fourth row of the table


@pytest.mark.parametrize("patch_size", [1, 2])
def test_samples_follow_the_probabilities(patch_size):
    model, N = binary(patch_size), 4000
    label = by_label(torch.ones(N, dtype=torch.long))
    drawn = model.draw(range(N), label, seed=0).images
    found = ((drawn.flatten(1) > 0).long() * torch.tensor([8, 4, 2, 1])).sum(1).bincount(minlength=16)
    expected = model.log_probability(all_binary_images(), by_label(torch.ones(16, dtype=torch.long)))
    p = expected.flatten(1).sum(1).exp().double().numpy(force=True)
    assert scipy.stats.chisquare(found.numpy(), N * p / p.sum()).pvalue > 0.001


def test_a_sample_depends_on_its_seed_number_and_class_only():
    model = binary()
    together = model.draw(range(8), by_label(torch.arange(8) % 3), seed=3).images
    for i in (0, 5):
        alone = model.draw([i], by_label(torch.tensor([i % 3])), seed=3).images
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together, model.draw(range(8), by_label(torch.arange(8) % 3), seed=4).images)


def test_the_trajectory_fills_in_rows_and_ends_with_the_samples():
    model = Autoregressive(random_network(), 2, [5, 4])
    states = list(model.trajectory(range(3), None, seed=0))
    assert len(states) == 6
    assert (states[0] == 128).all()
    for number, state in enumerate(states):
        assert torch.equal(state[:, :, :number], states[-1][:, :, :number])
        assert (state[:, :, number:] == 128).all()
    assert torch.equal(states[-1], model.draw(range(3), None, seed=0).images)


def test_an_untrained_network_pays_eight_bits():
    model = Autoregressive(GatedPixelCNN(1, 4, width=8, depth=1), 1, 4)
    images = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8)
    np.testing.assert_allclose(model.bits_per_dim(images, None, range(3), 0), 8, atol=1e-5)


def test_levels_are_equal_shares_of_the_grey_values():
    model = Autoregressive(GatedPixelCNN(1, 16, levels=4, width=8, depth=1), 1, 16)
    levels = model.levels(torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16))
    assert levels.flatten().bincount().tolist() == [64] * 4
    assert model.images(torch.arange(4)).tolist() == [0, 85, 170, 255]


def test_the_loss_is_the_likelihood_and_a_share_of_classes_is_left_out():
    model, B = binary(), 400
    images, label = all_binary_images()[torch.arange(B) % 16], torch.ones(B, dtype=torch.long)
    training = Training(0.0, model)

    def loss(objective, label):
        return objective.loss(model, Batch(images, by_label(label), 0), BatchRNG(0), training).values

    with_class, without = (loss(MaximumLikelihood(), label + more) for more in (0, 2))
    torch.testing.assert_close(with_class, model.bits_per_dim(images, by_label(label), range(B), 0))
    mixed = loss(MaximumLikelihood(label_dropout=0.25), label)
    dropped = mixed == without
    assert torch.equal(mixed[~dropped], with_class[~dropped])
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / B))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"width": 0}, "network.width=0"),
        ({"patch_size": 2}, "network.patch_size=2"),
        ({"depth": 0}, "network.depth=0"),
        ({"kernel_size": 4}, "kernel_size=4"),
        ({"levels": 1}, "network.levels=1"),
        ({"levels": 257}, "network.levels=257"),
    ],
)
def test_values_out_of_range_are_refused_by_name(options, named):
    with pytest.raises(ValueError, match=named):
        random_network(**options)
