"""Guidance, as wrappers of a denoiser."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.denoiser import Denoise, Denoiser, DenoiserWrapper
from lightning_diffusion.diffusion.process import expand


class Unguided(DenoiserWrapper):
    """The denoiser without guidance."""

    def around(self, denoise: Denoise, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        return denoise(x_t, t, condition)


class Clip(DenoiserWrapper):
    """x̂_0 clipped to [−bound, bound], the range of images. Ref: DDPM §3.2 and its published code

    Args:
        bound: > 0; images are in [−1, 1].
    """

    def __init__(self, denoiser: Denoiser, bound: float = 1.0) -> None:
        super().__init__(denoiser)
        if bound <= 0:
            raise ValueError(f"guidance.bound={bound}: choose a bound > 0 (images are in [-1, 1])")
        self.bound = bound

    def around(self, denoise: Denoise, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        return denoise(x_t, t, condition).clamp(-self.bound, self.bound)


class DynamicThreshold(DenoiserWrapper):
    """x̂_0 clipped to ±s and divided by s, s = max(1, the p-quantile of |x̂_0|) of each image. Ref: Imagen §2.3

    Args:
        percentile: p in (0, 1].
    """

    def __init__(self, denoiser: Denoiser, percentile: float = 0.995) -> None:
        super().__init__(denoiser)
        if not 0 < percentile <= 1:
            raise ValueError(f"guidance.percentile={percentile}: choose 0 < percentile <= 1 (Imagen uses 0.995)")
        self.percentile = percentile

    def around(self, denoise: Denoise, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        x_0 = denoise(x_t, t, condition)
        s = expand(torch.quantile(x_0.flatten(1).abs(), self.percentile, dim=1).clamp(min=1), x_0)
        return x_0.clamp(-s, s) / s


class ClassifierFree(DenoiserWrapper):
    """x̂_0 = x̂_0(∅) + w (x̂_0(c) − x̂_0(∅)), both in one batch. w = 1 is the conditional model, w = 0 the unconditional.

    The paper's w is this w minus 1. The combination is the same in x_0, ε, v and score, which are affine functions of
    each other. Optionally, guidance is limited to an interval of noise levels, and the result is rescaled towards the
    standard deviation of the conditional estimate.

    Args:
        scale: w.
        level_min, level_max: guidance applies where level_min < σ/α ≤ level_max. Ref: Limited Interval Guidance §3
        rescale: φ in [0, 1]; 1 sets std(x̂_0) to std(x̂_0(c)). Ref: Common Diffusion Noise Schedules … §3.4

    Raises:
        ValueError: a value out of range, or a model without classes.

    Ref: Classifier-Free Diffusion Guidance Eq. 6
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 1.5,
        level_min: float = 0.0,
        level_max: float = math.inf,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(denoiser)
        if not 0 <= level_min < level_max or not 0 <= rescale <= 1:
            raise ValueError(
                f"guidance.level_min={level_min}, level_max={level_max}, rescale={rescale}: "
                "choose 0 <= level_min < level_max and 0 <= rescale <= 1"
            )
        self.scale, self.level_min, self.level_max, self.rescale = scale, level_min, level_max, rescale
        # raises for a model without a label for "no class" now, not while sampling
        self._free = None if scale == 1 else denoiser.no_class

    def around(self, denoise: Denoise, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        level = self.schedule.sigma(t) / self.schedule.alpha(t)
        inside = (level > self.level_min) & (level <= self.level_max)
        if condition is None or self._free is None or not bool(inside.any()):
            return denoise(x_t, t, condition)
        both = Condition.cat([condition, condition.none(self._free)])
        times = t if t.ndim == 0 else torch.cat([t, t])
        given, free = denoise(torch.cat([x_t, x_t]), times, both).chunk(2)
        guided = free + self.scale * (given - free)
        if self.rescale > 0:
            spread = given.flatten(1).std(dim=1) / guided.flatten(1).std(dim=1).clamp(min=1e-8)
            guided = guided * expand(1 + self.rescale * (spread - 1), guided)
        return torch.where(expand(inside, guided).bool(), guided, given)


class Autoguidance(DenoiserWrapper):
    """x̂_0 = x̂_0(weak) + w (x̂_0 − x̂_0(weak)): away from the estimate of a weaker model. w = 1 is the model itself.

    Args:
        weak: a denoiser for the same data and schedule, with a smaller network or less training.
        scale: w.

    Raises:
        ValueError: schedules that differ.

    Ref: Guiding a Diffusion Model with a Bad Version of Itself Eq. 2
    """

    def __init__(self, denoiser: Denoiser, weak: Denoiser, scale: float = 2.0) -> None:
        super().__init__(denoiser)
        if not denoiser.schedule.equals(weak.schedule):
            raise ValueError(
                "guidance.weak and schedule: both models must have been trained on the same schedule; "
                "give a checkpoint of the same run, or of one with the same schedule"
            )
        self.weak, self.scale = weak, scale

    def around(self, denoise: Denoise, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        x_0, weak = denoise(x_t, t, condition), self.weak(x_t, t, condition)
        return weak + self.scale * (x_0 - weak)


class Classifier(DenoiserWrapper):
    """x̂_0 + w σ²/α ∇ log p(c | x_t): the score of p(x_t) p(c | x_t)^w, as an estimate of x_0.

    Args:
        classifier: log-probabilities (B, K) of noised images (B, C, H, W), called as classifier(x_t, t) with t ().
        scale: w ≥ 0.

    Ref: Diffusion Models Beat GANs Eq. 10, Alg. 2, through Tweedie's formula
    """

    def __init__(self, denoiser: Denoiser, classifier: Callable[[Tensor, Tensor], Tensor], scale: float = 1.0) -> None:
        super().__init__(denoiser)
        self.classifier, self.scale = classifier, scale

    def around(self, denoise: Denoise, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        x_0 = denoise(x_t, t, condition)
        if condition is None or condition.label is None:
            return x_0
        label = condition.label
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().requires_grad_()
            log_p = self.classifier(x, t).gather(1, label[:, None].clone()).sum()
            (slope,) = torch.autograd.grad(log_p, x)
        return x_0 + expand(self.scale * self.schedule.sigma(t) ** 2 / self.schedule.alpha(t), x_t) * slope


def chain(denoiser: Denoiser, **parts: Callable[[Denoiser], Denoiser]) -> Denoiser:
    """Nest guidances, the first innermost.

    Args:
        parts: functions that wrap a denoiser; their names only label them in the configuration.
    """
    for part in parts.values():
        denoiser = part(denoiser)
    return denoiser
