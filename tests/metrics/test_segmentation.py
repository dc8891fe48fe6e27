"""Scores of masks: those of scikit-learn and of sets of pixels, in any batches."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score

from lightning_diffusion.metrics.segmentation import ConfusionMatrix, measured, names

IGNORED = 255


def random_masks(classes, absent=(), seed=0, count=7):
    """Masks, and predictions that are right in half of the pixels; without the classes `absent`."""
    rng = np.random.default_rng(seed)
    chosen = np.setdiff1d(np.arange(classes), absent)
    truth = rng.choice(chosen, (count, 6, 5))
    predicted = np.where(rng.random(truth.shape) < 0.5, truth, rng.choice(chosen, truth.shape))
    truth = np.where(rng.random(truth.shape) < 0.1, IGNORED, truth)
    return torch.from_numpy(predicted).to(torch.uint8), torch.from_numpy(truth).to(torch.uint8)


def scores_of(predicted, truth, classes, batch_size=7):
    matrix = ConfusionMatrix(classes)
    for pair in zip(predicted.split(batch_size), truth.split(batch_size), strict=True):
        matrix.add(*pair)
    return matrix.scores()


@pytest.mark.parametrize(("classes", "absent"), [(2, ()), (5, ()), (6, (2, 5)), (11, (0, 3, 7))])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_scores_are_those_of_scikit_learn(classes, absent, batch_size):
    """Also with absent classes, ignored pixels and a smaller last batch."""
    predicted, truth = random_masks(classes, absent)
    found = scores_of(predicted, truth, classes, batch_size)
    known = truth != IGNORED
    y, p = truth[known].numpy(), predicted[known].numpy()
    present = [k for k in range(classes) if k in y or k in p]
    assert len(present) == classes - len(absent)
    iou = jaccard_score(y, p, labels=present, average=None)
    for k in range(classes):
        if k in present:
            assert found[f"iou_{k}"] == pytest.approx(iou[present.index(k)], abs=1e-9)
        else:
            assert math.isnan(found[f"iou_{k}"])
    assert found["mean_iou"] == pytest.approx(iou.mean(), abs=1e-9)
    assert found["mean_dice"] == pytest.approx(f1_score(y, p, labels=present, average="macro"), abs=1e-9)
    assert found["foreground_dice"] == pytest.approx(f1_score(y > 0, p > 0), abs=1e-9)
    assert found["pixel_accuracy"] == pytest.approx((y == p).mean(), abs=1e-9)
    assert measured(found).keys() == {name for name in names(classes) if name not in {f"iou_{k}" for k in absent}}


def test_a_class_that_is_only_predicted_or_only_true_has_the_value_zero():
    found = scores_of(torch.tensor([[[0, 2]]]), torch.tensor([[[0, 1]]]), 4)
    assert (found["iou_0"], found["iou_1"], found["iou_2"]) == (1, 0, 0)
    assert math.isnan(found["iou_3"])
    assert found["mean_iou"] == pytest.approx(1 / 3)


def test_parts_of_the_counts_add_up_to_the_whole_not_to_a_mean_of_scores():
    predicted, truth = random_masks(3)
    whole, ranks = ConfusionMatrix(3), [ConfusionMatrix(3) for _ in range(2)]
    whole.add(predicted, truth)
    for rank, indices in zip(ranks, (range(5), range(5, 7)), strict=True):
        rank.add(predicted[list(indices)], truth[list(indices)])
    mean = sum(rank.scores()["mean_iou"] for rank in ranks) / 2
    ranks[0].counts += ranks[1].counts
    assert torch.equal(ranks[0].counts, whole.counts)
    assert ranks[0].scores() == whole.scores()
    assert abs(mean - whole.scores()["mean_iou"]) > 1e-3


def test_without_known_pixels_nothing_is_measured():
    assert measured(ConfusionMatrix(3).scores()) == {}
    assert measured(scores_of(torch.zeros(1, 2, 2), torch.full((1, 2, 2), IGNORED), 3)) == {}


@pytest.mark.parametrize("value", [3, 254])
def test_a_value_that_is_no_class_is_refused(value):
    with pytest.raises(ValueError, match="masks: their values must be 0 to 2, or 255 for unknown pixels"):
        scores_of(torch.zeros(1, 1, 1), torch.full((1, 1, 1), value, dtype=torch.uint8), 3)
