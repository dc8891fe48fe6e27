"""Classifier-free guidance on a condition of two parts, against its formulas evaluated one estimate at a time."""

import pytest
import torch
from torch import nn

from lightning_diffusion.codecs.condition import Condition, by_label
from lightning_diffusion.diffusion.denoiser import Counted, NetworkDenoiser
from lightning_diffusion.diffusion.guidance import ClassifierFree
from lightning_diffusion.diffusion.parameterization import X0
from tests.diffusion.options import SCHEDULES

B, T = 5, torch.tensor(500.0)


class Mixed(nn.Module):
    """A network in which label and image act on each other, so that the order of conditions matters."""

    num_classes, condition_channels = 10, 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, time, condition):
        label = 10 if condition is None or condition.label is None else condition.label
        image = torch.zeros(len(x), 3, 8, 8) if condition is None or condition.image is None else condition.image
        label = torch.as_tensor(label).expand(len(x))[:, None, None, None]
        seen = image[:, :2].sum(1, keepdim=True) + image[:, 2:] * (1 + label)
        return self.weight * (x + torch.sin(seen) * torch.where(label == 10, 0.5, 1.0 + label) + label / 3)


def made(label_dropout=0.1, image_dropout=0.1):
    return NetworkDenoiser(Mixed(), SCHEDULES["cosine"], X0(), label_dropout, image_dropout).eval()


@pytest.fixture
def setting():
    torch.manual_seed(0)
    image = torch.cat([torch.randn(B, 2, 8, 8), torch.ones(B, 1, 8, 8)], dim=1)
    return made(), torch.randn(B, 1, 8, 8), Condition(label=torch.arange(B), image=image)


def estimates(denoiser, x, condition):
    """x̂(∅), x̂(label), x̂(image) and x̂(both), each on its own."""
    label, image = by_label(condition.label), Condition(image=condition.image)
    return [denoiser(x, T, each) for each in (None, label, image, condition)]


@pytest.mark.parametrize(
    ("w_label", "w_image"), [(2.0, 1.5), (0.0, 3.0), (1.0, 4.0), (2.0, 1.0), (3.0, 3.0), (0.0, 0.0)]
)
def test_the_formulas_by_hand(setting, w_label, w_image):
    denoiser, x, condition = setting
    none, label, image, both = estimates(denoiser, x, condition)
    wanted = {
        (("label", "image"), "nested"): none + w_label * (label - none) + w_image * (both - label),
        (("image", "label"), "nested"): none + w_image * (image - none) + w_label * (both - image),
        (("label", "image"), "independent"): none + w_label * (label - none) + w_image * (image - none),
    }
    scales = {"label": w_label, "image": w_image}
    for (names, combine), expected in wanted.items():
        guided = ClassifierFree(denoiser, scales={name: scales[name] for name in names}, combine=combine)
        torch.testing.assert_close(guided(x, T, condition), expected)
    if w_label == w_image:  # both parts at once
        torch.testing.assert_close(ClassifierFree(denoiser, w_label)(x, T, condition), none + w_label * (both - none))


@pytest.mark.parametrize(
    ("scales", "evaluations"),
    [
        ({"label": 1, "image": 1}, 1),
        ({"label": 2, "image": 1.5}, 3),
        ({"image": 1, "label": 2}, 2),  # x̂(image) + 2 (x̂(both) − x̂(image))
        ({"label": 2, "image": 1}, 3),
        ({"label": 2, "image": 2}, 2),
        ({"label": 2}, 2),  # the image is always given
        ({"image": 1}, 1),
        ({}, 1),
    ],
)
def test_the_cost_and_the_parts_that_stay(setting, scales, evaluations):
    denoiser, x, condition = setting
    _, _, image, both = estimates(denoiser, x, condition)
    counted = Counted(denoiser)
    found = ClassifierFree(counted, scales=scales)(x, T, condition)
    assert counted.items == evaluations * B
    if evaluations == 1:
        assert torch.equal(found, both)  # to the bit
    if evaluations == 2 and scales.get("image") != 2:
        torch.testing.assert_close(found, image + 2 * (both - image))


def test_independent_costs_one_more_for_the_conditional_estimate(setting):
    denoiser, x, condition = setting
    counted = Counted(denoiser)
    guided = ClassifierFree(counted, scales={"label": 2, "image": 3}, combine="independent", level_max=1.0)
    t = torch.where(torch.arange(B) < 2, 900.0, 100.0)  # the first two are outside of the interval
    found = guided(x, t, condition)
    assert counted.items == 4 * B
    assert torch.equal(found[:2], denoiser(x, t, condition)[:2])
    assert not torch.equal(found[2:], denoiser(x, t, condition)[2:])


def test_a_missing_part_is_its_none(setting):
    denoiser, x, condition = setting
    guided, label = ClassifierFree(denoiser, scales={"label": 2, "image": 3}), by_label(condition.label)
    none_of_image = condition.without("image")
    torch.testing.assert_close(guided(x, T, label), guided(x, T, none_of_image))
    assert torch.equal(denoiser(x, T, condition.without("image", "label", no_class=10)), denoiser(x, T))


@pytest.mark.parametrize(
    ("dropout", "options", "message"),
    [
        (
            (0.1, 0),
            {"scales": {"image": 2}},
            "trained with denoiser.image_dropout=0 and never saw an image without its",
        ),
        ((0, 0.1), {"scales": {"image": 1, "label": 2}}, "trained with denoiser.label_dropout=0 and never saw"),
        ((0.1, 0), {"scale": 2}, "denoiser.image_dropout=0"),
        (
            (0.1, 0.1),
            {"scales": {"tokens": 2}},
            "guidance.scales: this model takes no tokens; give a scale for label or",
        ),
    ],
)
def test_refusals(dropout, options, message):
    with pytest.raises(ValueError, match=message):
        ClassifierFree(made(*dropout), **options)


def test_a_part_with_scale_1_at_the_beginning_needs_no_dropout():
    ClassifierFree(made(0.1, 0), scales={"image": 1, "label": 2})
    ClassifierFree(made(0, 0.1), scales={"image": 2})
    ClassifierFree(made(0, 0), scales={"image": 1, "label": 1})
