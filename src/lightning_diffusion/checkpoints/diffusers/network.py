"""Converts between diffusers' UNet2DModel and this project's U-Net."""

from typing import Any

from lightning_diffusion.checkpoints.diffusers.settings import Part, Settings
from lightning_diffusion.codecs.image_size import ImageSize, height_width, simplest, typed
from lightning_diffusion.networks.unet import UNet
from lightning_diffusion.networks.unet_blocks import SelfAttention

CLASS = "UNet2DModel"
ONLY: dict[str, Any] = {  # options of UNet2DModel of which this project's U-Net has the default only
    "center_input_sample": False, "time_embedding_type": "positional", "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1, "act_fn": "silu", "add_attention": True, "class_embed_type": None,
}  # fmt: skip
READ: dict[str, Any] = {  # options of both networks, with UNet2DModel's defaults
    "sample_size": None, "in_channels": 3, "out_channels": 3, "time_embedding_dim": None, "freq_shift": 0,
    "flip_sin_to_cos": True, "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
    "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0,
    "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "num_class_embeds": None,
}  # fmt: skip
IGNORED = {  # options of a time embedding that ONLY excludes, and of the library's moving average
    "num_train_timesteps", "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup",
    "inv_gamma", "power",
}  # fmt: skip
WIDEST, DEEPEST, LARGEST, MOST_LAYERS, MOST_CLASSES = 2**14, 12, 2**13, 32, 2**20  # bounds of every loop and tensor


