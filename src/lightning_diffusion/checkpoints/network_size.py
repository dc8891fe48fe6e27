"""How large a network may be that a configuration of a few words asks for."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.system.memory import memory

MOST_TENSORS = 20_000  # parameters of one network, each of any size; published ones have at most a few thousand
TOO_LARGE = "asks for a network that is larger than its weights"


def no_larger_than(weights: dict[str, Tensor], complaint: str = TOO_LARGE) -> AbstractContextManager[None]:
    """Within, a network that has more parameters than there are weights is not made to its end.

    A configuration of a few words may ask for a network that fills the memory.
    """
    return _at_most(len(weights), sum(weight.numel() for weight in weights.values()), complaint)


def no_larger_than_memory() -> AbstractContextManager[None]:
    """Within, a network is not made to its end that could not be trained here: weights, averages and gradients in
    float32 would fill the memory, or it has more than MOST_TENSORS parameters."""
    complaint = "backbone: asks for a network that is larger than this machine's memory; choose a smaller one"
    return _at_most(MOST_TENSORS, memory() // (3 * 4), complaint)


@contextlib.contextmanager
def _at_most(tensors: int, numbers: int, complaint: str) -> Iterator[None]:
    """Within, raises ConfigError at the first parameter that exceeds a limit."""

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
