import functools

import pytest
import torch

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.analytic import GaussianMixture
from lightning_diffusion.diffusion.continuous import VP
from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.guidance import (
    Autoguidance,
    Classifier,
    ClassifierFree,
    Clip,
    DynamicThreshold,
    Unguided,
    chain,
)
from tests.diffusion.options import SCHEDULES
from tests.diffusion.truth import F64, mixture, points


class ByClass(Denoiser):
    """An exact conditional denoiser: class k is component k of the mixture, and "no class" is the whole mixture."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.whole, self.no_class_label = schedule, mixture(schedule), 3
        m = self.whole
        self.parts = [
            GaussianMixture(schedule, m.weights[k : k + 1], m.means[k : k + 1], m.covariances[k : k + 1])
            for k in range(3)
        ]

    @property
    def no_class(self):
        return self.no_class_label

    def forward(self, x_t, t, condition=None):
        estimates = torch.stack([*(part(x_t, t) for part in self.parts), self.whole(x_t, t)])
        label = torch.full((len(x_t),), 3) if condition is None else condition.label
        return estimates[label, torch.arange(len(x_t))]


@pytest.fixture
def setting():
    denoiser = ByClass(schedules.cosine())
    return denoiser, points(9, 2), torch.tensor(500.0, dtype=F64), by_label(torch.arange(9) % 3)


def test_scale_1_is_the_conditional_model_and_0_the_unconditional(setting):
    denoiser, x, t, condition = setting
    torch.testing.assert_close(ClassifierFree(denoiser, scale=1.0)(x, t, condition), denoiser(x, t, condition))
    torch.testing.assert_close(ClassifierFree(denoiser, scale=0.0)(x, t, condition), denoiser(x, t))
    torch.testing.assert_close(ClassifierFree(denoiser, scale=3.0)(x, t), denoiser(x, t))


def test_both_estimates_come_from_one_call(setting):
    denoiser, x, t, condition = setting
    calls = []
    denoiser.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    ClassifierFree(denoiser, scale=2.0)(x, t, condition)
    assert calls == [18]


def test_classifier_free_and_classifier_guidance_agree(setting):
    """With w = 1 + s, CFG is the unconditional model moved along s + 1 times the exact classifier's gradient."""
    denoiser, x, t, condition = setting

    def log_p(x_t, time):
        return denoiser.whole.responsibilities(x_t, time).log()

    guided = Classifier(denoiser.whole, log_p, scale=2.5)(x, t, condition)
    torch.testing.assert_close(guided, ClassifierFree(denoiser, scale=2.5)(x, t, condition), rtol=1e-8, atol=1e-8)


def test_guidance_is_limited_to_its_interval(setting):
    denoiser, x, _, condition = setting
    guided = ClassifierFree(denoiser, scale=4.0, level_min=0.5, level_max=2.0)
    for t in (10.0, 500.0, 990.0):
        t = torch.tensor(t, dtype=F64)
        level = float(denoiser.schedule.sigma(t) / denoiser.schedule.alpha(t))
        same = torch.allclose(guided(x, t, condition), denoiser(x, t, condition))
        assert same == (not 0.5 < level <= 2.0)


def test_the_interval_excludes_its_lower_end_and_includes_its_upper():
    denoiser, x, condition = ByClass(SCHEDULES["edm"]), points(9, 2), by_label(torch.arange(9) % 3)
    guided = ClassifierFree(denoiser, scale=4.0, level_min=0.5, level_max=2.0)
    for level, same in ((0.5, True), (0.5 + 1e-9, False), (2.0, False), (2.0 + 1e-9, True)):
        t = torch.tensor(level, dtype=F64)
        assert torch.equal(guided(x, t, condition), denoiser(x, t, condition)) == same, level


def test_times_may_differ_between_the_items(setting):
    denoiser, x, _, condition = setting
    guided, t = ClassifierFree(denoiser, scale=2.0, level_min=0.5), torch.linspace(10, 990, 9, dtype=F64).round()
    together = guided(x, t, condition)
    for i in range(9):
        torch.testing.assert_close(together[i : i + 1], guided(x[i : i + 1], t[i], condition[i : i + 1]))


def test_rescaling_restores_the_conditional_spread(setting):
    denoiser, x, t, condition = setting
    rescaled = ClassifierFree(denoiser, scale=5.0, rescale=1.0)(x, t, condition)
    torch.testing.assert_close(rescaled.std(1), denoiser(x, t, condition).std(1))


def test_autoguidance_leaves_the_weaker_model_behind(setting):
    denoiser, x, t, _ = setting
    weak = Clip(denoiser.whole, bound=0.1)
    strong = denoiser.whole(x, t)
    torch.testing.assert_close(Autoguidance(denoiser.whole, weak, scale=1.0)(x, t), strong)
    torch.testing.assert_close(Autoguidance(denoiser.whole, weak, scale=2.0)(x, t), 2 * strong - weak(x, t))


class Fixed(Denoiser):
    def __init__(self, x_0):
        super().__init__()
        self.x_0, self.schedule = x_0, schedules.cosine()

    def forward(self, x_t, t, condition=None):
        return self.x_0


def test_clipping_and_thresholding():
    x_0 = torch.tensor([[-3.0, 0.5, 1.0, 2.0], [0.1, -0.2, 0.3, 0.4]])
    t = torch.tensor(1.0)
    assert Clip(Fixed(x_0))(x_0, t).tolist() == [[-1, 0.5, 1, 1], x_0[1].tolist()]
    thresholded = DynamicThreshold(Fixed(x_0), percentile=1.0)(x_0, t)
    torch.testing.assert_close(thresholded[0], x_0[0] / 3)
    torch.testing.assert_close(thresholded[1], x_0[1])  # nothing exceeds 1, so it is unchanged
    assert torch.equal(Unguided(Fixed(x_0))(x_0, t), x_0)


def test_chain_puts_the_later_around_the_earlier(setting):
    denoiser, x, t, condition = setting
    parts = {"cfg": functools.partial(ClassifierFree, scale=5.0), "clip": functools.partial(Clip, bound=0.5)}
    expected = ClassifierFree(denoiser, scale=5.0)(x, t, condition).clamp(-0.5, 0.5)
    torch.testing.assert_close(chain(denoiser, **parts)(x, t, condition), expected)


def test_refusals(setting):
    denoiser, x, t, condition = setting
    with pytest.raises(ValueError, match="guidance.level_min=2"):
        ClassifierFree(denoiser, level_min=2.0, level_max=1.0)
    with pytest.raises(ValueError, match="guidance.percentile=0"):
        DynamicThreshold(denoiser, percentile=0.0)
    with pytest.raises(ValueError, match="trained without classes"):
        ClassifierFree(denoiser.whole, scale=2.0)(x, t, condition)


def test_autoguidance_needs_one_schedule():
    strong = mixture(schedules.cosine())
    Autoguidance(strong, mixture(schedules.cosine()))
    for other in (schedules.cosine(T=500), schedules.cosine(s=0.02), schedules.linear(), VP()):
        with pytest.raises(ValueError, match="guidance.weak and schedule"):
            Autoguidance(strong, mixture(other))
