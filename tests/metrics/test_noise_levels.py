"""Sums for each part of the clock, for images whose part is known."""

import pytest
import torch

from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.training.callbacks.noise_levels import BINS, NoiseLevels


def held_out(time, loss, error=None):
    loss = torch.tensor(loss)
    return torch.tensor(time), loss, (loss / 2 if error is None else torch.tensor(error))


def test_each_image_counts_in_its_part_of_the_clock():
    levels = NoiseLevels()
    levels.add(*held_out([0.001, 0.05, 0.051, 1.0], [1.0, 3.0, 5.0, 7.0]))
    levels.add(*held_out([0.02], [2.0]))
    assert BINS == 20
    schedule = schedules.cosine(T=1000)
    found = levels.levels(lambda times: {"logsnr": schedule.logsnr(1000 * times).tolist()})
    assert [(level["time"], level["images"], level["loss"], level["error"]) for level in found] == [
        pytest.approx((0.025, 3, 2.0, 1.0)), pytest.approx((0.075, 1, 5.0, 2.5)), pytest.approx((0.975, 1, 7.0, 3.5)),
    ]  # fmt: skip
    logsnr = schedules.cosine(T=1000).logsnr(torch.tensor([25.0, 75.0, 975.0], dtype=torch.float64))
    assert [level["logsnr"] for level in found] == pytest.approx(logsnr.tolist())


def test_quarters_are_means_over_images_and_an_empty_one_is_left_out():
    levels = NoiseLevels()
    levels.add(*held_out([0.01, 0.24, 0.25, 0.6, 1.0], [1.0, 2.0, 6.0, 4.0, 5.0]))
    assert levels.quartiles() == pytest.approx({"q1": 3.0, "q3": 4.0, "q4": 5.0})
