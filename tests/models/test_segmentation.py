"""Segmentation: the loss by an independent formula, and scores that no batch or rank changes."""

import functools
import json

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_diffusion.app.train import main as train
from lightning_diffusion.codecs.masks import IGNORED, compared, palette
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.data.dataset import ImageDataset, Sample
from lightning_diffusion.data.module import ImageDataModule
from lightning_diffusion.data.scenes import Scenes
from lightning_diffusion.metrics.instances import NAMES
from lightning_diffusion.metrics.segmentation import ConfusionMatrix, measured, names
from lightning_diffusion.models.contracts import Instances, Training
from lightning_diffusion.models.segmentation.model import Segmentation
from lightning_diffusion.models.segmentation.objective import CrossEntropyAndDice, parts
from lightning_diffusion.networks.unet_lecture import LectureUNet
from lightning_diffusion.training.module import TrainingModule
from lightning_diffusion.training.optimizers.warmup import warmup_cosine
from tests import runs
from tests.command import in_process, start_ranks

K, SIDE = 4, 6


def model(seed=0, instances=False):
    torch.manual_seed(seed)
    network = LectureUNet(1, channels=4, depth=1, out_channels=K + 3 * instances, time=False)
    torch.nn.init.normal_(network.head.weight)
    return (Echo if instances else Segmentation)(network, 1, SIDE, K, instances=instances)


class Echo(Segmentation):
    """Finds the true instances of held-out images, those of every third image in the wrong place."""

    def instances(self, images):
        held_out = Masked(13, 1)
        index = torch.cat([(held_out.images == image).flatten(1).all(1).nonzero()[:, 0] for image in images.cpu()])
        numbers = held_out.sample(index).instances
        numbers = torch.where((index % 3 == 0)[:, None, None], numbers.roll(1, dims=1), numbers)
        scores = images.float().cpu().mean((1, 2, 3))[:, None] / 255 - torch.arange(K - 1) / 100
        return Instances(numbers, torch.arange(1, K).expand(len(index), -1), scores)


class Masked(ImageDataset):
    """Random images and masks, of which some pixels are unknown."""

    def __init__(self, count, seed):
        rng = torch.Generator().manual_seed(seed)
        self.images = torch.randint(0, 256, (count, 1, SIDE, SIDE), generator=rng, dtype=torch.uint8)
        masks = torch.randint(0, K - 1, (count, SIDE, SIDE), generator=rng, dtype=torch.uint8)  # without the last class
        self.masks = masks.where(torch.rand(masks.shape, generator=rng) > 0.2, IGNORED)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, indices):
        return self.images[indices], None

    def sample(self, indices):
        masks = self.masks[indices]
        return Sample(self.images[indices], None, masks, masks.where(masks != IGNORED, 0))  # a class is an instance

    def fingerprint(self):
        return "0" * 64


class MaskedData(ImageDataModule):
    mask_classes = K

    def read(self, split):
        return Masked(40, 0) if split == "train" else Masked(13, 1)


def module(instances=False):
    return TrainingModule(
        model(instances=instances), CrossEntropyAndDice(), functools.partial(torch.optim.AdamW, lr=1e-3),
        functools.partial(warmup_cosine, warmup_steps=1, max_steps=4),
    )  # fmt: skip


def data(batch_size=5):
    return MaskedData(channels=1, image_size=SIDE, num_classes=None, batch_size=batch_size)


def validated(batch_size, instances=False):
    trainer = runs.trainer(1, limit_val_batches=1.0)
    found = trainer.validate(module(instances), data(batch_size), verbose=False)[0]
    return {name.removeprefix("val/"): value for name, value in found.items()}


