"""Instances: targets and loss from sets of pixels, and grouping that finds the items again."""

import functools
import json
import math

import pytest
import torch

from lightning_diffusion.app.train import main as train
from lightning_diffusion.codecs.masks import IGNORED, outlined
from lightning_diffusion.data.dataset import Mirrored
from lightning_diffusion.data.scenes import Scenes
from lightning_diffusion.metrics.instances import AveragePrecision
from lightning_diffusion.models.segmentation.instances import SIGMA, UNIT, centres_of, grouped
from lightning_diffusion.models.segmentation.model import Segmentation
from lightning_diffusion.models.segmentation.objective import CrossEntropyAndDice, instance_parts
from lightning_diffusion.networks.unet import UNet
from tests.command import in_process


def scenes(count, image_size=32):
    data = Scenes(channels=1, image_size=image_size, num_classes=None, batch_size=8)
    data.setup()
    return data.splits["train"].sample(torch.arange(count))


def test_targets_are_those_of_a_loop_over_pixels():
    instances = torch.zeros(2, 6, 8, dtype=torch.uint8)
    instances[0, 1:4, 2:4], instances[0, 0, 5], instances[0, 5, 0] = 1, 3, 3  # in two parts; number 2 is covered
    found, unit, sigma = centres_of(instances), 6 * UNIT, 6 * SIGMA
    centres = {1: (2, 2.5), 3: (2.5, 2.5)}
    for y in range(6):
        for x in range(8):
            heat = max(math.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * sigma**2)) for cy, cx in centres.values())
            assert float(found.heat[0, 0, y, x]) == pytest.approx(heat, abs=1e-6)
            number = int(instances[0, y, x])
            cy, cx = centres.get(number, (y, x))
            assert found.offsets[0, :, y, x].tolist() == pytest.approx([(cy - y) / unit, (cx - x) / unit], abs=1e-5)
            assert bool(found.has[0, 0, y, x]) == (number > 0)
    assert found.heat[1].max() == found.offsets[1].abs().max() == 0


def test_the_parts_of_the_loss_leave_out_unknown_pixels():
    torch.manual_seed(0)
    instances, masks = torch.zeros(2, 2, 4, 5, dtype=torch.uint8)
    instances[0, :2, :3] = 1
    masks[0, 0], masks[1] = IGNORED, IGNORED
    heat, offsets, true = torch.randn(2, 1, 4, 5), torch.randn(2, 2, 4, 5), centres_of(instances)
    found = instance_parts(heat, offsets, instances, masks)
    assert float(found.centre_loss[0]) == pytest.approx(float((heat - true.heat)[0, 0, 1:].square().mean()), rel=1e-5)
    expected = float((offsets - true.offsets)[0, :, 1, :3].abs().mean())
    assert float(found.offset_loss[0]) == pytest.approx(expected, rel=1e-5)
    assert found.centre_loss[1] == found.offset_loss[1] == 0


def test_exact_outputs_are_grouped_into_the_items():
    """Each item's pixels, class and score, unless two centres are closer than the window of the maxima."""
    sample = scenes(40)
    true, matrix = centres_of(sample.instances), AveragePrecision(11)
    probability = torch.nn.functional.one_hot(sample.targets.long(), 11).movedim(-1, 1).float()
    found = grouped(probability, true.heat, true.offsets)
    assert torch.equal(found.numbers > 0, sample.targets > 0)
    assert found.scores.max() <= 1
    same = 0
    for b in range(40):
        for i in range(1, int(found.numbers[b].max()) + 1):
            if (pixels := found.numbers[b] == i).any():
                label = sample.targets[b][pixels].bincount().argmax()
                assert found.classes[b, i - 1] == label
                same += any(torch.equal(pixels, sample.instances[b] == k) for k in range(1, 5))
    assert same > 0.9 * sum(len(numbers.unique()) - 1 for numbers in sample.instances)
    matrix.add(range(40), found, sample.instances, sample.targets)
    assert matrix.scores()["ap50"] > 0.9


