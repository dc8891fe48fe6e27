"""Classes that are left out in training, so that one model learns images with and without them."""

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.diffusion.noise import BatchRNG


class LabelDropout:
    """Replaces the condition of a share of the images by "none".

    Args:
        share: in [0, 1).

    Raises:
        ValueError: a share out of range.
    """

    def __init__(self, share: float) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"objective.label_dropout={share}: choose a share in [0, 1)")
        self.share = share

    def __call__(self, condition: Condition | None, num_classes: int | None, rng: BatchRNG) -> Condition | None:
        """condition: of length B, or None."""
        if condition is None or self.share == 0:
            return condition
        return condition.dropped(rng.uniform(len(condition)) < self.share, condition.none(num_classes))
