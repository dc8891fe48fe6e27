"""What a checkpoint must hold for a run to be resumed from it, and the averaged weights in it."""

from typing import Any

from torch import Tensor, nn

AVERAGED = "ema.model."


def averaged_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The denoiser's state dict, as the moving average has it."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(AVERAGED): value for name, value in state.items() if name.startswith(AVERAGED)}


def check_resumable(checkpoint: dict[str, Any], module: nn.Module, source: str) -> None:
    """Raises ValueError where a run cannot go on from a checkpoint: for want of a part, or with another network."""
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
