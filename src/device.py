"""Where a program computes."""

import torch

from src.config import Mistake


def usable(name: str) -> torch.device:
    """The device of that name; auto takes a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise Mistake(f"device={name}: not usable here ({str(error).splitlines()[0]}); choose auto or cpu") from error
