"""Scores of predicted masks, from one confusion matrix of all pixels."""

import math
from typing import Final

import torch
from torch import Tensor

from lightning_diffusion.codecs.masks import IGNORED

MEANS: Final = ("mean_iou", "mean_dice", "foreground_dice", "pixel_accuracy")


def names(num_classes: int) -> list[str]:
    """The names of the scores of masks with K classes."""
    return [*MEANS, *(f"iou_{k}" for k in range(num_classes))]


class ConfusionMatrix:
    """counts[i, j]: the number of pixels of class i for which class j is predicted.

    The counts are whole numbers. Their sum over batches and ranks is exact, and so the scores are those of all pixels
    at once, at any batch size. A mean of each batch's scores would depend on the batches.

    Args:
        num_classes: K, from 2 to 255.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, device=device, dtype=torch.long)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Counts the pixels of masks of equal shape. Pixels whose truth is IGNORED do not count.

        Raises:
            ValueError: a class that is not among 0 … K − 1.
        """
        K, known = self.num_classes, truth != IGNORED
        i, j = truth[known].long(), predicted[known].long()
        if len(i) and max(int(i.max()), int(j.max())) >= K:
            raise ValueError(f"masks: their values must be 0 to {K - 1}, or {IGNORED} for unknown pixels")
        self.counts += torch.bincount(K * i + j, minlength=K * K).reshape(K, K).to(self.counts.device)

    def scores(self) -> dict[str, float]:
        """With TP, FP and FN of class k:

            iou_k = TP / (TP + FP + FN),  dice_k = 2 TP / (2 TP + FP + FN),  pixel_accuracy = Σ_k TP / Σ counts

        The means are over the classes that occur in the truth or in a prediction. The others have the value NaN.
        foreground_dice is the dice of all classes k ≥ 1 as one, whatever the class that is predicted there.

        Ref: The PASCAL Visual Object Classes Challenge, Everingham et al. 2010 (one ratio for the pixels of all images)
        """
        counts = self.counts.double().cpu()
        hits, predicted, true = counts.diagonal(), counts.sum(0), counts.sum(1)
        iou, dice = hits / (predicted + true - hits), 2 * hits / (predicted + true)
        accuracy = hits.sum() / counts.sum()
        foreground = 2 * counts[1:, 1:].sum() / (counts[1:].sum() + counts[:, 1:].sum())
        means = (float(iou.nanmean()), float(dice.nanmean()), float(foreground), float(accuracy))
        return dict(zip(names(self.num_classes), [*means, *iou.tolist()], strict=True))


def measured(scores: dict[str, float]) -> dict[str, float]:
    """The scores that have a value."""
    return {name: value for name, value in scores.items() if not math.isnan(value)}