def read_network(config: Settings) -> Part:
    """The U-Net that unet/config.json describes.

    Raises:
        ValueError: a network that this project's U-Net cannot express, naming the setting.
    """
    config.among({*ONLY, *READ, *IGNORED})
    config = config.with_defaults(ONLY | READ)
    for key, value in ONLY.items():
        config.only(key, value)
    widths = _read_widths(config)
    width, levels = widths[0], len(widths)
    residual, attends = _read_blocks(config, levels)
    image_size, channels = _read_size(config, levels), config.integer("in_channels", 1, WIDEST)
    longer = max(height_width(image_size))
    outputs = config.integer("out_channels", 1, 2 * WIDEST)
    config.need(outputs in (channels, 2 * channels), "out_channels", f"expected {channels} or {2 * channels}")
    scale_shift = config.word("resnet_time_scale_shift", ("default", "scale_shift")) == "scale_shift"
    groups = _read_groups(config, width, scale_shift)
    padding = config.integer("downsample_padding", 0, 1)
    options = {
        "image_size": image_size,
        "in_channels": channels,
        "channels": width,
        "channel_mults": [each // width for each in widths],
        "num_blocks": config.integer("layers_per_block", 1, MOST_LAYERS),
        "attention_resolutions": [longer // 2**level for level in range(levels) if attends[level]],
        "head_dim": _read_head_dim(config, widths, attends),
        "dropout": config.number("dropout", 0, 0.999),
        "num_classes": config.optional_integer("num_class_embeds", 1, MOST_CLASSES),
        "outputs": outputs // channels,
        "scale_shift": scale_shift,
        "resampling": "residual" if residual else ("conv", "symmetric_conv")[padding],
        "norm_groups": groups,
        "norm_eps": config.number("norm_eps", 1e-12, 1),
        "frequency_shift": config.integer("freq_shift", 0, 1),
    }
    return Part(UNet, options)


def cosines_first(config: Settings) -> bool:
    """Whether the cosines of the time embedding come before the sines."""
    return config.with_defaults(READ).flag("flip_sin_to_cos")


def unet_config(network: UNet, image_size: ImageSize, in_channels: int) -> dict[str, Any]:
    """The content of unet/config.json for a U-Net.

    Raises:
        ValueError: another kind of network, or heads or an image size that diffusers cannot express.
    """
    _check_expressible(network, image_size)
    attentions = [module for module in network.modules() if isinstance(module, SelfAttention)]
    head_dims = {module.qkv.in_channels // module.num_heads for module in attentions}
    if len(head_dims) > 1 and {module.num_heads for module in attentions} != {1}:
        raise ValueError(
            "format=diffusers: the heads differ in width; choose format=safetensors, or train with backbone.head_dim"
        )
    head_dim = head_dims.pop() if len(head_dims) == 1 else None  # None means one head, as wide as its level
    down: Any = network.down
    attends = [isinstance(stages[0].attention, SelfAttention) for stages in down]
    norm, residual = network.norm, network.resampling == "residual"
    return {
        "_class_name": CLASS,
        "sample_size": simplest(image_size),
        "in_channels": in_channels,
        "out_channels": network.outputs * in_channels,
        "freq_shift": network.embedding.frequency_shift,
        "flip_sin_to_cos": False,
        "down_block_types": _kinds("Down", attends, residual),
        "up_block_types": _kinds("Up", attends[::-1], residual),
        "block_out_channels": [stages[0].block.conv_1.out_channels for stages in down],
        "layers_per_block": len(down[0]),
        "downsample_padding": 1 if network.resampling == "symmetric_conv" else 0,
        "downsample_type": "resnet" if residual else "conv",
        "upsample_type": "resnet" if residual else "conv",
        "dropout": down[0][0].block.dropout.p,
        "attention_head_dim": head_dim,
        "norm_num_groups": norm.num_groups,
        "attn_norm_num_groups": norm.num_groups if network.scale_shift else None,
        "norm_eps": norm.eps,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "num_class_embeds": None if network.num_classes is None else network.num_classes + 1,
    }


def _read_widths(config: Settings) -> list[int]:
    widths = config.integers("block_out_channels", 4, WIDEST, DEEPEST)
    fits = widths[0] % 2 == 0 and not any(each % widths[0] for each in widths)
    config.need(fits, "block_out_channels", "expected multiples of the first, which is even")
    embedding = 4 * widths[0]
    config.need(config["time_embedding_dim"] in (None, embedding), "time_embedding_dim", f"expected {embedding}")
    return widths


def _read_groups(config: Settings, width: int, scale_shift: bool) -> int:
    groups = config.integer("norm_num_groups", 1, WIDEST)
    config.need(width % groups == 0, "norm_num_groups", f"expected a divisor of {width} channels")
    norms = config["attn_norm_num_groups"]  # with scale_shift, None leaves the middle attention without a norm
    fits = norms == groups or (norms is None and not scale_shift)
    config.need(fits, "attn_norm_num_groups", f"expected {groups} groups, as in norm_num_groups")
    return groups


def _read_head_dim(config: Settings, widths: list[int], attends: list[bool]) -> int | None:
    head_dim = config.optional_integer("attention_head_dim", 1, WIDEST)
    attending = [width for width, attention in zip(widths, attends, strict=True) if attention] + widths[-1:]
    fits = head_dim is None or not any(width % head_dim for width in attending)  # the middle attends too
    config.need(fits, "attention_head_dim", f"expected a divisor of {attending} channels")
    return head_dim


def _read_blocks(config: Settings, levels: int) -> tuple[bool, list[bool]]:
    """(whether residual blocks change the resolution, which levels attend)."""
    residual = config.word("downsample_type", ("conv", "resnet")) == "resnet"
    config.only("upsample_type", config["downsample_type"])
    down, up = config["down_block_types"], config["up_block_types"]
    attends = [kind == "AttnDownBlock2D" for kind in down] if isinstance(down, list) else []
    wanted = _kinds("Down", attends, residual)
    config.need(down == wanted and len(down) == levels, "down_block_types", _expected(levels, "Down", residual))
    wanted = _kinds("Up", attends[::-1], residual)
    config.need(up == wanted, "up_block_types", f"expected {wanted}, as in down_block_types")
    return residual, attends


def _read_size(config: Settings, levels: int) -> ImageSize:
    """sample_size, a side or [H, W]."""
    if isinstance(config["sample_size"], list):
        sides = config.integers("sample_size", 1, LARGEST, 2)
        config.need(len(sides) == 2, "sample_size", "expected one side, or [height, width]")
    else:
        sides = [config.integer("sample_size", 1, LARGEST)] * 2
    strides = 2 ** (levels - 1)
    fits = all(side % strides == 0 and side > strides for side in sides)
    config.need(fits, "sample_size", f"expected a multiple of {strides}, and more than {strides}, for {levels} levels")
    size: ImageSize = simplest(sides)
    return size


def _check_expressible(network: UNet, image_size: ImageSize) -> None:
    if not isinstance(network, UNet):
        raise ValueError(
            f"format=diffusers: diffusers has no network like {type(network).__name__}; only backbone=unet and "
            "backbone=adm can be exported; choose format=safetensors"
        )
    if network.patch_size > 1:
        raise ValueError(
            f"format=diffusers: diffusers' U-Net does not fold pixels (backbone.patch_size={network.patch_size}); "
            "choose format=safetensors"
        )
    strides = 2 ** len(network.downsample)
    if any(side % strides for side in height_width(image_size)):
        raise ValueError(
            f"format=diffusers: data.image_size={typed(image_size)} makes a level halve an odd side, which "
            f"diffusers cannot reverse; choose format=safetensors, or train at a size that {strides} divides"
        )


def _kinds(way: str, attends: list[bool], residual: bool) -> list[str]:
    """The block types of the levels, in the order of the forward pass."""
    return [f"Attn{way}Block2D" if attention else _plain(way, residual) for attention in attends]


def _plain(way: str, residual: bool) -> str:
    return f"Resnet{way}sampleBlock2D" if residual else f"{way}Block2D"


def _expected(levels: int, way: str, residual: bool) -> str:
    return f"expected {levels} of {_plain(way, residual)} and Attn{way}Block2D"
