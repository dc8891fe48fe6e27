"""The continuous-time bound against true likelihoods, by quasi-random integration."""

import math

import pytest
import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion import beta as chains
from lightning_diffusion.diffusion import parameterization as predictions
from lightning_diffusion.diffusion.analytic import FiniteSet, Gaussian
from lightning_diffusion.diffusion.continuous import EDM, VE, VP, RectifiedFlow, ShiftedCosine, SubVP
from lightning_diffusion.diffusion.continuous_bound import HIGHEST, LOWEST, _log_mixture, continuous_bound, span
from lightning_diffusion.diffusion.denoiser import Denoiser, to_eps
from tests.diffusion.test_likelihood import true_bits
from tests.diffusion.truth import F64, gaussian, mixture, normal_like

LEVELS = 4
CONTINUOUS = {
    "vp": VP(), "sub_vp": SubVP(), "flow": RectifiedFlow(), "cosine": ShiftedCosine(), "shifted": ShiftedCosine(0.25),
    "edm": EDM(), "ve": VE(),
}  # fmt: skip
PREDICTIONS = [getattr(predictions, name)() for name in ("Eps", "X0", "V", "Score", "Flow", "EDM")]


class Quasi:
    """Draws of x_0, offsets and noise as points of one Sobol sequence, so that errors of means are about 1/count."""

    def __init__(self, denoiser: Denoiser, count: int = 2**16) -> None:
        D = denoiser.means.shape[1]
        sobol = torch.quasirandom.SobolEngine(2 + D * (LEVELS + 2), scramble=True, seed=0)
        u = sobol.draw(count, dtype=F64).clamp(1e-9, 1 - 1e-9)
        self.offsets, z = u[:, 0], torch.special.ndtri(u[:, 2:]).unflatten(1, (-1, D))
        k = torch.searchsorted(denoiser.weights.cumsum(0), u[:, 1].contiguous()).clamp(max=len(denoiser.weights) - 1)
        spread = denoiser.eigenvalues[k].clamp(min=0).sqrt() * z[:, 0]
        self.x_0 = denoiser.means[k] + torch.einsum("bij,bj->bi", denoiser.axes[k], spread)
        self._noise = z[:, 1:]

    def bits(self, denoiser: Denoiser, highest: float = HIGHEST) -> Tensor:
        draws = iter(self._noise.unbind(1))
        bound = continuous_bound(
            denoiser, self.x_0, lambda: next(draws), self.offsets, None, LEVELS, discretized=False, highest=highest
        )
        return bound.total


class Trained(Denoiser):
    """The exact estimate, passed through another prediction in float32."""

    def __init__(self, exact: Denoiser, parameterization: predictions.Parameterization) -> None:
        super().__init__()
        self.exact, self.parameterization, self.schedule = exact, parameterization, exact.schedule

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        x_0 = self.exact(x_t, t)
        eps = to_eps(x_0, x_t, self.schedule.alpha(t), self.schedule.sigma(t))
        output = self.parameterization.target(self.schedule, x_0, eps, t).float()
        return self.parameterization.to_x0(self.schedule, output.double(), x_t, t)


@pytest.mark.parametrize("truth", [gaussian, mixture])
def test_it_is_the_true_likelihood(truth):
    """The mixture is so narrow that noise of variance e^−7 changes the third digit."""
    exact = truth(VP())
    quasi = Quasi(exact, 2**18)
    true = float(true_bits(exact, quasi.x_0).mean())
    assert float(quasi.bits(exact, highest=9.0).mean()) == pytest.approx(true, abs=1e-3)
    assert float(quasi.bits(exact).mean()) == pytest.approx(true, abs=2e-3)


@pytest.mark.parametrize("truth", [gaussian, mixture])
def test_it_is_the_same_on_every_schedule(truth):
    """To 1e-4 on the same draws, which makes it the true likelihood on each schedule."""
    quasi = Quasi(truth(VP()), 2**13)
    found = {name: float(quasi.bits(truth(schedule)).mean()) for name, schedule in CONTINUOUS.items()}
    assert max(found.values()) - min(found.values()) < 1e-4, found


