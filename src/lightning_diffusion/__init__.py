"""Train, sample and measure diffusion and other generative models of images.

The names below come from `lightning_diffusion.api`. The first use of one imports that module, and with it torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_diffusion.api import ConfigError, LoadedModel, TrainingRun, load, train

__all__ = ["ConfigError", "LoadedModel", "TrainingRun", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("lightning_diffusion.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
