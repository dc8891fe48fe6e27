"""Filling in, changing, inverting and mixing, with exact denoisers."""

import math

import pytest
import torch

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.diffusion.analytic import Gaussian
from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.editing.base import EditInputs
from lightning_diffusion.diffusion.editing.image_to_image import ImageToImage
from lightning_diffusion.diffusion.editing.inpaint import Inpaint, RePaint
from lightning_diffusion.diffusion.editing.inversion import Interpolate, Invert, invert, slerp
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.samplers.ddpm import DDPM
from lightning_diffusion.diffusion.samplers.ode import ODE
from lightning_diffusion.diffusion.time_grid import LogSNR, Trailing
from tests.diffusion.options import SCHEDULES, option, options
from tests.diffusion.truth import F64, gaussian, mixture, normal_like, points

ZERO = torch.tensor(0.0, dtype=F64)


def pair(correlation=0.8):
    """Two correlated pixels."""
    covariance = torch.tensor([[0.3, 0.3 * correlation], [0.3 * correlation, 0.3]], dtype=F64)
    return Gaussian(SCHEDULES["cosine"], torch.tensor([0.1, -0.1], dtype=F64), covariance)


def fill(resamples, count=5_000):
    """Fill in the left pixel while the right one is 0.6. Return (mean, variance) of the samples."""
    denoiser = pair()
    x_0 = torch.tensor([-9.0, 0.6], dtype=F64).reshape(1, 1, 1, 2).expand(count, 1, 1, 2)
    edit = Inpaint(Trailing(), num_steps=50, jump=5, resamples=resamples)
    given = EditInputs(x_0, None, torch.tensor([[1.0, 0.0]]), normal_like(x_0))
    columns = edit(denoiser, DDIM(Trailing()), given)
    left, right = columns["result"][:, 0, 0].unbind(1)
    assert (right == 0.6).all()
    assert (columns["given"][:, 0, 0] == torch.tensor([0.0, 0.6], dtype=F64)).all()
    return float(left.mean()), float(left.var())


def test_resampling_brings_the_fill_closer_to_the_conditional_distribution():
    """The conditional distribution: mean m_1 + C_12/C_22 (x_2 − m_2), variance C_11 − C_12²/C_22."""
    mean, variance = 0.1 + 0.8 * 0.7, 0.3 * (1 - 0.8**2)
    (once, _), (often, spread) = fill(1), fill(20)
    assert abs(often - mean) < 0.05, (once, often)
    assert abs(often - mean) < 0.4 * abs(once - mean), (once, often)
    assert 0.7 < spread / variance < 1.6, spread


def test_repaint_passes_each_stretch_as_often_as_configured():
    walker = RePaint(Trailing(), 20, 5, 3, torch.zeros(1), torch.zeros(1))
    times = walker.times(SCHEDULES["linear"]) / 50
    path = times.long().tolist()
    assert path[0] == 20
    assert path[-1] == 0
    falls = [(a, b) for a, b in zip(path[:-1], path[1:], strict=True) if a > b]
    assert all(a - b == 1 for a, b in falls)
    counts = {k: sum(a == k for a, _ in falls) for k in range(1, 21)}
    assert counts == {k: 3 if 2 <= k <= 16 else 1 for k in range(1, 21)}
    rises = [(a, b) for a, b in zip(path[:-1], path[1:], strict=True) if a < b]
    assert set(rises) == {(1, 6), (6, 11), (11, 16)}
    plain = RePaint(Trailing(), 20, 5, 1, torch.zeros(1), torch.zeros(1)).times(SCHEDULES["linear"])
    assert torch.equal(plain, Trailing()(SCHEDULES["linear"], 20))


def test_a_step_up_is_the_forward_process():
    walker = RePaint(Trailing(), 20, 5, 3, torch.zeros(1), torch.ones(1))
    denoiser = pair()
    schedule, (t, s) = denoiser.schedule, torch.tensor([300.0, 550.0], dtype=F64)
    x = torch.full((1, 1, 1, 2), 2.0, dtype=F64)
    up, _ = walker.step(denoiser, x, t, s, lambda: torch.ones_like(x), None)
    alpha = schedule.alpha(s) / schedule.alpha(t)
    std = (schedule.sigma(s) ** 2 - (alpha * schedule.sigma(t)) ** 2).sqrt()
    torch.testing.assert_close(up, torch.full_like(x, float(2 * alpha + std)))


def test_strength_is_the_share_of_steps():
    for strength, steps in ((0.02, 1), (0.5, 25), (1.0, 50)):
        calls = []
        ImageToImage(strength)(pair(), DDIM(Trailing(), 50), given(points(3, 2)), lambda calls=calls: calls.append(1))
        assert len(calls) == steps


class Conditional(Denoiser):
    """Asserts that its labels fit the batch."""

    def __init__(self):
        super().__init__()
        self.inner = mixture(SCHEDULES["cosine"])
        self.schedule = self.inner.schedule
        self.calls = 0

    def forward(self, x_t, t, condition=None):
        self.calls += 1
        assert condition.label.tolist() == [3] * len(x_t)
        return self.inner(x_t, t)


