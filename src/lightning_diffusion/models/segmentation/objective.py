"""Cross-entropy and soft Dice as a loss."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_diffusion.codecs.masks import IGNORED
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.models.contracts import HeldOut, Losses, Objective, Training
from lightning_diffusion.models.segmentation.model import Segmentation


class Parts(NamedTuple):
    """The two parts of the loss of each image, (B,)."""

    cross_entropy: Tensor
    dice_loss: Tensor


class CrossEntropyAndDice(Objective):
    """CE + w (1 − D) of each image. With p_ck and y_ck the predicted and the true probability of class k at pixel c of
    the N pixels whose class is known, and P the classes k ≥ 1 that the image contains:

        CE = −1/N Σ_c Σ_k y_ck log p_ck
        D = 1/|P| Σ_{k ∈ P} 2 Σ_c p_ck y_ck / Σ_c (p_ck + y_ck);  1 if P is empty

    D leaves out the background, which is most of the image. Each image has its own D, so the loss of an image does not
    depend on the batch or the number of devices.

    Args:
        dice_weight: w ≥ 0.

    Raises:
        ValueError: a value out of range.

    Ref: V-Net, Milletari et al. 2016, §3 (soft Dice); nnU-Net, Isensee et al. 2021, Methods (the sum)
    """

    figures: Sequence[str] = ("loss", "cross_entropy", "dice_loss")
    needs_masks = True

    def __init__(self, dice_weight: float = 1.0) -> None:
        super().__init__()
        if dice_weight < 0:
            raise ValueError(f"objective.dice_weight={dice_weight}: choose a number of at least 0")
        self.dice_weight = dice_weight

    def check(self, model: Segmentation) -> None:
        if not isinstance(model, Segmentation):
            raise ValueError("objective: cross-entropy and Dice need a segmentation model; choose model=segmentation")

    def loss(self, model: Segmentation, batch: Batch, rng: BatchRNG, training: Training) -> Losses:
        found = self._parts(model, batch)
        figures = {name: values.detach() for name, values in found._asdict().items()}
        return Losses(self._total(found), figures=figures)

    def held_out(self, model: Segmentation, batch: Batch, indices: range, seed: int) -> HeldOut:
        found = self._parts(model, batch)
        return HeldOut({"loss": self._total(found), **found._asdict()})

    def _parts(self, model: Segmentation, batch: Batch) -> Parts:
        assert batch.targets is not None
        return parts(model.logits(batch.images), batch.targets)

    def _total(self, found: Parts) -> Tensor:
        return found.cross_entropy + self.dice_weight * found.dice_loss


def parts(logits: Tensor, masks: Tensor) -> Parts:
    """The parts of the loss for logits (B, K, H, W) and masks (B, H, W)."""
    masks, known = masks.long(), (masks != IGNORED)[:, None]  # (B, 1, H, W)
    nats = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="none")  # 0 where ignored
    cross_entropy = nats.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)
    true = F.one_hot(masks.where(known[:, 0], 0), logits.shape[1]).movedim(-1, 1) * known
    predicted = logits.softmax(1) * known
    both, sizes = ((values[:, 1:]).flatten(2).sum(2) for values in (predicted * true, predicted + true))  # (B, K − 1)
    present = true[:, 1:].flatten(2).any(2)
    dice = torch.where(present, 2 * both / sizes.clamp(min=1), 0).sum(1) / present.sum(1).clamp(min=1)
    return Parts(cross_entropy, torch.where(present.any(1), 1 - dice, 0))