def test_two_items_of_a_class_are_separated_by_their_centres_and_the_vote_decides():
    probability = torch.zeros(1, 3, 9, 16)
    probability[0, 0] = 1
    probability[0, :, 2:7, 1:7], probability[0, :, 2:7, 9:15] = (torch.tensor(p)[:, None, None] for p in
                                                                ([0.1, 0.8, 0.1], [0.1, 0.7, 0.2]))  # fmt: skip
    probability[0, :, 2, 1:7] = torch.tensor([0.0, 0.1, 0.9])[:, None]  # a row of another class
    heat = torch.zeros(1, 1, 9, 16)
    heat[0, 0, 4, 3], heat[0, 0, 4, 11], heat[0, 0, 8, 0] = 0.9, 0.5, 0.05  # the last one is too weak
    found = grouped(probability, heat, torch.zeros(1, 2, 9, 16))
    assert found.numbers[0, 4].tolist() == [0, *[1] * 6, 0, 0, *[2] * 6, 0]
    assert found.classes[0, :3].tolist() == [1, 1, 0]
    assert found.scores[0, :3].tolist() == pytest.approx([0.9 * (0.8 * 24 + 0.1 * 6) / 30, 0.5 * 0.7, 0], abs=1e-5)
    nothing = grouped(probability, torch.zeros_like(heat), torch.zeros(1, 2, 9, 16))
    assert nothing.numbers.max() == nothing.classes.max() == 0


def test_instances_are_mirrored_and_outlined():
    data = Scenes(channels=1, image_size=16, num_classes=None, batch_size=8)
    data.setup()
    plain, count = data.splits["val"], len(data.splits["val"])
    assert torch.equal(
        Mirrored(plain).sample(torch.tensor([3, 3 + count])).instances,
        torch.stack([plain.sample(torch.tensor([3])).instances[0].flip(-1).flip(-1),
                     plain.sample(torch.tensor([3])).instances[0].flip(-1)]),
    )  # fmt: skip
    instances = torch.zeros(1, 5, 5, dtype=torch.uint8)
    instances[0, 1:4, 1:4] = 1
    white = outlined(torch.zeros(1, 3, 5, 5, dtype=torch.uint8), instances)[0, 0] == 255
    assert white[1:4, 1:4].sum() == white.sum() == 8


def test_a_network_of_a_diffusion_model_gets_time_zero_and_the_outputs_that_it_needs():
    network = functools.partial(UNet, 8, 1, channels=4, channel_mults=[1], num_blocks=1, attention_resolutions=[])
    ours = Segmentation(network, 1, 8, 5, time=0, instances=True)
    torch.nn.init.normal_(ours.unet.head.weight)
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    outputs = ours.outputs(images)
    assert [part.shape[1] for part in outputs] == [5, 1, 2]
    expected = ours.unet(images / 127.5 - 1, torch.zeros(3))
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected)
    assert ours.instances(images).numbers.shape == (3, 8, 8)
    CrossEntropyAndDice().check(ours)


WORDS = ["experiment=scenes", "data.image_size=16", "backbone.channels=4", "backbone.depth=1"]


def test_a_run_with_instances_is_scored(tmp_path):
    words = ["model.instances=true", "trainer=cpu", "trainer.max_steps=2", "trainer.limit_val_batches=1", "logger=csv"]
    words += ["metric=val/ap50", "callbacks.samples.num_samples=4", "hydra.run.dir=run"]
    status, out, err = in_process(train, *WORDS, *words, cwd=tmp_path)
    assert status == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 <= metrics["val/ap"] <= metrics["val/ap50"] <= 1
    assert metrics["val/centre_loss"] > 0 < metrics["val/offset_loss"]
    assert "run/samples/predictions.png" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbone=dit"], "backbone: a DiT has no outputs for masks; choose backbone=unet_lecture, unet or adm"),
        (["model.time=-1"], "model.time=-1: choose a number from 0 to 1000, or null"),
        (["objective.centre_weight=-1"], "objective.centre_weight=-1: choose a number of at least 0"),
        (["metric=val/ap50"], "not measured in this run"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(words, message, tmp_path):
    small = [word for word in WORDS if not (words == ["backbone=dit"] and word.startswith("backbone"))]
    status, _, err = in_process(train, *small, *words, cwd=tmp_path)
    assert (status, len(err.strip().splitlines())) == (2, 1), err
    assert message in err
