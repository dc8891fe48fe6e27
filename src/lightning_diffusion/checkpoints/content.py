"""What a checkpoint must hold for a run to be resumed from it, and the averaged weights in it."""

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

AVERAGED = "ema.model."


def averaged_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The model's state dict, as the moving average has it."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(AVERAGED): value for name, value in state.items() if name.startswith(AVERAGED)}


def check_resumable(checkpoint: dict[str, Any], module: nn.Module, optimizer: Optimizer, source: str) -> None:
    """Raises ValueError where a run cannot be resumed from a checkpoint: it lacks a part, or has another network's or
    another optimizer's."""
    for part, what in (
        ("optimizer_states", "optimizer state"),
        ("lr_schedulers", "learning-rate schedule"),
        ("loops", "progress"),
    ):
        if not checkpoint.get(part):
            raise ValueError(f"{source}: it holds no {what}; train its weights further with pretrained=… in its place")
    have = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    need = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if not any(name.startswith(AVERAGED) for name in have):
        raise ValueError(f"{source}: it holds no averaged weights; take a checkpoint that this project has saved")
    for name in sorted(have.keys() ^ need.keys() | {n for n in have.keys() & need.keys() if have[n] != need[n]}):
        raise ValueError(
            f"{source}: {name} is {have.get(name, 'missing')} there and {need.get(name, 'missing')} in this "
            "configuration; give the run's own backbone and objective, or resume=RUN_DIR, which does"
        )
    if _groups(checkpoint["optimizer_states"][0]) != _groups(optimizer.state_dict()):
        raise ValueError(f"{source}: another optimizer has saved it; give the run's own, or resume=RUN_DIR, which does")


def _groups(state: Any) -> Any:
    """What an optimizer's state consists of: each group's options by name, and its number of parameters."""
    try:
        return [(sorted(group), len(group["params"])) for group in state["param_groups"]]
    except (KeyError, TypeError):
        return None
