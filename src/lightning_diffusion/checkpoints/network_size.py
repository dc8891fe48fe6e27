"""Limits on the size of the network that a short configuration can request."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.system.memory import memory

MOST_TENSORS = 20_000  # parameter tensors of one network; published networks have at most a few thousand
TOO_LARGE = "describes a network that is larger than its weights"


def no_larger_than(weights: dict[str, Tensor], complaint: str = TOO_LARGE) -> AbstractContextManager[None]:
    """Stops the construction of a network inside the context once it has more parameters than there are weights.

    Otherwise a configuration of a few words could fill the memory.
    """
    return _at_most(len(weights), sum(weight.numel() for weight in weights.values()), complaint)


def no_larger_than_memory() -> AbstractContextManager[None]:
    """Stops the construction of a network inside the context if it could not be trained here.

    Its weights, averages and gradients in float32 would fill the memory, or it has more than MOST_TENSORS tensors.
    """
    complaint = "backbone: this network does not fit into this machine's memory; choose a smaller one"
    return _at_most(MOST_TENSORS, memory() // (3 * 4), complaint)


@contextlib.contextmanager
def _at_most(tensors: int, numbers: int, complaint: str) -> Iterator[None]:
    """Raises ConfigError inside the context at the first parameter that exceeds a limit."""

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, numbers
        if parameter is not None:
            tensors, numbers = tensors - 1, numbers - parameter.numel()
            if tensors < 0 or numbers < 0:
                raise ConfigError(complaint)

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
