"""The averaged weights of a checkpoint, and the parts that a run needs to resume from it."""

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

AVERAGED = "ema.model."
ONLY_IN_SOME = {"decoupled_weight_decay"}  # torch 2.6 does not save it; later versions restore AdamW's own value


def averaged_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of the averaged model."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(AVERAGED): value for name, value in state.items() if name.startswith(AVERAGED)}


def check_resumable(checkpoint: dict[str, Any], module: nn.Module, optimizer: Optimizer, source: str) -> None:
    """Raises ValueError if a run cannot resume from the checkpoint: a part is missing or belongs to another network or
    optimizer."""
    for part, what in (
        ("optimizer_states", "optimizer state"),
        ("lr_schedulers", "learning-rate schedule"),
        ("loops", "progress"),
    ):
        if not checkpoint.get(part):
            raise ValueError(f"{source}: it has no {what}; fine-tune its weights with pretrained=… instead")
    found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    needed = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if not any(name.startswith(AVERAGED) for name in found):
        raise ValueError(f"{source}: it has no averaged weights; choose a checkpoint that this project has saved")
    for name in sorted(name for name in found.keys() | needed.keys() if found.get(name) != needed.get(name)):
        raise ValueError(
            f"{source}: {name} is {found.get(name, 'missing')} there and {needed.get(name, 'missing')} in this "
            "configuration; choose the run's own backbone and objective, or continue the run with resume=RUN_DIR"
        )
    if _groups(checkpoint["optimizer_states"][0]) != _groups(optimizer.state_dict()):
        raise ValueError(
            f"{source}: it was saved with another optimizer; choose that one, or continue the run with resume=RUN_DIR"
        )


def _groups(state: Any) -> Any:
    """The structure of an optimizer's state: the names of each group's options, and its number of parameters."""
    try:
        return [(sorted(group.keys() - ONLY_IN_SOME), len(group["params"])) for group in state["param_groups"]]
    except (AttributeError, KeyError, TypeError):
        return None
