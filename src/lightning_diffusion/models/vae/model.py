"""Variational autoencoders as a family: z ~ N(0, I), a decoder p(x|z), and an encoder q(z|x) that bounds log p(x)."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.image_size import ImageSize, height_width
from lightning_diffusion.codecs.pixels import to_model, to_uint8
from lightning_diffusion.diffusion.likelihood import log_bin
from lightning_diffusion.diffusion.noise import IndexedNoise
from lightning_diffusion.models.contracts import Likelihood, OnStep, no_report
from lightning_diffusion.models.latent import LatentGenerator
from lightning_diffusion.networks.autoencoder import ConvAutoencoder
from lightning_diffusion.networks.summary import Inputs, noisy_images

LEAST_STD = 2 / 255 / 8  # of a component, an eighth of a grey level


class Bound(NamedTuple):
    """The two parts of −ELBO of each image, nats, (B,): −E_q[log p(x|z)] by one z, and KL(q(z|x) ‖ N(0, I))."""

    reconstruction: Tensor
    divergence: Tensor


class VAE(LatentGenerator, Likelihood):
    """p(x) = ∫ p(x|z) N(z; 0, I) dz. Given z, pixels are independent, and each of their 256 values has the probability
    that a mixture of Gaussians has in its bin.

    Args:
        network: with the weights; 3 · components outputs.
        channels, num_classes: of the images.
        image_size: n of squares, or [H, W].
        components: of each pixel's mixture, ≥ 1.
        pixels: draws the mean of p(x|z), or a sample of it.

    Raises:
        ValueError: a network whose output does not fit.

    Ref: Auto-Encoding Variational Bayes, Eq. 3; the bins are those of DDPM Eq. 13
    """

    def __init__(
        self,
        network: ConvAutoencoder,
        channels: int,
        image_size: ImageSize,
        num_classes: int | None = None,
        components: int = 2,
        pixels: Literal["mean", "sample"] = "mean",
    ) -> None:
        super().__init__()
        self.autoencoder, self.shape, self.num_classes = network, (channels, *height_width(image_size)), num_classes
        self.components, self.pixels = components, pixels
        outputs = network.head.out_channels // channels
        if components < 1 or outputs != 3 * components:
            raise ValueError(
                f"model.components={components} and network.outputs={outputs}: choose components >= 1 and "
                "outputs = 3 · components"
            )

    @property
    def network(self) -> nn.Module:
        return self.autoencoder

    def example(self, count: int, device: str) -> Inputs:
        x, _, condition = noisy_images(self.shape, self.num_classes)(count, device)
        return x, torch.zeros(count, self.autoencoder.latent_dim, device=device), condition

    @property
    def latent_dim(self) -> int:
        return self.autoencoder.latent_dim

    def mixture(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and standard deviations of each pixel's components, (B, K, C, H, W) each."""
        logits, mean, raw = output.float().unflatten(1, (3, self.components, -1)).unbind(1)
        return logits.log_softmax(1), mean, nn.functional.softplus(raw) + LEAST_STD

    def log_pixels(self, x: Tensor, output: Tensor) -> Tensor:
        """log p(x|z) of each image, nats, (B,), from the decoder's output."""
        log_weight, mean, std = self.mixture(output)
        bins = log_bin(x[:, None], mean, std)
        return (log_weight + bins).logsumexp(1).flatten(1).sum(1)

    def bound(self, images: Tensor, condition: Condition | None, eps: Tensor) -> Bound:
        """−ELBO in two parts for uint8 images (B, C, H, W) and ε ~ N(0, I), (B, d)."""
        x = to_model(images)
        mean, log_variance, output = self.autoencoder(x, eps, condition)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return Bound(-self.log_pixels(x, output), divergence)

    def in_bits(self, nats: Tensor) -> Tensor:
        """Per dimension of an image."""
        return nats / (math.prod(self.shape) * math.log(2))

    @torch.no_grad()
    def bits_per_dim(self, images: Tensor, condition: Condition | None, indices: range, seed: int) -> Tensor:
        noise = IndexedNoise(seed, indices, (self.latent_dim,), images.device, stream="bound")
        return self.in_bits(sum(self.bound(images, condition, noise()), torch.zeros((), device=images.device)))

    def check_likelihood(self, **options: Any) -> None:
        count = options.pop("num_latents", 64)
        super().check_likelihood(**options)
        if count < 1:
            raise ValueError(f"metrics.num_latents={count}: choose a number of at least 1")

    def likelihood_steps(self, num_latents: int = 64, **options: Any) -> int:
        return num_latents

    @torch.no_grad()
    def likelihoods(
        self,
        images: Tensor,
        condition: Condition | None,
        indices: range,
        seed: int,
        on_step: OnStep = no_report,
        num_latents: int = 64,
        **options: Any,
    ) -> dict[str, Tensor]:
        """The bound by the mean over K latents of each image, and the tighter importance-weighted one

            log p(x) ≥ E[log 1/K Σ_k p(x|z_k) p(z_k) / q(z_k|x)]

        Ref: Importance Weighted Autoencoders, Eq. 8
        """
        noise = IndexedNoise(seed, indices, (self.latent_dim,), images.device, stream="bound")
        x = to_model(images)
        mean, log_variance = self.autoencoder.encode(x, condition)
        log_ratios = []
        for _ in range(num_latents):
            eps = noise()
            z = mean + (log_variance / 2).exp() * eps
            log_prior_over_q = (eps.square() + log_variance - z.square()).sum(1) / 2
            log_ratios.append(self.log_pixels(x, self.autoencoder.decode(z, condition)) + log_prior_over_q)
            on_step()
        ratios = torch.stack(log_ratios)
        weighted = ratios.logsumexp(0) - math.log(num_latents)
        return {
            "bound": self.in_bits(-ratios.mean(0)),
            f"importance_weighted_{num_latents}": self.in_bits(-weighted),
        }

    def from_latent(self, z: Tensor, condition: Condition | None, indices: Sequence[int], seed: int) -> Tensor:
        output = self.autoencoder.decode(z, condition)
        return self._mean(output) if self.pixels == "mean" else self._sample(output, indices, seed)

    def reconstruct(self, images: Tensor, condition: Condition | None) -> Tensor:
        """The means of p(x|z) at the mean z of q(z|x), uint8 (B, C, H, W)."""
        with torch.inference_mode():
            mean, _ = self.autoencoder.encode(to_model(images), condition)
            return to_uint8(self._mean(self.autoencoder.decode(mean, condition)))

    def pictures_of(self, images: Tensor, condition: Condition | None) -> dict[str, Tensor]:
        return {"reconstructions": self.reconstruct(images.to(self.device), self.here(condition))}

    def _mean(self, output: Tensor) -> Tensor:
        log_weight, mean, _ = self.mixture(output)
        return (log_weight.exp() * mean.clamp(-1, 1)).sum(1)

    def _sample(self, output: Tensor, indices: Sequence[int], seed: int) -> Tensor:
        """A sample of p(x|z). The first number of each pixel picks a component, the second the place in it."""
        noise = IndexedNoise(seed, indices, self.shape, self.device, stream="pixels")
        pick, pixel = noise(), noise()
        log_weight, mean, std = self.mixture(output)
        cumulative = log_weight.exp().cumsum(1)[:, :-1]
        component = (cumulative <= torch.special.ndtr(pick)[:, None]).sum(1, keepdim=True)
        return (mean.gather(1, component) + std.gather(1, component) * pixel[:, None])[:, 0]
