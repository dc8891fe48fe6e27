"""The version of what a checkpoint and an exported file hold, and how an earlier one is read."""

from typing import Any

from lightning_diffusion.configuration.trusted_targets import TARGET

VERSION = 2
KEY = "format_version"
FORMER = {  # version 1 named classes by these
    "src.backbones.": "lightning_diffusion.networks.",
    "src.data.": "lightning_diffusion.data.",
    "src.diffusion.": "lightning_diffusion.diffusion.",
    "src.model_file.weaker": "lightning_diffusion.checkpoints.weak_model.load_weak_model",
}
STATE = {"denoiser.": "model.denoiser.", "ema.model.": "ema.model.denoiser."}  # of its state dicts
IMAGES = {"channels": "in_channels", "image_size": "image_size", "num_classes": "num_classes"}  # a model's, a network's
MODEL = "lightning_diffusion.models.diffusion.model.DiffusionModel"  # the only kind that there was


def check_version(version: Any, source: str) -> None:
    """Raises ValueError for a file of a later version, or of none."""
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(
            f"{source}: its {KEY} is {ascii(version)[:40]}, and this installation reads 1 to {VERSION}; "
            "install a newer lightning-diffusion"
        )


def upgrade(node: Any, version: int) -> Any:
    """A file's configuration with today's names of classes. What else it holds stays as it is, unchecked."""
    if version == 1:
        waiting, seen = [node], set[int]()
        while waiting:
            node_at = waiting.pop()
            if id(node_at) in seen or not isinstance(node_at, (dict, list)):
                continue
            seen.add(id(node_at))
            if isinstance(node_at, dict) and isinstance(node_at.get(TARGET), str):
                node_at[TARGET] = _today(node_at[TARGET])
            waiting.extend(node_at.values() if isinstance(node_at, dict) else node_at)
    return node


def upgrade_checkpoint(content: dict[str, Any]) -> None:
    """A checkpoint's content as this version has it, in place. What is not as it should be stays as it is."""
    if content.get(KEY, 1) != 1:
        return
    known, state = content.get("hyper_parameters"), content.get("state_dict")
    if isinstance(known, dict) and "denoiser" in known:
        upgrade(known, 1)
        data = known.get("data")
        images = {key: data.get(key) for key in IMAGES} if isinstance(data, dict) else {}
        known["model"] = {TARGET: MODEL, "denoiser": known["denoiser"], **images}
    if isinstance(state, dict):
        renamed = {_renamed(name): value for name, value in state.items()}
        state.clear()
        state.update(renamed)


def of_denoiser(node: Any, weights: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The diffusion model with this denoiser: its node, and its state dict."""
    backbone = node.get("backbone") if isinstance(node, dict) else None
    images = {ours: backbone.get(theirs) for ours, theirs in IMAGES.items()} if isinstance(backbone, dict) else {}
    model = {TARGET: MODEL, "denoiser": node, **images}
    return model, {f"denoiser.{name}": value for name, value in weights.items()}


def _renamed(name: Any) -> Any:
    former = next((prefix for prefix in STATE if isinstance(name, str) and name.startswith(prefix)), None)
    return name if former is None else STATE[former] + name.removeprefix(former)


def _today(name: str) -> str:
    former = next((prefix for prefix in FORMER if name.startswith(prefix)), None)
    return name if former is None else FORMER[former] + name.removeprefix(former)
