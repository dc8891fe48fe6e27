"""The format version of checkpoints and exported files, and the upgrade of earlier versions."""

from typing import Any

from lightning_diffusion.configuration.trusted_targets import TARGET

VERSION = 2
KEY = "format_version"
FORMER = {  # classes and functions, by their names in version 1
    "src.backbones.": "lightning_diffusion.networks.",
    "src.data.": "lightning_diffusion.data.",
    "src.diffusion.": "lightning_diffusion.diffusion.",
    "src.model_file.weaker": "lightning_diffusion.checkpoints.weak_model.load_weak_model",
}
STATE = {"denoiser.": "model.denoiser.", "ema.model.": "ema.model.denoiser."}
IMAGES = {"channels": "in_channels", "image_size": "image_size", "num_classes": "num_classes"}  # model -> network
MODEL = "lightning_diffusion.models.diffusion.model.DiffusionModel"  # the only kind in version 1


def check_version(version: Any, source: str) -> None:
    """Raises ValueError for a later version, or for a value that is not a version."""
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(
            f"{source}: its {KEY} is {ascii(version)[:40]}, and this installation reads 1 to {VERSION}; "
            "install a newer lightning-diffusion"
        )


def upgrade(node: Any, version: int) -> Any:
    """Replaces the class names in a file's configuration by the current ones. All else stays as it is, unchecked."""
    if version == 1:
        pending, seen = [node], set[int]()
        while pending:
            node_at = pending.pop()
            if id(node_at) in seen or not isinstance(node_at, (dict, list)):
                continue
            seen.add(id(node_at))
            if isinstance(node_at, dict) and isinstance(node_at.get(TARGET), str):
                node_at[TARGET] = _current_name(node_at[TARGET])
            pending.extend(node_at.values() if isinstance(node_at, dict) else node_at)
    return node


def upgrade_checkpoint(content: dict[str, Any]) -> None:
    """Upgrades a checkpoint's content in place. Parts that are not as expected stay as they are."""
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


def drawn_images(data: dict[str, Any], condition: Any) -> dict[str, Any]:
    """The options of the data with the channels that the model draws, if its condition decides them.

    Args:
        condition: the node of the model's condition, or None.
    """
    drawn = condition.get("drawn_channels") if isinstance(condition, dict) else None
    return data if drawn is None else data | {"channels": drawn}


def of_denoiser(node: Any, weights: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(node, state dict) of the diffusion model that has this denoiser."""
    backbone = node.get("backbone") if isinstance(node, dict) else None
    images = {ours: backbone.get(theirs) for ours, theirs in IMAGES.items()} if isinstance(backbone, dict) else {}
    model = {TARGET: MODEL, "denoiser": node, **images}
    return model, {f"denoiser.{name}": value for name, value in weights.items()}


def _renamed(name: Any) -> Any:
    former = next((prefix for prefix in STATE if isinstance(name, str) and name.startswith(prefix)), None)
    return name if former is None else STATE[former] + name.removeprefix(former)


def _current_name(name: str) -> str:
    former = next((prefix for prefix in FORMER if name.startswith(prefix)), None)
    return name if former is None else FORMER[former] + name.removeprefix(former)
