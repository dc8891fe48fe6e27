"""Average precision: that of COCO's own code, of a plain reference, and of any batches."""

import math

import numpy as np
import pytest
import torch

from lightning_diffusion.codecs.masks import IGNORED
from lightning_diffusion.metrics.instances import AveragePrecision
from lightning_diffusion.models.contracts import Instances

K, M, SIDE = 5, 4, 8


def random_scenes(count=12, seed=0, absent=()):
    """Rectangles over each other as true instances, and others near them as predictions."""
    rng = np.random.default_rng(seed)
    truth, masks, numbers = (np.zeros((count, SIDE, SIDE), dtype=np.uint8) for _ in range(3))
    classes, scores = np.zeros((count, M), dtype=np.int64), np.zeros((count, M))
    allowed = np.setdiff1d(np.arange(1, K), absent)
    for b in range(count):
        for i in range(rng.integers(0, M + 1)):
            y, x, h, w = rng.integers(0, SIDE - 2, 2).tolist() + rng.integers(2, 6, 2).tolist()
            label = rng.choice(allowed)
            truth[b, y : y + h, x : x + w], masks[b, y : y + h, x : x + w] = i + 1, label
            dy, dx = (rng.random(2) < 0.3).astype(int)
            numbers[b, y + dy : y + h, x + dx : x + w + dx] = i + 1
            classes[b, i] = label if rng.random() < 0.8 else rng.choice(np.arange(1, K))
            scores[b, i] = rng.integers(1, 9) / 8  # some are equal
    for b in range(count):  # instances that others cover
        gone = [i for i in range(M) if i + 1 not in numbers[b]]
        classes[b, gone] = 0
    unknown = rng.random(masks.shape) < 0.1
    masks[unknown] = IGNORED
    predicted = Instances(*(torch.from_numpy(part) for part in (numbers, classes, scores)))
    return predicted, torch.from_numpy(truth), torch.from_numpy(masks)


def scores_of(predicted, truth, masks, batch_size=5, order=None):
    found = AveragePrecision(K)
    batches = list(torch.arange(len(truth)).split(batch_size))
    for batch in batches if order is None else [batches[i] for i in order]:
        found.add(batch.tolist(), Instances(*(part[batch] for part in predicted)), truth[batch], masks[batch])
    return found.scores()


def sets_of(predicted, truth, masks):
    """For each image: predictions (score, class, set of pixels) and true instances (class, set of pixels)."""
    for b in range(len(truth)):
        known = {(y, x) for y in range(SIDE) for x in range(SIDE) if masks[b, y, x] != IGNORED}
        given = [
            (float(predicted.scores[b, i]), int(predicted.classes[b, i]),
             {p for p in known if predicted.numbers[b][p] == i + 1})
            for i in range(M) if predicted.classes[b, i] > 0
        ]  # fmt: skip
        true = []
        for i in range(1, 1 + int(truth[b].max())):
            if pixels := {p for p in known if truth[b][p] == i}:
                true.append((int(masks[b][next(iter(pixels))]), pixels))
        yield given, true


def reference(predicted, truth, masks, threshold):
    """AP of one threshold from sets of pixels."""
    images, found = list(sets_of(predicted, truth, masks)), []
    for k in range(1, K):
        count = sum(label == k for _, true in images for label, _ in true)
        if count == 0:
            continue
        rows = []
        for image, (given, true) in enumerate(images):
            left = [pixels for label, pixels in true if label == k]
            for score, label, pixels in sorted(given, key=lambda row: -row[0]):
                if label != k:
                    continue
                overlap = [len(pixels & other) / len(pixels | other) for other in left]
                hit = bool(overlap) and max(overlap) >= threshold
                if hit:
                    left.pop(max(range(len(left)), key=lambda i: (overlap[i], i)))
                rows.append((-score, image, hit))
        rows.sort(key=lambda row: row[:2])
        right = np.cumsum([hit for *_, hit in rows])
        points = [(n / count, n / (i + 1)) for i, n in enumerate(right)]
        best = [max((p for recall, p in points if recall >= at), default=0) for at in 0.01 * np.arange(101)]
        found.append(np.mean(best))
    return float(np.mean(found))


@pytest.mark.parametrize("absent", [(), (2, 3)])
def test_precision_is_that_of_sets_of_pixels(absent):
    """With unknown pixels, equal scores, covered instances, images without any, and absent classes."""
    scenes = random_scenes(absent=absent)
    found = scores_of(*scenes)
    by_threshold = [reference(*scenes, 0.5 + 0.05 * i) for i in range(10)]
    assert 0.1 < found["ap"] < found["ap50"] < 1
    assert found["ap50"] == pytest.approx(by_threshold[0], abs=1e-9)
    assert found["ap"] == pytest.approx(np.mean(by_threshold), abs=1e-9)


def test_precision_is_that_of_cocos_own_code():
    """Through torchmetrics, where pycocotools is installed."""
    pytest.importorskip("pycocotools")
    from torchmetrics.detection import MeanAveragePrecision

    predicted, truth, masks = random_scenes(count=30, seed=1)
    thresholds = {
        "iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(),
        "rec_thresholds": np.linspace(0, 1, 101).tolist(),
    }
    metric = MeanAveragePrecision(iou_type="segm", **thresholds)  # its own ones are rounded to float32
    for given, true in sets_of(predicted, truth, masks):
        metric.update([as_tensors(given, True)], [as_tensors([(1.0, *row) for row in true], False)])
    theirs, ours = metric.compute(), scores_of(predicted, truth, masks)
    assert ours["ap"] == pytest.approx(float(theirs["map"]), abs=1e-6)
    assert ours["ap50"] == pytest.approx(float(theirs["map_50"]), abs=1e-6)


def as_tensors(rows, scored):
    pictures = torch.zeros(len(rows), SIDE, SIDE, dtype=torch.bool)
    for picture, (_, _, pixels) in zip(pictures, rows, strict=True):
        for p in pixels:
            picture[p] = True
    found = {"masks": pictures, "labels": torch.tensor([label for _, label, _ in rows], dtype=torch.long)}
    return found | ({"scores": torch.tensor([score for score, *_ in rows])} if scored else {})


def test_batches_and_their_order_change_nothing():
    scenes = random_scenes()
    expected = scores_of(*scenes, batch_size=12)
    assert scores_of(*scenes, batch_size=1) == expected
    assert scores_of(*scenes, batch_size=5, order=[2, 0, 1]) == expected


def test_perfect_and_missing_instances():
    predicted, truth, masks = random_scenes(absent=(4,))
    classes = torch.zeros(len(truth), M, dtype=torch.long)
    masks = masks.where(masks != IGNORED, 0)
    truth = truth * (masks > 0)
    for b, i in torch.cartesian_prod(torch.arange(len(truth)), torch.arange(M)).tolist():
        if (pixels := truth[b] == i + 1).any():
            classes[b, i] = masks[b][pixels][0]
    perfect = Instances(truth, classes, torch.rand(classes.shape))
    assert scores_of(perfect, truth, masks) == {"ap": 1, "ap50": 1}
    nothing = Instances(torch.zeros_like(truth), torch.zeros_like(classes), perfect.scores)
    assert scores_of(nothing, truth, masks) == {"ap": 0, "ap50": 0}
    assert all(map(math.isnan, scores_of(predicted, torch.zeros_like(truth), torch.zeros_like(masks)).values()))
    assert all(map(math.isnan, AveragePrecision(K).scores().values()))
