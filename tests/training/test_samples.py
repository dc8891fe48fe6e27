"""Sample grids: always from the same noise, and within a share of the time."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_diffusion.data.dataset import InMemory
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.time_grid import Trailing
from lightning_diffusion.models.diffusion.model import DiffusionModel
from lightning_diffusion.training.callbacks import budget as budgets
from lightning_diffusion.training.callbacks.budget import Budget
from lightning_diffusion.training.callbacks.samples import SampleGrid, in_order_of_classes
from tests import runs


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


def test_work_stays_within_its_share_of_the_time(monkeypatch):
    """Ten seconds of work after every ten seconds: of a tenth of the time, one of ten."""
    clock = Clock()
    monkeypatch.setattr(budgets, "time", clock)
    budget, done = Budget(0.1), []
    for number in range(100):
        clock.now += 10
        if budget.allows_another():
            with budget.counted():
                clock.now += 10
            done.append(number)
    assert done[0] == 0  # the first one tells how long it takes
    assert 10 * len(done) <= 0.1 * (clock.now - 100) < 10 * (len(done) + 1)


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (1.0, 10)])
def test_grids_that_would_take_more_are_left_out_but_the_last(tmp_path, monkeypatch, share, count):
    grid, draw = SampleGrid(str(tmp_path), 2, num_samples=4, share=share), DiffusionModel.draw
    monkeypatch.setattr(DiffusionModel, "draw", lambda *a, **k: time.sleep(0.02) or draw(*a, **k))
    module = runs.module()
    module.ema.model.sampler = DDIM(Trailing(), 2)
    runs.trainer(21, [grid]).fit(module, runs.digits())
    assert len(list(tmp_path.glob("step_*.png"))) == count
    assert (tmp_path / "final.png").exists()
    assert (tmp_path / "trajectory.gif").exists()


class Negatives(DiffusionModel):
    """Makes the negative of each image, brighter by its class."""

    def pictures_of(self, images, condition):
        return {"negatives": 255 - images + condition.label.to(torch.uint8)[:, None, None, None]}


def test_held_out_images_are_shown_in_the_order_of_the_grid_each_above_its_picture(tmp_path):
    module, data = runs.module(), runs.digits()
    module.ema.model.sampler, module.ema.model.__class__ = DDIM(Trailing(), 2), Negatives
    runs.trainer(1, [SampleGrid(str(tmp_path), 0, num_samples=30)]).fit(module, data)
    picture = torch.from_numpy(np.array(Image.open(tmp_path / "negatives.png")))
    factor = picture.shape[1] // (10 * 9 - 1)
    shown = nn.functional.pad(picture[::factor, ::factor], (0, 1, 0, 1)).unfold(0, 20, 20).unfold(1, 9, 9)
    real, made = shown[:, :, :8, :8].flatten(0, 1), shown[:, :, 9:17, :8].flatten(0, 1)
    images, labels = data.splits["val"][torch.arange(len(data.splits["val"]))]
    found = (images[:, 0] == real[:, None]).flatten(2).all(2).int().argmax(1)
    assert torch.equal(images[found, 0], real), "each is a held-out image"
    assert len(set(found.tolist())) == 30
    assert labels[found].tolist() == [i % 10 for i in range(30)]
    assert torch.equal(made, 255 - real + labels[found].to(torch.uint8)[:, None, None])


def test_a_model_that_makes_no_pictures_of_images_reads_none(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_diffusion.training.callbacks.samples.in_order_of_classes", None)
    module = runs.module()
    module.ema.model.sampler = DDIM(Trailing(), 2)
    runs.trainer(1, [SampleGrid(str(tmp_path), 0, num_samples=4)]).fit(module, runs.digits())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final.png", "trajectory.gif"]


@pytest.mark.parametrize(
    ("labels", "num_classes", "count", "expected"),
    [
        ([0, 0, 0, 1, 1, 1], 2, 4, [0, 3, 1, 4]),
        ([0, 0, 0, 1, 1, 1], 2, 3, [0, 3, 1]),  # a last row that is not full, as in the grid of samples
        ([1, 0, 0, 0], 2, 4, [1, 0]),
        ([1, 1, 1, 1], 2, 3, [0, 1, 2]),
        ([1, 0], None, 3, [0, 1]),
        ([1, 0, 1], None, 2, [0, 1]),
    ],
)
def test_the_order_of_held_out_images(labels, num_classes, count, expected):
    images = InMemory(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), torch.tensor(labels))
    assert in_order_of_classes(images, count, num_classes).tolist() == expected


@pytest.mark.parametrize("options", [{"share": 0}, {"share": 1.5}, {"num_samples": 0}])
def test_refuses_values_out_of_range(tmp_path, options):
    with pytest.raises(ValueError, match=r"callbacks.samples.every_n_steps=2, num_samples=\d+, share="):
        SampleGrid(str(tmp_path), 2, **options)
