"""Samples by number: the same on any rank, with counted evaluations."""

import functools

import pytest
import torch

from lightning_diffusion.diffusion import beta
from lightning_diffusion.diffusion.denoiser import Denoiser
from lightning_diffusion.diffusion.guidance import ClassifierFree, Clip
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.samplers.euler import Heun
from lightning_diffusion.diffusion.time_grid import LogSNR, Trailing
from lightning_diffusion.metrics.batches import shard_batches
from lightning_diffusion.models.diffusion.model import DiffusionModel


class ByClass(Denoiser):
    """Depends only on the class: images of class c are grey at level c/10; without a class, black."""

    no_class = 10

    def __init__(self):
        super().__init__()
        self.schedule = beta.cosine()
        self.on = torch.nn.Parameter(torch.zeros(()))  # has the device

    def forward(self, x_t, t, condition=None):
        level = torch.where(condition.label == self.no_class, -1.0, condition.label / 10)
        return level.reshape(-1, 1, 1, 1).expand_as(x_t)


def by_class(sampler=None, guidance=Clip):
    return DiffusionModel(ByClass(), 1, 4, 10, sampler or DDIM(Trailing(), 3), guidance)


def drawn(model, indices):
    return model.draw(indices, model.conditions_in_turn(indices), seed=0)


def test_a_sample_is_of_the_class_of_its_number():
    images, _ = drawn(by_class(), range(7, 25))
    expected = [round((i % 10 / 10 + 1) * 127.5) for i in range(7, 25)]
    assert images.dtype == torch.uint8
    assert images.flatten(1).float().mean(1).tolist() == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize(
    ("sampler", "guidance", "nfe"),
    [
        (DDIM(Trailing(), 3), Clip, 3),
        (Heun(LogSNR(), 4), Clip, 6),  # two of its steps are Euler's
        (DDIM(Trailing(), 3), functools.partial(ClassifierFree, scale=2.0), 6),
    ],
)
def test_evaluations_are_counted_for_each_image(sampler, guidance, nfe):
    assert drawn(by_class(sampler, guidance), range(5)).cost == 5 * nfe


def test_a_trajectory_ends_with_the_sample():
    model, indices = by_class(), range(3, 6)
    states = list(model.trajectory(indices, model.conditions_in_turn(indices), seed=0))
    assert len(states) == 4
    assert torch.equal(states[-1], drawn(model, indices).images)


@pytest.mark.parametrize(("count", "batch_size", "ranks"), [(10, 3, 1), (10, 3, 2), (10, 3, 5), (1, 4, 2), (12, 4, 3)])
def test_ranks_make_every_sample_once_in_the_batches_of_one_rank(count, batch_size, ranks):
    whole = shard_batches(count, batch_size)
    dealt = [shard_batches(count, batch_size, rank, ranks) for rank in range(ranks)]
    assert sorted((b for batches in dealt for b in batches), key=lambda b: b.start) == whole
    assert [i for batch in whole for i in batch] == list(range(count))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