def test_the_parts_of_the_loss_are_those_of_a_sum_over_pixels():
    torch.manual_seed(0)
    logits, masks = torch.randn(3, K, 5, 7), torch.randint(0, K, (3, 5, 7), dtype=torch.uint8)
    masks[0, :2], masks[1] = IGNORED, torch.where(masks[1] == 2, 0, masks[1])
    masks[2, 0] = 0
    found = parts(logits, masks)
    for b in range(3):
        probability = np.exp(logits[b].double().numpy())
        probability /= probability.sum(0)
        known = masks[b].numpy() != IGNORED
        pixels = [(y, x) for y in range(5) for x in range(7) if known[y, x]]
        nats = -sum(np.log(probability[masks[b, y, x], y, x]) for y, x in pixels) / len(pixels)
        dice = []
        for k in {int(masks[b, y, x]) for y, x in pixels} - {0}:
            p = sum(probability[k, y, x] for y, x in pixels)
            true = [(y, x) for y, x in pixels if masks[b, y, x] == k]
            dice.append(2 * sum(probability[k, y, x] for y, x in true) / (p + len(true)))
        assert float(found.cross_entropy[b]) == pytest.approx(nats, rel=1e-5)
        assert float(found.dice_loss[b]) == pytest.approx(1 - np.mean(dice), rel=1e-5)


def test_an_image_of_background_and_one_of_unknown_pixels_have_no_dice():
    torch.manual_seed(0)
    masks = torch.stack([torch.zeros(4, 4), torch.full((4, 4), IGNORED)]).to(torch.uint8)
    logits = torch.randn(2, K, 4, 4, requires_grad=True)
    found = parts(logits, masks)
    assert found.dice_loss.tolist() == [0, 0]
    assert found.cross_entropy[0] > 0
    assert found.cross_entropy[1] == 0
    sum(found).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1].abs().max() == 0


def test_a_perfect_prediction_has_no_loss_and_the_loss_is_the_weighted_sum():
    masks = torch.randint(0, K, (2, 4, 4))
    logits = 100 * torch.nn.functional.one_hot(masks, K).movedim(-1, 1).float()
    assert max(part.max() for part in parts(logits, masks)) < 1e-6
    batch, ours = Batch(*Masked(3, 0).sample(torch.arange(3))[:2], 0, Masked(3, 0).masks), model()
    found = CrossEntropyAndDice(0.3).held_out(ours, batch, range(3), 0).figures
    torch.testing.assert_close(found["loss"], found["cross_entropy"] + 0.3 * found["dice_loss"])
    losses = CrossEntropyAndDice(0.3).loss(ours, batch, None, Training(0, ours))
    assert torch.equal(losses.values, found["loss"])
    assert CrossEntropyAndDice.figures == tuple(found)


def test_validation_scores_are_those_of_all_pixels_at_once():
    """With a class that no mask has, unknown pixels and a smaller last batch."""
    ours, held_out = module(), Masked(13, 1)
    matrix = ConfusionMatrix(K)
    matrix.add(ours.ema.model.predict(held_out.images), held_out.masks)
    expected = measured(matrix.scores())
    for batch_size in (13, 5, 1):
        found = validated(batch_size)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        assert found.keys() == {*expected, "loss", "cross_entropy", "dice_loss"}


@pytest.mark.slow
def test_two_ranks_measure_the_scores_of_one(tmp_path):
    """The last batch has one image, so the second rank has none of it."""
    for process in start_ranks("tests.models.test_segmentation", tmp_path, cwd=tmp_path, forked=True):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-3000:]
    one, ranks = (
        validated(4, instances=True),
        [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)],
    )
    scores = {name: value for name, value in one.items() if name in [*names(K), *NAMES]}
    assert len(scores) == 4 + K + 2
    assert 0 < scores["ap50"] < 1
    for rank in ranks:
        assert {name: rank[name] for name in scores} == pytest.approx(scores, abs=1e-6)


def test_predictions_are_the_most_probable_classes():
    ours, images = model(), Masked(3, 0).images
    assert torch.equal(ours.predict(images).long(), ours.outputs(images).logits.softmax(1).argmax(1))
    assert ours.predict(images).dtype == torch.uint8
    assert len(ours.predict(images).unique()) > 1


