"""The likelihood of images under a model, in bits per dimension."""

from typing import Any

import torch
from torch import Tensor

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.models.contracts import Likelihood as Measurable
from lightning_diffusion.models.contracts import OnStep, no_report


class Likelihood:
    """Measures images by a model's own likelihood.

    Args:
        options: of the likelihood of the model's family; None leaves an option at its default.
    """

    def __init__(self, **options: Any) -> None:
        self.options = {name: value for name, value in options.items() if value is not None}

    def check(self, model: object) -> Measurable:
        """The model, if it has a likelihood with these options. Raises ValueError otherwise."""
        if not isinstance(model, Measurable):
            raise ValueError("metrics=likelihood: this model has no likelihood; choose other metrics")
        model.check_likelihood(**self.options)
        return model

    def steps(self, model: Measurable) -> int:
        """The number of calls of `on_step` for a batch."""
        return model.likelihood_steps(**self.options)

    @torch.no_grad()
    def __call__(
        self,
        model: Measurable,
        images: Tensor,
        condition: Condition | None,
        start: int,
        seed: int,
        on_step: OnStep = no_report,
    ) -> dict[str, Tensor]:
        """Bits per dimension of each image, by name.

        Args:
            images: uint8 (B, C, H, W), numbers start … start + B − 1 of the data; condition of length B or None.
            on_step: called `steps` times.
        """
        indices = range(start, start + len(images))
        return model.likelihoods(images, condition, indices, seed, on_step, **self.options)
