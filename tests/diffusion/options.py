"""Every schedule, as the yaml files build it, and times of each."""

import torch
from omegaconf import OmegaConf

from lightning_diffusion.diffusion.schedule import NoiseSchedule
from tests.test_configs import build, compose

NAMES = [
    "linear", "quadratic", "scaled_linear", "sigmoid", "constant", "jsd", "cosine", "custom",
    "vp", "sub_vp", "ve", "edm", "flow", "shifted_cosine",
]  # fmt: skip


CUSTOM = [round(0.001 * 1.15**i, 6) for i in range(45)]


COMPOSED = compose(*(f"+schedule@of.{name}={name}" for name in NAMES), f"of.custom.betas={CUSTOM}")  # all at once
NODES = OmegaConf.to_container(COMPOSED.of, resolve=True)


def make(name: str, **changes: object) -> NoiseSchedule:
    """A schedule of conf/schedule."""
    return build({**NODES[name], **changes})


SCHEDULES = {name: make(name) for name in NAMES}
SCHEDULES["linear_zero"] = make("linear", zero_terminal_snr=True)
SCHEDULES["cosine_zero"] = make("cosine", zero_terminal_snr=True)


def times(schedule: NoiseSchedule, count: int) -> torch.Tensor:
    """Training times from the first to T, float64."""
    t = torch.linspace(schedule.t_min, float(schedule.T), count, dtype=torch.float64)
    return schedule.nearest(t).unique()
