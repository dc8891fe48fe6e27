"""Cross-entropy and soft Dice as a loss, and the errors of the instances' centres and offsets."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_diffusion.codecs.masks import IGNORED
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.models.contracts import HeldOut, Losses, Objective, Training
from lightning_diffusion.models.segmentation.instances import centres_of
from lightning_diffusion.models.segmentation.model import Segmentation

FIGURES: Final = ("loss", "cross_entropy", "dice_loss")


class Parts(NamedTuple):
    """The two parts of the loss of each image, (B,)."""

    cross_entropy: Tensor
    dice_loss: Tensor


class InstanceParts(NamedTuple):
    """The two parts of the loss that a model with instances adds, (B,)."""

    centre_loss: Tensor
    offset_loss: Tensor


class CrossEntropyAndDice(Objective):
    """CE + w (1 − D) of each image. With p_ck and y_ck the predicted and the true probability of class k at pixel c of
    the N pixels whose class is known, and P the classes k ≥ 1 that the image contains:

        CE = −1/N Σ_c Σ_k y_ck log p_ck
        D = 1/|P| Σ_{k ∈ P} 2 Σ_c p_ck y_ck / Σ_c (p_ck + y_ck);  1 if P is empty

    D leaves out the background, which is most of the image. Each image has its own D, so the loss of an image does not
    depend on the batch or the number of devices.

    If the model has instances, the loss of an image also has the mean squared error of the heat map over the N pixels,
    and the mean absolute error of both offsets over the pixels of instances, with their weights.

    Args:
        dice_weight: w ≥ 0.
        centre_weight: of the heat map's error, ≥ 0.
        offset_weight: of the offsets' error, ≥ 0.

    Raises:
        ValueError: a value out of range.

    Ref: V-Net, Milletari et al. 2016, §3 (soft Dice); nnU-Net, Isensee et al. 2021, Methods (the sum);
    Panoptic-DeepLab, Cheng et al. 2020, Eq. 1 (instances)
    """

    figures: Sequence[str] = FIGURES
    needs_masks = True

    def __init__(self, dice_weight: float = 1.0, centre_weight: float = 10.0, offset_weight: float = 0.1) -> None:
        super().__init__()
        self.weights = {"dice": dice_weight, "centre": centre_weight, "offset": offset_weight}
        for name, weight in self.weights.items():
            if weight < 0:
                raise ValueError(f"objective.{name}_weight={weight}: choose a number of at least 0")

    def check(self, model: Segmentation) -> None:
        if not isinstance(model, Segmentation):
            raise ValueError("objective: cross-entropy and Dice need a segmentation model; choose model=segmentation")
        self.figures = (*FIGURES, *(InstanceParts._fields if model.has_instances else ()))

    def loss(self, model: Segmentation, batch: Batch, rng: BatchRNG, training: Training) -> Losses:
        found = self._parts(model, batch)
        figures = {name: values.detach() for name, values in found.items()}
        return Losses(self._total(found), figures=figures)

    def held_out(self, model: Segmentation, batch: Batch, indices: range, seed: int) -> HeldOut:
        found = self._parts(model, batch)
        return HeldOut({"loss": self._total(found), **found})

    def _parts(self, model: Segmentation, batch: Batch) -> dict[str, Tensor]:
        assert batch.targets is not None
        outputs = model.outputs(batch.images)
        found = parts(outputs.logits, batch.targets)._asdict()
        if model.has_instances:
            assert batch.instances is not None
            found |= instance_parts(outputs.heat, outputs.offsets, batch.instances, batch.targets)._asdict()
        return found

    def _total(self, found: dict[str, Tensor]) -> Tensor:
        weighted = (weight * found[f"{name}_loss"] for name, weight in self.weights.items() if f"{name}_loss" in found)
        return sum(weighted, found["cross_entropy"])


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


def instance_parts(heat: Tensor, offsets: Tensor, instances: Tensor, masks: Tensor) -> InstanceParts:
    """The parts of the loss for a heat map (B, 1, H, W), offsets (B, 2, H, W), and instances and masks (B, H, W)."""
    true, known = centres_of(instances), (masks != IGNORED)[:, None]
    squared, has = (heat - true.heat).square() * known, true.has & known
    absolute = (offsets - true.offsets).abs() * has
    mean_squared, mean_absolute = (
        error.flatten(1).sum(1) / where.flatten(1).sum(1).clamp(min=1) / error.shape[1]
        for error, where in ((squared, known), (absolute, has))
    )
    return InstanceParts(mean_squared, mean_absolute)
