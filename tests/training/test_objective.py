"""Objectives with parameters and a teacher, and their access to the averaged model and the progress."""

import copy

import pytest
import torch
from torch import nn

from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.denoiser import NetworkDenoiser
from lightning_diffusion.diffusion.parameterization import V
from lightning_diffusion.diffusion.time_sampler import Uniform
from lightning_diffusion.diffusion.weighting import Simple
from lightning_diffusion.models.contracts import Teacher
from lightning_diffusion.models.diffusion.model import DiffusionModel
from lightning_diffusion.models.diffusion.objective import Denoising
from tests import runs


class Taught(Denoising):
    """The denoising loss, weighted by a trained parameter and pulled towards a teacher."""

    def __init__(self, teacher, **options):
        super().__init__(**options)
        self.own, self.teacher, self.seen = nn.Parameter(torch.ones(())), Teacher(teacher), []

    def loss(self, model, batch, rng, training):
        teacher = self.teacher.on(model.device)
        self.seen.append((training.progress, training.averaged, teacher))
        losses = super().loss(model, batch, rng, training)
        apart = sum((p - q).square().sum() for p, q in zip(model.parameters(), teacher.parameters(), strict=True))
        return losses._replace(values=losses.values * self.own.square() + 1e-3 * apart)


def taught():
    module, teacher = runs.module(), runs.module().model
    old = module.objective
    module.objective = Taught(teacher, time_sampler=old.time_sampler, weighting=old.weighting)
    return module, teacher


def test_its_own_parameters_are_trained_and_saved_but_not_averaged(tmp_path):
    module, teacher = taught()
    before = copy.deepcopy(teacher.state_dict())
    trainer = runs.trainer(5)
    trainer.fit(module, runs.digits())
    assert float(module.objective.own.detach()) != 1
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert {name for name in state if name.endswith(".own")} == {"objective.own"}
    assert state.keys() == {*runs.module().state_dict(), "objective.own"}  # nothing of the teacher
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_it_sees_the_progress_the_averaged_model_and_the_teacher():
    module, teacher = taught()
    runs.trainer(4).fit(module, runs.digits())
    assert [progress for progress, *_ in module.objective.seen] == [0.0, 0.25, 0.5, 0.75]
    assert all(averaged is module.ema.model for _, averaged, _ in module.objective.seen)
    assert all(each is teacher and not each.training for *_, each in module.objective.seen)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_schedule_that_validation_cannot_measure_is_refused_before_training():
    objective = Denoising(Uniform(), Simple())
    one, two = (DiffusionModel(NetworkDenoiser(nn.Identity(), schedules.jsd(T), V()), 1, 8) for T in (1, 2))
    objective.check(two)
    with pytest.raises(ValueError, match="^schedule.T=1: the only step of this chain leaves no signal"):
        objective.check(one)