def test_the_picture_shows_image_mask_prediction_and_errors():
    images = torch.tensor([[[[30, 60, 90]]]], dtype=torch.uint8)
    truth, predicted = (torch.tensor([[row]], dtype=torch.uint8) for row in ([0, 1, IGNORED], [0, 2, 1]))
    found, colours = compared(images, truth, predicted, 3)[0, :, 0].T.tolist(), palette(3).tolist()
    grey, line = [[value] * 3 for value in (30, 60, 90)], [[128] * 3]
    assert found[:4] == grey + line
    assert found[4:8] == [colours[0], colours[1], [128] * 3, *line]
    assert found[8:12] == [colours[0], colours[2], colours[1], *line]
    assert found[12:] == [[10] * 3, [255, 0, 0], [30] * 3]
    assert len({tuple(colour) for colour in palette(11)[:12].tolist()}) == 12


def test_a_few_scenes_are_learned_by_heart():
    data = Scenes(channels=1, image_size=16, num_classes=None, batch_size=8)
    data.setup()
    sample = data.splits["train"].sample(torch.arange(6))
    images, masks = sample.images, sample.targets
    torch.manual_seed(0)
    network = LectureUNet(1, channels=8, depth=2, out_channels=11, time=False)
    ours, objective = Segmentation(network, 1, 16, 11), CrossEntropyAndDice()
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        objective.loss(ours, Batch(images, None, 0, masks), None, Training(0, ours)).values.mean().backward()
        optimizer.step()
    matrix = ConfusionMatrix(11)
    matrix.add(ours.predict(images), masks)
    assert matrix.scores()["mean_iou"] > 0.8


def test_the_scores_of_samples_that_an_experiment_chooses_are_left_out(tmp_path):
    """The default experiment measures them, and `model=` chooses a family that draws none."""
    words = ["model=segmentation", "data=scenes", "data.image_size=16", "backbone.channels=4", "backbone.depth=1"]
    words += ["trainer=cpu", "trainer.max_steps=1", "trainer.limit_val_batches=1", "logger=csv", "hydra.run.dir=run"]
    status, out, err = in_process(train, *words, cwd=tmp_path)
    assert status == 0, err
    assert "run/samples/predictions.png" in out
    assert "samples/final.png" not in out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 < metrics["val/mean_iou"] < 1
    assert "scores" not in metrics


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=segmentation"], "these data have no masks; choose experiment=scenes or data=scenes"),
        (["model=segmentation", "model.mask_classes=11"], "these images have no masks, the model predicts 11"),
        (["experiment=scenes", "model.mask_classes=4"], "masks of 11 classes, the model predicts 4"),
        (["experiment=scenes", "callbacks=scores"], "callbacks.scores: a Segmentation draws no samples"),
        (["experiment=scenes", "schedule=linear"], "schedule: not used by"),
        (["experiment=scenes", "objective.dice_weight=-1"], "objective.dice_weight=-1: choose a number"),
        (["experiment=scenes", "metric=val/bits_per_dim"], "not measured in this run; choose val/mean_iou"),
        (["experiment=scenes", "backbone.depth=6"], "backbone.depth=6 and data.image_size=32: the image is too small"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(words, message, tmp_path):
    status, _, err = in_process(train, *words, cwd=tmp_path)
    assert (status, len(err.strip().splitlines())) == (2, 1), err
    assert message in err
    assert not list(tmp_path.iterdir())


def main(folder):
    """One of two ranks, which writes what it measured."""
    strategy = DDPStrategy(process_group_backend="gloo")
    trainer = runs.trainer(1, limit_val_batches=1.0, devices=2, strategy=strategy)
    found = trainer.validate(module(instances=True), data(4), verbose=False)[0]
    (folder / f"{trainer.global_rank}.json").write_text(
        json.dumps({name.removeprefix("val/"): value for name, value in found.items()})
    )


if __name__ == "__main__":
    import sys
    from pathlib import Path

    main(Path(sys.argv[1]))
