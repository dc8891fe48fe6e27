"""A pipeline's folder as diffusers writes it, read and written without that library."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.backbones.unet import UNet
from src.diffusion.denoiser import NetworkDenoiser
from src.exchange.config import backbone_node, process_nodes, scheduler_config, unet_config
from src.exchange.weights import from_diffusers, to_diffusers

WEIGHTS = "diffusion_pytorch_model"
OWN = "lightning_diffusion.json"  # what diffusers has no word for: whether the last class is "no class"
INDEX = {
    "_class_name": "DDPMPipeline",
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(the denoiser's node, its state dict) of a pipeline's folder, or of a UNet2DModel's with scheduler_config.json.

    Raises:
        ValueError: files that are missing or damaged, or a network or scheduler that this project cannot express.
    """
    unet, scheduler = (folder / name if (folder / name).is_dir() else folder for name in ("unet", "scheduler"))
    config = _json(unet / "config.json")
    own = _json(folder / OWN) if (folder / OWN).exists() else {}
    backbone = backbone_node(config)
    backbone["num_classes"] = own.get("num_classes", backbone["num_classes"])
    shapes = {name: value.shape for name, value in _empty(backbone).state_dict().items()}
    weights = from_diffusers(_load(unet), shapes, flipped=config.get("flip_sin_to_cos", True))
    node = {
        "_target_": "src.diffusion.denoiser.NetworkDenoiser",
        "backbone": backbone,
        **process_nodes(_json(scheduler / "scheduler_config.json")),
        "label_dropout": own.get("label_dropout", 0.0),
    }
    return node, {f"backbone.{name}": value.float() for name, value in weights.items()}


def write(folder: Path, denoiser: NetworkDenoiser, image_size: int, channels: int, label: int | None = None) -> None:
    """Writes a folder that DDPMPipeline.from_pretrained loads.

    Args:
        label: bakes one class into the network, so that a pipeline, which knows no classes, samples it.

    Raises:
        ValueError: what diffusers cannot express; nothing is written.
    """
    network: UNet = denoiser.backbone  # type: ignore[assignment]
    config, scheduler = unet_config(network, image_size, channels), scheduler_config(denoiser)
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    own = {"num_classes": network.num_classes, "label_dropout": denoiser.label_dropout}
    if label is not None:
        classes = weights.pop("embedding.classes.weight")
        weights["embedding.mlp.2.bias"] = weights["embedding.mlp.2.bias"] + classes[label]
        config["num_class_embeds"], own = None, {"num_classes": None, "label_dropout": 0.0}
    contents = {
        "model_index.json": INDEX,
        "unet/config.json": config,
        "scheduler/scheduler_config.json": scheduler,
        OWN: own,
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    save_file(to_diffusers(weights), folder / "unet" / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})


def _empty(backbone: dict[str, Any]) -> UNet:
    with torch.device("meta"):
        return UNet(**{key: value for key, value in backbone.items() if key != "_target_"})


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return dict(content)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"pretrained={path}: not a readable JSON file ({type(error).__name__})") from error


def _load(folder: Path) -> dict[str, Tensor]:
    safe, pickled = folder / f"{WEIGHTS}.safetensors", folder / f"{WEIGHTS}.bin"
    try:
        if safe.exists():
            return load_file(safe)
        weights: dict[str, Tensor] = torch.load(pickled, map_location="cpu", weights_only=True)
        return weights
    except FileNotFoundError as error:
        raise ValueError(f"pretrained={folder}: neither {safe.name} nor {pickled.name} is there") from error
    except Exception as error:
        raise ValueError(f"pretrained={folder}: weights that cannot be read ({type(error).__name__})") from error
