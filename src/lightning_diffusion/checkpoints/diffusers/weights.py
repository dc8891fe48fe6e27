"""Converts weights to and from diffusers' names. Only the attention differs: its three tensors are one here."""

import re

import torch
from torch import Tensor

NAMES = (  # a pattern of this project's names -> diffusers' name; all are applied to each name
    (r"^embedding\.mlp\.0\.", "time_embedding.linear_1."),
    (r"^embedding\.mlp\.2\.", "time_embedding.linear_2."),
    (r"^embedding\.classes\.", "class_embedding."),
    (r"^stem\.", "conv_in."),
    (r"^norm\.", "conv_norm_out."),
    (r"^head\.", "conv_out."),
    (r"^(down|up)sample\.(\d+)\.", r"\1_blocks.\2.\1samplers.0."),
    (r"^(down|up)\.(\d+)\.(\d+)\.block\.", r"\1_blocks.\2.resnets.\3."),
    (r"^(down|up)\.(\d+)\.(\d+)\.attention\.", r"\1_blocks.\2.attentions.\3."),
    (r"^middle\.(\d+)\.block\.", r"mid_block.resnets.\1."),
    (r"^middle\.0\.attention\.", "mid_block.attentions.0."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.out\.", r"\1.to_out.0."),
    (r"\.(norm|conv)_([12])\.", r".\1\2."),
    (r"(resnets\.\d+|samplers\.0)\.embedding\.", r"\1.time_emb_proj."),
    (r"\.skip\.", ".conv_shortcut."),
)
CLASSES = "embedding.classes.weight"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LONGEST = 80  # characters of a name in a message
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # in files from before 2023


def theirs(name: str) -> str:
    """diffusers' name of a parameter of the U-Net; for qkv, without the last part."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def to_diffusers(weights: dict[str, Tensor], flipped: bool = False) -> dict[str, Tensor]:
    """This project's state dict -> diffusers'.

    Args:
        flipped: whether the cosines of the time embedding come before the sines.
    """
    result = {}
    for name, value in weights.items():
        if ".qkv." in name:
            stem, kind = theirs(name).split(".qkv.")
            for part, third in zip("qkv", value.chunk(3), strict=True):
                result[f"{stem}.to_{part}.{kind}"] = (
                    third.flatten(1).contiguous() if kind == "weight" else third.clone()
                )
        elif "attention.out.weight" in name:
            result[theirs(name)] = value.flatten(1)  # a 1×1 convolution as a linear map
        else:
            result[theirs(name)] = value
    key = "time_embedding.linear_1.weight"
    result[key] = _flip(result[key]) if flipped else result[key]
    return result


def from_diffusers(weights: dict[str, Tensor], expected: dict[str, Tensor], flipped: bool = False) -> dict[str, Tensor]:
    """diffusers' state dict -> this project's, in float32.

    Args:
        expected: this project's parameters by name; only their shapes count.
        flipped: whether the cosines of the time embedding come before the sines.

    Raises:
        ValueError: a tensor that is missing, unexpected, of another shape or type, or not finite; the message names it.
    """
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise ValueError("expected tensors by name")
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name[:LONGEST]!r} is not a tensor")
    given = {_modern(name): value for name, value in weights.items()}
    if len(given) < len(weights):
        raise ValueError("a tensor of its attention occurs under an old and a new name")
    _check(given, {name: value.shape for name, value in to_diffusers(expected).items()})
    result = {}
    for name, parameter in expected.items():
        if ".qkv." in name:
            stem, kind = theirs(name).split(".qkv.")
            value = torch.cat([given[f"{stem}.to_{part}.{kind}"] for part in "qkv"])
        else:
            value = given[theirs(name)]
        if name == CLASSES and len(value) == len(parameter) - 1:
            value = torch.cat([value, torch.zeros_like(value[:1])])  # a model without "no class"
        result[name] = value.detach().float().reshape(parameter.shape)
    key = "embedding.mlp.0.weight"
    result[key] = _flip(result[key]) if flipped else result[key]
    return result


def _check(given: dict[str, Tensor], shapes: dict[str, torch.Size]) -> None:
    for name in sorted(given.keys() ^ shapes.keys()):
        raise ValueError(f"{name[:LONGEST]!r} is {'unexpected' if name in given else 'missing'}")
    for name, shape in shapes.items():
        value = given[name]
        rows = {shape[0], shape[0] - 1} if name == theirs(CLASSES) else {shape[0]}
        if value.ndim != len(shape) or value.shape[1:] != shape[1:] or len(value) not in rows:
            raise ValueError(f"{name} has the shape {list(value.shape)}, not {list(shape)}")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"{name} is not a dense tensor")
        if value.dtype not in FLOATS:
            raise ValueError(
                f"{name} has the type {value.dtype}; only float16, bfloat16, float32 and float64 can be read"
            )
        if not bool(value.detach().float().isfinite().all()):
            raise ValueError(f"{name} has values that are not finite in float32")


def _modern(name: str) -> str:
    for new, old in OLD.items():
        name = re.sub(rf"(attentions\.\d+)\.{old}\.", rf"\1.{new}.", name)
    return name


def _flip(weight: Tensor) -> Tensor:
    return torch.cat(list(weight.chunk(2, dim=1))[::-1], dim=1)
