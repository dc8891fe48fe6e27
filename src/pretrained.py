"""A trained denoiser from wherever it was kept: pretrained=FOLDER|FILE.safetensors|FILE.ckpt"""

import json
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from src.checkpoint import averaged_weights, check_data, load_denoiser, read_checkpoint
from src.diffusion.denoiser import NetworkDenoiser
from src.exchange import folder
from src.targets import refuse_foreign


def read_pretrained(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(the denoiser's node, its averaged weights) of a diffusers folder, an exported .safetensors file or a checkpoint.

    Raises:
        FileNotFoundError, ValueError: nothing there, or nothing that this project can read; nothing in it is executed.
    """
    where = f"pretrained={path}"
    if Path(path).is_dir():
        node, weights = folder.read(Path(path))
    elif str(path).endswith(".safetensors"):
        node, weights = _read_safetensors(path)
    else:
        checkpoint = read_checkpoint(path, "pretrained")
        node, weights = checkpoint["hyper_parameters"]["denoiser"], averaged_weights(checkpoint)
    refuse_foreign(node, where)
    return node, weights


def load_pretrained(path: str) -> tuple[NetworkDenoiser, dict[str, Any]]:
    """The denoiser in evaluation mode, and what is known of its data and schedule, as `load_denoiser` gives them."""
    node, weights = read_pretrained(path)
    denoiser: NetworkDenoiser = instantiate(node, _convert_="all")
    load_weights(denoiser, weights, path)
    known = {"data": _data(node), "denoiser": node, "schedule": node["schedule"]}
    return denoiser.eval().requires_grad_(False), known


def load_either(plain: dict[str, Any]) -> tuple[NetworkDenoiser, dict[str, Any]]:
    """The denoiser of ckpt_path or of pretrained, whichever is given."""
    given = [key for key in ("ckpt_path", "pretrained") if plain[key] is not None]
    if len(given) != 1:
        told = "give one of the two" if given else "missing; give ckpt_path=… or pretrained=…"
        raise ValueError(f"ckpt_path: {told}")
    return load_denoiser(plain["ckpt_path"]) if given == ["ckpt_path"] else load_pretrained(str(plain["pretrained"]))


def adopt(config: DictConfig) -> dict[str, Tensor]:
    """Puts the network, schedule and prediction of config.pretrained into a training configuration -> its weights.

    Raises:
        ValueError: data of another shape or with other classes.
    """
    node, weights = read_pretrained(str(config.pretrained))
    check_data(config.data, _data(node))
    with open_dict(config):
        for key in ("backbone", "schedule", "parameterization"):
            config[key] = node[key]
    return weights


def load_weights(denoiser: NetworkDenoiser, weights: dict[str, Tensor], path: str) -> None:
    """Raises ValueError where they do not fit."""
    try:
        denoiser.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"pretrained={path}: its weights do not fit the network of its own configuration") from error


def write_safetensors(path: Path, denoiser: NetworkDenoiser, node: dict[str, Any]) -> None:
    """The weights, and the denoiser's node as JSON in the file's header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()}
    save_file(weights, path, metadata={"denoiser": json.dumps(node)})


def _data(node: dict[str, Any]) -> dict[str, Any]:
    """What the data must be like for a denoiser's network."""
    backbone = node["backbone"]
    keys = {"channels": "in_channels", "image_size": "image_size", "num_classes": "num_classes"}
    return {key: backbone.get(name) for key, name in keys.items()}


def _read_safetensors(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"pretrained={path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            node = json.loads(file.metadata()["denoiser"])
            return node, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"pretrained={path}: not a file of src.export ({type(error).__name__})") from error
