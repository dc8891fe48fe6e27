"""Autoguidance by a model from a file, which only the command line can name."""

from lightning_diffusion.checkpoints.loading import load
from lightning_diffusion.diffusion.denoiser import Denoiser, NetworkDenoiser
from lightning_diffusion.diffusion.guidance import Autoguidance
from lightning_diffusion.models.diffusion.model import DiffusionModel


def load_weak_model(ckpt_path: str, trust: list[str] | None = None) -> NetworkDenoiser:
    """The denoiser that autoguidance leads away from, such as an earlier checkpoint or a smaller network."""
    model = load(ckpt_path, "guidance.weak.ckpt_path", trust or ()).model
    if not isinstance(model, DiffusionModel):
        raise ValueError(f"guidance.weak.ckpt_path={ckpt_path}: not a diffusion model; choose an earlier checkpoint")
    return model.denoiser


def autoguidance(denoiser: Denoiser, weak: Denoiser, scale: float = 2.0) -> Denoiser:
    """`Autoguidance` by a denoiser from a file."""
    return Autoguidance(denoiser, weak, scale)
