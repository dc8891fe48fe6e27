"""Weights by the names that diffusers gives them: the same tensors, but for the attention's three in one."""

import re

import torch
from torch import Tensor

NAMES = (  # this project's, as a pattern -> diffusers'; each name passes through all of them
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
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # of files from before 2023


def theirs(name: str) -> str:
    """diffusers' name of one of the U-Net's parameters (of qkv without its last part)."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def to_diffusers(weights: dict[str, Tensor], flipped: bool = False) -> dict[str, Tensor]:
    """This project's state dict -> diffusers'.

    Args:
        flipped: the time's cosines come before its sines.
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


def from_diffusers(
    weights: dict[str, Tensor], shapes: dict[str, torch.Size], flipped: bool = False
) -> dict[str, Tensor]:
    """diffusers' state dict -> this project's.

    Args:
        shapes: of this project's parameters, by name.
        flipped: the time's cosines come before its sines.

    Raises:
        ValueError: weights that are missing, too many, or of another shape.
    """
    left = {_modern(name): value for name, value in weights.items()}
    result = {}
    try:
        for name, shape in shapes.items():
            if ".qkv." in name:
                stem, kind = theirs(name).split(".qkv.")
                value = torch.cat([left.pop(f"{stem}.to_{part}.{kind}") for part in "qkv"])
            else:
                value = left.pop(theirs(name))
            if name == "embedding.classes.weight" and len(value) == shape[0] - 1:
                value = torch.cat([value, torch.zeros_like(value[:1])])  # a model that knows no "no class"
            result[name] = value.reshape(shape)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"pretrained: its weights do not fit its config.json ({error})") from error
    if left:
        raise ValueError(f"pretrained: its weights do not fit its config.json ({sorted(left)[0]} is one too many)")
    key = "embedding.mlp.0.weight"
    result[key] = _flip(result[key]) if flipped else result[key]
    return result


def _modern(name: str) -> str:
    for new, old in OLD.items():
        name = re.sub(rf"(attentions\.\d+)\.{old}\.", rf"\1.{new}.", name)
    return name


def _flip(weight: Tensor) -> Tensor:
    return torch.cat(list(weight.chunk(2, dim=1))[::-1], dim=1)
