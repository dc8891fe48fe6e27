"""The options of conf/ that belong to diffusion, found in its folders and built, and times of each schedule.

A test that runs over these covers a new option as soon as its yaml is there.
"""

import contextlib
import copy
import functools
import typing
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf

from lightning_diffusion.app.cli import CONF
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.schedule import NoiseSchedule
from tests.test_configs import build, compose

CUSTOM = [round(0.001 * 1.15**i, 6) for i in range(45)]
MISSING = {("schedule", "custom"): {"betas": CUSTOM}}  # values that a yaml leaves to the user


def options(group: str) -> list[str]:
    """The names of a group's options."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@functools.cache
def nodes(group: str) -> dict[str, dict[str, Any]]:
    """The configurations of all options of a group, composed at once."""
    composed = compose(*(f"+{group}@of.{name}={name}" for name in options(group)))
    found = OmegaConf.to_container(composed, resolve=True)["of"]
    return {name: {**node, **MISSING.get((group, name), {})} for name, node in found.items()}


def fresh(group: str, name: str, **changes: object) -> Any:
    """A new object of an option, with some of its keys changed."""
    return build(copy.deepcopy({**nodes(group)[name], **changes}))


option = functools.cache(fresh)


def make(name: str, **changes: object) -> NoiseSchedule:
    """A schedule of conf/schedule."""
    return fresh("schedule", name, **changes)


def choices(name: str) -> dict[str, list[Any]]:
    """The keys of a sampler with a closed choice, and its values: each `order` that it accepts, each of a Literal."""
    node, values = nodes("sampler")[name], {}
    for key, hint in typing.get_type_hints(hydra.utils.get_class(node["_target_"]).__init__).items():
        if typing.get_origin(hint) is typing.Literal:
            values[key] = list(typing.get_args(hint))
    if "order" in node:
        values["order"] = [order for order in range(1, 10) if _accepts_order(name, order)]
    return values


def _accepts_order(name: str, order: int) -> bool:
    with contextlib.suppress(ConfigError):
        fresh("sampler", name, order=order)
        return True
    return False


def sampler_variants() -> dict[str, Sampler]:
    """Every sampler of conf/ as its yaml has it, or, where it has closed choices, with each of their values."""
    variants: dict[str, Sampler] = {}
    for name in options("sampler"):
        closed = [(key, value) for key, values in choices(name).items() for value in values]
        variants |= {f"{name} {key}={value}": fresh("sampler", name, **{key: value}) for key, value in closed}
        if not closed:
            variants[name] = fresh("sampler", name)
    return variants


NAMES = options("schedule")
SCHEDULES = {name: make(name) for name in NAMES}
SCHEDULES["linear_zero"] = make("linear", zero_terminal_snr=True)
SCHEDULES["cosine_zero"] = make("cosine", zero_terminal_snr=True)


def times(schedule: NoiseSchedule, count: int) -> torch.Tensor:
    """Training times from the first to T, float64."""
    t = torch.linspace(schedule.t_min, float(schedule.T), count, dtype=torch.float64)
    return schedule.nearest(t).unique()
