"""Average precision of predicted instances, over all images at once."""

from collections.abc import Iterable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from lightning_diffusion.codecs.masks import IGNORED
from lightning_diffusion.models.contracts import Instances

NAMES: Final = ("ap", "ap50")
THRESHOLDS: Final = tuple(0.5 + 0.05 * i for i in range(10))  # of intersection over union
RECALLS: Final = 0.01 * torch.arange(101, dtype=torch.float64)  # at which precision is averaged


class Found(NamedTuple):
    """The predicted instances of some images in rows, and the true ones.

    image, label, score: of each prediction, (N,). hits: whether it matches a true instance at each threshold, bool
    (N, 10). true: number of true instances of each class, (K,).
    """

    image: Tensor
    label: Tensor
    score: Tensor
    hits: Tensor
    true: Tensor


class AveragePrecision:
    """AP of COCO: the mean precision over 101 recalls, over the classes with true instances, and over ten thresholds of
    intersection over union. `ap50` is that of the threshold 0.5 only.

    The predictions of a class match true instances of the same image and class in the order of their scores: each takes
    the one of largest intersection over union that is still free, if that reaches the threshold. Every image's matches
    are its own, so the scores of all images do not depend on batches and devices: the rows are gathered and sorted by
    score, and by the number of the image where scores are equal.

    Args:
        num_classes: K, with the background.

    Ref: Microsoft COCO, Lin et al. 2014, and its published code for evaluation; PASCAL VOC, Everingham et al. 2010
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.parts: list[Found] = []

    def add(self, indices: Iterable[int], predicted: Instances, instances: Tensor, masks: Tensor) -> None:
        """Adds images.

        Args:
            indices: numbers of the images, unique over all batches.
            instances: number of each pixel's true instance, uint8 (B, H, W); 0 is none.
            masks: its class, uint8 (B, H, W). Pixels with the value IGNORED do not count.
        """
        numbers, classes, scores = (part.cpu() for part in predicted)
        for b, index in enumerate(indices):
            known = (masks[b] != IGNORED).cpu()
            truth, mask, number = instances[b].cpu()[known], masks[b].cpu()[known], numbers[b][known]
            self.parts.append(_matched(index, number, classes[b], scores[b], truth, mask, self.num_classes))

    def scores(self) -> dict[str, float]:
        """`ap` and `ap50` of all images that were added; NaN without true instances."""
        if not self.parts:
            return dict.fromkeys(NAMES, torch.nan)
        image, label, score, hits = (torch.cat(column) for column in list(zip(*self.parts, strict=True))[:4])
        true = torch.stack([part.true for part in self.parts]).sum(0)
        order = image.argsort(stable=True)
        order = order[score[order].argsort(descending=True, stable=True)]
        label, hits = label[order], hits[order]
        found = [_precisions(hits[label == k], int(n)) for k, n in enumerate(true.tolist()) if n > 0]
        if not found:
            return dict.fromkeys(NAMES, torch.nan)
        precision = torch.stack(found).mean((0, 2))  # at each threshold
        return {"ap": float(precision.mean()), "ap50": float(precision[0])}


def _matched(
    index: int, number: Tensor, classes: Tensor, scores: Tensor, truth: Tensor, mask: Tensor, num_classes: int
) -> Found:
    """The rows of an image, from its known pixels, (P,)."""
    M, N = len(classes), int(truth.max()) if len(truth) else 0
    overlap = torch.bincount(number.long() * (N + 1) + truth.long(), minlength=(M + 1) * (N + 1)).reshape(M + 1, N + 1)
    own = torch.bincount(truth.long() * num_classes + mask.long(), minlength=(N + 1) * num_classes)
    area, label = overlap.sum(0)[1:], own.reshape(N + 1, num_classes)[1:].argmax(1)
    iou = overlap[1:, 1:].double() / (overlap.sum(1)[1:, None] + area - overlap[1:, 1:]).clamp(min=1)
    fits = (classes[:, None] == label) & (area > 0)
    given = torch.nonzero(classes > 0)[:, 0]
    given = given[scores[given].argsort(descending=True, stable=True)]
    hits = torch.zeros(len(given), len(THRESHOLDS), dtype=torch.bool)
    for t, threshold in enumerate(THRESHOLDS):
        free = (area > 0).clone()
        for row, i in enumerate(given.tolist()):
            candidates = iou[i].where(fits[i] & free, -1)
            if N and candidates.max() >= threshold:
                free[N - 1 - int(candidates.flip(0).argmax())] = False  # the last of equal ones, as in COCO's code
                hits[row, t] = True
    true = torch.bincount(label[area > 0], minlength=num_classes)
    return Found(torch.full_like(given, index), classes[given], scores[given].double(), hits, true)


def _precisions(hits: Tensor, count: int) -> Tensor:
    """The precision at each recall of RECALLS, (10, 101), for the matches in the order of scores, (N, 10), and the
    number of true instances. It is the largest one at this recall or above, and 0 if that is not reached."""
    right = hits.double().cumsum(0)
    precision = right / torch.arange(1, len(hits) + 1)[:, None]
    precision = precision.flip(0).cummax(0).values.flip(0)
    precision = torch.cat([precision, torch.zeros(1, hits.shape[1], dtype=torch.float64)])
    place = torch.searchsorted((right / count).mT.contiguous(), RECALLS.expand(hits.shape[1], -1).contiguous())
    return precision.mT.gather(1, place)
