"""Variational autoencoders: the bound of a model whose likelihood is known, the distribution of a pixel, drawing."""

import math

import pytest
import scipy.stats
import torch
from torch import nn

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.codecs.pixels import to_model, to_uint8
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.models.contracts import Training
from lightning_diffusion.models.vae.model import LEAST_STD, VAE
from lightning_diffusion.models.vae.objective import EvidenceLowerBound
from lightning_diffusion.networks.autoencoder import ConvAutoencoder

D, BIN = 6, 2 / 255  # pixels of a toy image; the width of a grey level in [−1, 1]


def inverse_softplus(std: float) -> float:
    return math.log(math.expm1(std - LEAST_STD))


class LinearGaussian(nn.Module):
    """Probabilistic PCA: x = W z + ε, and the encoder that is its posterior, N(M⁻¹ Wᵀ x, σ² M⁻¹), M = Wᵀ W + σ² I.

    W has orthogonal columns, so the posterior is diagonal. `error` moves the encoder away from it.
    """

    latent_dim = 2

    def __init__(self, std: float = 0.12, error: float = 0.0) -> None:
        super().__init__()
        self.std, self.error, self.head = std, error, nn.Conv2d(1, 3, 1)
        columns, _ = torch.linalg.qr(torch.randn(D, 2, generator=torch.Generator().manual_seed(0)))
        self.W = columns * torch.tensor([0.25, 0.15])

    def encode(self, x, condition):
        M = self.W.T @ self.W + self.std**2 * torch.eye(2)
        mean = x.flatten(1) @ self.W @ M.inverse()
        log_variance = (self.std**2 / M.diagonal()).log().expand_as(mean)
        return mean + self.error, log_variance + self.error

    def decode(self, z, condition):
        mean = z @ self.W.T
        parts = torch.stack([torch.zeros_like(mean), mean, torch.full_like(mean, inverse_softplus(self.std))], dim=1)
        return parts.unflatten(2, (2, 3))

    def forward(self, x, eps, condition=None):
        mean, log_variance = self.encode(x, condition)
        return mean, log_variance, self.decode(mean + (log_variance / 2).exp() * eps, condition)

    def images(self, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        z, noise = torch.randn(count, 2, generator=generator), torch.randn(count, D, generator=generator)
        images = to_uint8((z @ self.W.T + self.std * noise).reshape(count, 1, 2, 3))
        assert 0 < images.min() < images.max() < 255, "the outermost bins are wider"
        return images

    def true_bits(self, images: torch.Tensor) -> torch.Tensor:
        """−log₂ N(x; 0, W Wᵀ + σ² I) of a grey level's width, per dimension."""
        covariance = self.W @ self.W.T + self.std**2 * torch.eye(D)
        density = torch.distributions.MultivariateNormal(torch.zeros(D), covariance)
        log_p = density.log_prob(to_model(images).flatten(1)) + D * math.log(BIN)
        return -log_p / (D * math.log(2))


def linear(error: float = 0.0) -> VAE:
    return VAE(LinearGaussian(error=error), 1, [2, 3], components=1)


def test_the_bound_of_probabilistic_pca_is_its_likelihood():
    model = linear()
    images = model.network.images(500)
    found = model.likelihoods(images, None, range(500), seed=0, num_latents=4)
    for bits in found.values():
        torch.testing.assert_close(bits, model.network.true_bits(images), atol=1e-3, rtol=0)
    by_one_latent = model.bits_per_dim(images, None, range(500), seed=0)
    difference = by_one_latent - model.network.true_bits(images)
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(500) + 1e-3


def test_a_worse_encoder_pays_for_it_and_more_latents_tighten_the_bound():
    model = linear(error=0.6)
    images = model.network.images(2000)
    true = model.network.true_bits(images)
    gaps = [(model.bits_per_dim(images, None, range(2000), seed=0) - true).mean().item()]
    for count in (4, 16, 64):
        found = model.likelihoods(images, None, range(2000), 0, num_latents=count)
        gaps.append((found[f"importance_weighted_{count}"] - true).mean().item())
        assert found["bound"].mean() > found[f"importance_weighted_{count}"].mean()
    assert gaps == sorted(gaps, reverse=True), gaps
    assert gaps[0] > 0.02
    assert -1e-3 < gaps[-1] < gaps[0] / 10


@pytest.mark.parametrize("components", [1, 3])
def test_the_probabilities_of_a_pixels_values_sum_to_one(components):
    model = VAE(ConvAutoencoder(1, 4, outputs=3 * components), 1, 4, components=components)
    output = 3 * torch.randn(1, 3 * components, 1, 1, generator=torch.Generator().manual_seed(0))
    values = to_model(torch.arange(256, dtype=torch.uint8)).reshape(256, 1, 1, 1)
    assert model.log_pixels(values, output).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_sampled_pixels_follow_their_probabilities():
    network = ConvAutoencoder(1, [40, 50], depth=1, width=2, outputs=6)
    nn.init.zeros_(network.head.weight)
    network.head.bias.data = torch.tensor([0.3, -0.4, -0.2, 0.5, inverse_softplus(0.1), inverse_softplus(0.3)])
    model = VAE(network, 1, [40, 50], components=2, pixels="sample")
    drawn = model.draw(range(20), None, seed=0).images
    values = to_model(torch.arange(256, dtype=torch.uint8)).reshape(256, 1, 1, 1)
    p = model.log_pixels(values, network.head.bias.data.reshape(1, 6, 1, 1)).exp().double().numpy(force=True)
    found, expected = drawn.flatten().long().bincount(minlength=256).numpy(), drawn.numel() * p / p.sum()
    often = expected > 5
    assert (
        scipy.stats.chisquare(found[often], expected[often] * found[often].sum() / expected[often].sum()).pvalue > 1e-3
    )
    means = VAE(network, 1, [40, 50], components=2).draw([0], None, seed=0).images
    weight = torch.tensor([0.3, -0.4]).softmax(0)
    assert torch.equal(means, to_uint8((weight * torch.tensor([-0.2, 0.5])).sum()).expand_as(means))


def small(**options) -> VAE:
    torch.manual_seed(0)
    return VAE(ConvAutoencoder(1, [5, 7], latent_dim=3, width=4, outputs=6, num_classes=3), 1, [5, 7], 3, **options)


def test_the_network_decodes_the_mean_and_as_many_standard_deviations_as_the_noise_says():
    network, condition = small().network, by_label(torch.tensor([0, 2]))
    x, eps = torch.rand(2, 1, 5, 7), torch.randn(2, 3)
    mean, log_variance, output = network(x, eps, condition)
    assert (log_variance.abs() > 0.01).any()
    torch.testing.assert_close((mean, log_variance), network.encode(x, condition))
    torch.testing.assert_close(output, network.decode(mean + log_variance.exp().sqrt() * eps, condition))


def test_without_a_class_is_a_class_of_its_own():
    network, x = small().network, torch.rand(1, 1, 5, 7)
    for label in range(4):
        condition, same = by_label(torch.tensor([label])), label == 3
        assert torch.equal(network.encode(x, None)[0], network.encode(x, condition)[0]) == same
        assert torch.equal(network.decode(x[0, 0, :1, :3], None), network.decode(x[0, 0, :1, :3], condition)) == same


def test_the_loss_weighs_the_divergence_by_beta_and_leaves_classes_out():
    model, B = small(), 300
    images = torch.randint(256, (B, 1, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    label, training = torch.zeros(B, dtype=torch.long), Training(0.0, model)

    def loss(objective, label=label):
        return objective.loss(model, Batch(images, by_label(label), 0), BatchRNG(0), training).values

    mean, log_variance = model.network.encode(to_model(images), by_label(label))
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
    extra = loss(EvidenceLowerBound(beta=3)) - loss(EvidenceLowerBound())
    torch.testing.assert_close(extra, model.in_bits(2 * divergence), atol=1e-5, rtol=1e-3)
    figures = EvidenceLowerBound(beta=3).held_out(model, Batch(images, by_label(label), 0), range(B), 0).figures
    torch.testing.assert_close(
        figures["reconstruction"] + figures["divergence"],
        model.bits_per_dim(images, by_label(label), range(B), 0),
    )
    torch.testing.assert_close(figures["loss"], figures["reconstruction"] + 3 * figures["divergence"])


def test_half_of_the_classes_are_left_out():
    model, B = small(), 300
    images = torch.zeros(B, 1, 5, 7, dtype=torch.uint8)
    seen = []
    model.bound, bound = (
        lambda images, condition, eps: seen.append(condition.label) or bound(images, condition, eps),
        model.bound,
    )
    batch = Batch(images, by_label(torch.ones(B, dtype=torch.long)), 0)
    EvidenceLowerBound(label_dropout=0.5).loss(model, batch, BatchRNG(0), Training(0.0, model))
    assert set(seen[0].tolist()) == {1, 3}
    assert (seen[0] == 3).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(B))


@pytest.mark.parametrize("pixels", ["mean", "sample"])
def test_a_sample_depends_on_its_seed_number_and_class_only_and_the_walk_ends_there(pixels):
    model, condition = small(pixels=pixels), by_label(torch.arange(4) % 3)
    together = model.draw(range(4), condition, seed=3).images
    alone = model.draw([2], condition[2:3], seed=3).images
    assert (alone[0].int() - together[2].int()).abs().max() <= 1
    assert not torch.equal(together, model.draw(range(4), condition, seed=4).images)
    walk = list(model.trajectory(range(4), condition, seed=3))
    assert torch.equal(walk[-1], together)
    assert len(walk) >= model.num_steps
    if pixels == "mean":
        assert torch.equal(walk[0][0], walk[0][3]), "the walk begins at z = 0, the same for each image of a class"


def test_a_reconstruction_is_the_decoder_at_the_encoders_mean():
    model = linear()
    images = model.network.images(20)
    W, M = model.network.W, model.network.W.T @ model.network.W + 0.12**2 * torch.eye(2)
    expected = to_model(images).flatten(1) @ W @ M.inverse() @ W.T
    assert torch.equal(model.reconstruct(images, None), to_uint8(expected).reshape(20, 1, 2, 3))
    assert torch.equal(model.pictures_of(images, None)["reconstructions"], model.reconstruct(images, None))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ConvAutoencoder(1, 8, latent_dim=0), "network.latent_dim=0"),
        (lambda: ConvAutoencoder(1, 8, depth=4), "network.depth=4 and data.image_size=8"),
        (lambda: small(components=3), "model.components=3 and network.outputs=6"),
        (lambda: EvidenceLowerBound(beta=-1), "objective.beta=-1"),
        (lambda: EvidenceLowerBound(label_dropout=1), "label_dropout=1"),
        (lambda: linear().check_likelihood(num_latents=0), "metrics.num_latents=0"),
        (lambda: linear().check_likelihood(tolerance=1), "metrics.tolerance"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()