@pytest.mark.parametrize("name", options("edit"))
def test_labels_go_with_the_pictures(name):
    x_0, edit, denoiser = points(3, 2), option("edit", name), Conditional()
    inputs = EditInputs(x_0, by_label(torch.full((3,), 3)), torch.ones(2), normal_like(x_0))
    columns = edit(denoiser, DDIM(Trailing(), 5), inputs)
    assert denoiser.calls > 0
    assert set(edit.inputs) <= set(columns)
    assert all(torch.isfinite(column).all() for column in columns.values())


def given(x_0):
    return EditInputs(x_0, None, None, normal_like(x_0))


def test_more_noise_leaves_less_of_the_picture():
    denoiser = gaussian(SCHEDULES["cosine"])
    x_0 = denoiser.sample(2000, torch.Generator().manual_seed(1))
    left = []
    for strength in (0.02, 0.3, 0.6, 1.0):
        columns = ImageToImage(strength)(denoiser, DDIM(Trailing(), 50), given(x_0))
        assert list(columns) == ["picture", "noised", "result"]
        pairs = torch.stack([columns["picture"][:, 0], columns["result"][:, 0]])
        left.append(float(torch.corrcoef(pairs)[0, 1]))
    assert left[0] > 0.99
    assert all(a > b for a, b in zip(left[:-1], left[1:], strict=True)), left
    assert abs(left[-1]) < 0.1


def test_changed_pictures_are_samples_of_the_model():
    """Noise followed by the exact flow leaves the data's distribution unchanged, at every strength."""
    denoiser, N = gaussian(SCHEDULES["vp"]), 20_000
    x_0 = denoiser.sample(N, torch.Generator().manual_seed(1))
    x = ImageToImage(0.5)(denoiser, ODE(Trailing(), 10), given(x_0))["result"]
    var = denoiser.covariances[0].diag()
    assert ((x.mean(0) - denoiser.means[0]).abs() / (var / N).sqrt()).max() < 5
    assert ((x.var(0) / var - 1).abs() / math.sqrt(2 / N)).max() < 5


def test_inversion_runs_the_probability_flow_to_the_noise():
    denoiser = gaussian(SCHEDULES["shifted_cosine"])
    x_0 = denoiser.sample(64, torch.Generator().manual_seed(1))
    T, errors = denoiser.schedule.end, []
    for num_steps in (50, 100, 200, 400):
        *_, latent = invert(denoiser, x_0, Trailing()(denoiser.schedule, num_steps), num_iterations=8)
        errors.append(float((latent - denoiser.transport(x_0, ZERO + 1e-6, T)).square().mean().sqrt()))
    orders = torch.tensor(errors).log2().diff().neg()
    assert errors[-1] < 0.02
    assert (orders - 1).abs().max() < 0.25, errors


@pytest.mark.parametrize("name", ["cosine", "cosine_zero", "vp", "edm"])
def test_inversion_and_sampling_reconstruct_the_picture_if_the_steps_are_solved(name):
    denoiser = mixture(SCHEDULES[name])
    x_0 = denoiser.sample(64, torch.Generator().manual_seed(1))
    errors = []
    for num_iterations in (1, 16):
        grid = LogSNR() if name == "edm" else Trailing()
        columns = Invert(num_iterations)(denoiser, DDIM(grid, 100), given(x_0))
        errors.append(float((columns["result"] - columns["picture"]).square().mean().sqrt()))
    assert errors[1] < 2e-3, errors
    assert errors[1] < 0.2 * errors[0], errors


def test_great_circle():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    torch.testing.assert_close(slerp(a, b, 1 / 3), 3 * torch.tensor([[math.cos(math.pi / 6), 0.5]]))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, a, 0.4), a)
    z = points(2, 400)
    assert float(slerp(z[:1], z[1:], 0.5).norm()) == pytest.approx(20, rel=0.1)  # a straight line would give 14


def test_interpolation_goes_from_one_picture_to_the_other():
    denoiser = mixture(SCHEDULES["cosine"])
    x_0 = torch.tensor([[0.8, 0.0], [-0.6, 0.7], [-0.5, -0.8]], dtype=F64)
    columns = Interpolate(num_frames=41)(denoiser, DDIM(Trailing(), 100), given(x_0))
    assert len(columns) == 43
    way = torch.stack(list(columns.values()))  # (43, 2, 2)
    assert torch.equal(way[0], x_0[:-1])
    assert torch.equal(way[-1], x_0[1:])
    assert (way[1] - way[0]).norm(dim=1).max() < 0.1
    assert (way[-2] - way[-1]).norm(dim=1).max() < 0.1


def test_refusals():
    stochastic, deterministic = DDPM(Trailing()), DDIM(Trailing())
    for edit in (Invert(), Interpolate()):
        edit.check(deterministic, 2)
        with pytest.raises(ValueError, match="edit: a latent determines its picture"):
            edit.check(stochastic, 2)
    with pytest.raises(ValueError, match="images: give at least 2"):
        Interpolate().check(deterministic, 1)
    for make, key in (
        (lambda: ImageToImage(strength=0.0), "edit.strength=0"),
        (lambda: ImageToImage(num_variants=0), "num_variants=0"),
        (lambda: Inpaint(Trailing(), jump=0), "edit.jump=0"),
        (lambda: Inpaint(Trailing(), resamples=0), "resamples=0"),
        (lambda: Invert(num_iterations=0), "edit.num_iterations=0"),
        (lambda: Interpolate(num_frames=0), "edit.num_frames=0"),
    ):
        with pytest.raises(ValueError, match=key):
            make()