@pytest.mark.parametrize("schedule", [VP(), RectifiedFlow(), chains.cosine()], ids=["vp", "flow", "chain"])
def test_it_is_the_same_for_every_prediction(schedule):
    quasi, exact = Quasi(mixture(schedule), 2**12), mixture(schedule)
    want = quasi.bits(exact).mean()
    for parameterization in PREDICTIONS:
        found = quasi.bits(Trained(exact, parameterization)).mean()
        assert float(found) == pytest.approx(float(want), abs=1e-3), parameterization


def test_a_wrong_model_pays_the_cross_entropy():
    """The Gaussian with the mixture's moments, as a model of the mixture: E −log q(x), not E −log p(x)."""
    data = mixture(VP())
    mean = data.weights @ data.means
    second = torch.einsum("k,kij->ij", data.weights, data.covariances + data.means[:, :, None] * data.means[:, None, :])
    quasi = Quasi(data, 2**18)
    model = Gaussian(EDM(), mean, second - torch.outer(mean, mean))
    cross, entropy = (float(true_bits(of, quasi.x_0).mean()) for of in (model, data))
    assert cross > entropy + 0.1
    assert float(quasi.bits(model).mean()) == pytest.approx(cross, abs=1e-3)


@pytest.mark.parametrize("chain", [chains.linear, chains.cosine])
def test_chains_approach_it_as_1_over_T(chain):
    quasi = Quasi(mixture(VP()), 2**14)
    true = float(quasi.bits(mixture(VP())).mean())
    counts = (50, 100, 200, 400)
    gaps = [abs(float(quasi.bits(mixture(chain(T=T))).mean()) - true) for T in counts]
    assert all(T * gap < 1.5 for T, gap in zip(counts, gaps, strict=True)), gaps
    assert gaps[-1] < gaps[0] / 2


def test_span_names_the_chains_that_are_too_short():
    for schedule in (*CONTINUOUS.values(), chains.linear(), chains.cosine(), chains.sigmoid(), chains.cosine(T=100)):
        covered = span(schedule)
        assert covered.whole
        assert covered.low == pytest.approx(LOWEST, abs=0.7)
        assert covered.high == pytest.approx(HIGHEST, abs=0.5)
    short = span(chains.cosine(T=30))
    assert not short.whole
    first = chains.cosine(T=30)
    assert short.high == pytest.approx(float(first.logsnr(torch.tensor(1.0, dtype=F64))))


@pytest.mark.parametrize("T", [2, 30, 300])
def test_it_ends_at_the_last_step_that_has_signal(T):
    """JSD's ᾱ_t = 1 − t/T is 0 at T, the step nearest to LOWEST on a chain below a thousand steps."""
    schedule = chains.jsd(T)
    assert span(schedule).low == pytest.approx(math.log(1 / (T - 1)))
    bits = Quasi(mixture(VP()), 2**8).bits(mixture(schedule))
    assert torch.isfinite(bits).all()


def test_a_chain_without_any_signal_is_refused():
    with pytest.raises(ValueError, match="^schedule.T=1: the only step .* choose a longer chain$"):
        span(chains.jsd(1))


def test_the_decoder_is_a_distribution_over_the_256_levels():
    levels = torch.linspace(-1, 1, 256, dtype=F64)
    for estimate in (0.3, -0.99, 0.0, 1.0):
        log_p = _log_mixture(levels[:, None], torch.full((256, 1), estimate, dtype=F64))
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_a_perfect_model_pays_only_for_the_choice_of_variance():
    image = torch.full((1, 192), 1 / 255, dtype=F64)
    bound = continuous_bound(FiniteSet(VP(), image), image, normal_like(image), torch.zeros(1, dtype=F64))
    assert float(bound.steps) < 1e-12
    inside = math.erf(1 / 2 / 0.25 / 2**0.5)  # half a level, in standard deviations of the narrowest Gaussian
    assert float(bound.decoder) == pytest.approx(math.log2(8) / 192 - math.log2(inside), abs=1e-6)
