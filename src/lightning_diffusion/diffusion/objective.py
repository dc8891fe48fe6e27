"""The training loss: the distance between the network's output and its target at random times."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.denoiser import NetworkDenoiser, Prediction
from lightning_diffusion.diffusion.distance import Absolute, Distance, Huber, Squared
from lightning_diffusion.diffusion.likelihood import bound_of_step
from lightning_diffusion.diffusion.noise import BatchRNG, IndexedNoise, spread
from lightning_diffusion.diffusion.process import marginal
from lightning_diffusion.diffusion.reverse import between
from lightning_diffusion.diffusion.schedule import widest_float
from lightning_diffusion.diffusion.time_sampler import Times, TimeSampler
from lightning_diffusion.diffusion.weighting import Weighting

DistanceName = Literal["squared", "absolute", "huber"]
BY_NAME: dict[DistanceName, type[Distance]] = {"squared": Squared, "absolute": Absolute, "huber": Huber}


class HeldOut(NamedTuple):
    """For each item, (B,): its time t/T in (0, 1], its unweighted loss, and ‖x̂_0 − x_0‖² as a mean over pixels, which
    is comparable between parameterizations."""

    time: Tensor
    loss: Tensor
    error: Tensor


class Objective(nn.Module):
    """L = E_{t, x_0, ε} w(t) ‖F(α_t x_0 + σ_t ε, t) − target(x_0, ε)‖² + λ L_vlb, a mean over pixels and batch.

    With uniform times, simple weighting and ε-prediction this is L_simple. L_vlb, in bits/dim, trains only the learned
    variance: no gradient passes through its mean. Ref: DDPM Eq. 14, Alg. 1; Improved DDPM Eq. 16

    Args:
        time_sampler: the distribution of t.
        weighting: w(t).
        distance: between output and target; a name selects that distance with its default values.
        vlb_weight: λ ≥ 0; positive if and only if the network learns the variance.
    """

    def __init__(
        self,
        time_sampler: TimeSampler,
        weighting: Weighting,
        distance: DistanceName | Distance = "squared",
        vlb_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if vlb_weight < 0:
            raise ValueError(f"objective.vlb_weight={vlb_weight}: choose vlb_weight >= 0 (0.001 is usual)")
        self.time_sampler, self.weighting = time_sampler, weighting
        self.distance = distance if isinstance(distance, Distance) else BY_NAME[distance]()
        self.vlb_weight = vlb_weight

    def check_denoiser(self, denoiser: NetworkDenoiser) -> None:
        """Raise ValueError if only the network, or only the loss, includes a learned variance."""
        if denoiser.learns_variance and self.vlb_weight == 0:
            raise ValueError(
                "objective.vlb_weight=0 and backbone.outputs=2: no loss would train the variance; "
                "choose objective.vlb_weight=0.001, or backbone.outputs=1"
            )
        if self.vlb_weight > 0 and not denoiser.learns_variance:
            raise ValueError(
                f"objective.vlb_weight={self.vlb_weight} and backbone.outputs=1: the network has no variance to train; "
                "choose backbone.outputs=2, or objective.vlb_weight=0"
            )

    def forward(
        self, denoiser: NetworkDenoiser, x_0: Tensor, condition: Condition | None = None, draws: BatchRNG | None = None
    ) -> Tensor:
        """A random draw of the loss for a batch x_0 (B, C, H, W) in [−1, 1] -> ().

        Args:
            draws: source of times, noise and dropped conditions; None uses torch's default generator.
        """
        return self.weighted(*self.draw(denoiser, x_0, condition, draws or BatchRNG(device=x_0.device))).mean()

    def weighted(self, times: Times, losses: Tensor) -> Tensor:
        """The losses of `draw`, (B,), each multiplied by its weight. The time sampler observes them unweighted."""
        self.time_sampler.observe(times, losses.detach().nan_to_num(0, 0, 0))  # of a step that will be skipped
        return times.weight * losses

    def draw(
        self, denoiser: NetworkDenoiser, x_0: Tensor, condition: Condition | None, draws: BatchRNG
    ) -> tuple[Times, Tensor]:
        """Random times for the items of a batch, and their losses (B,) without the times' weights."""
        times = self.time_sampler(len(x_0), denoiser.schedule, draws)
        t = times.t
        eps = draws.normal(x_0)
        condition = denoiser.drop_condition(condition, draws)
        x_t = _noised(denoiser, x_0, eps, t)
        prediction = denoiser.predict(x_t, t, condition)
        weights = self.weighting.of_output(denoiser.schedule, denoiser.parameterization, t)
        losses = weights * self._error(denoiser, prediction, x_0, eps, t)
        if self.vlb_weight > 0:
            losses = losses + self.vlb_weight * _bound(denoiser, prediction, x_0, x_t, t)
        return times, losses

    def on_fixed_noise(
        self,
        denoiser: NetworkDenoiser,
        x_0: Tensor,
        indices: Sequence[int],
        seed: int,
        condition: Condition | None = None,
    ) -> HeldOut:
        """The unweighted loss of each item at its own ε and t, which are the same for item i in every call.

        The times of consecutive items are spread evenly over the clock (multiples of the golden ratio, mod 1). They do
        not depend on the time sampler, so losses are comparable between epochs, runs and time samplers.
        """
        eps = IndexedNoise(seed, indices, x_0.shape[1:], x_0.device, stream="validation")()
        u = spread(indices).to(x_0)
        return self.at(denoiser, x_0, eps, denoiser.schedule.quantile(u), condition)

    def at(
        self, denoiser: NetworkDenoiser, x_0: Tensor, eps: Tensor, t: Tensor, condition: Condition | None = None
    ) -> HeldOut:
        """The unweighted loss of each item at given ε (B, C, H, W) and t (B,)."""
        schedule = denoiser.schedule
        x_t = _noised(denoiser, x_0, eps, t)
        prediction = denoiser.predict(x_t, t, condition)
        x0_hat = denoiser.parameterization.to_x0(schedule, prediction.output, x_t, t)
        error = (x0_hat - x_0).square().flatten(1).mean(dim=1)
        return HeldOut(t / schedule.T, self._error(denoiser, prediction, x_0, eps, t), error)

    def _error(self, denoiser: NetworkDenoiser, prediction: Prediction, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The mean distance between output and target over pixels, (B,)."""
        target = denoiser.parameterization.target(denoiser.schedule, x_0, eps, t)
        return self.distance(prediction.output, target).flatten(1).mean(dim=1)


def _noised(denoiser: NetworkDenoiser, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    return marginal(x_0, eps, denoiser.schedule.alpha(t), denoiser.schedule.sigma(t))


def _bound(denoiser: NetworkDenoiser, prediction: Prediction, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """T L_{t−1}, whose mean over uniform t is L_vlb in bits/dim, (B,); only the variance receives its gradient."""
    assert prediction.share is not None
    schedule, t = denoiser.schedule, t.to(widest_float(t.device))
    x0_hat = denoiser.parameterization.to_x0(schedule, prediction.output.detach(), x_t, t)
    var = between(schedule, t, t - 1, prediction.share)
    return schedule.T * bound_of_step(schedule, x_0, x0_hat, var, t)
