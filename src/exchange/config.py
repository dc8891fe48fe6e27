"""Settings of diffusers' UNet2DModel and its schedulers <-> this project's configuration."""

from typing import Any

from src.backbones.layers import SelfAttention
from src.backbones.unet import UNet
from src.diffusion.denoiser import NetworkDenoiser
from src.diffusion.schedule import DiscreteSchedule

BETA, PARAMETERIZATION = "src.diffusion.beta.", "src.diffusion.parameterization."
PREDICTIONS = {"epsilon": "Eps", "sample": "X0", "v_prediction": "V"}
SCHEDULES = {"linear": "linear", "scaled_linear": "quadratic", "sigmoid": "sigmoid"}
NEUTRAL: dict[str, Any] = {  # settings that UNet2DModel offers, and this project's U-Net has in one form alone
    "center_input_sample": False, "time_embedding_type": "positional", "time_embedding_dim": None,
    "mid_block_type": "UNetMidBlock2D", "mid_block_scale_factor": 1, "act_fn": "silu", "add_attention": True,
    "class_embed_type": None,
}  # fmt: skip
DEFAULTS: dict[str, Any] = {  # UNet2DModel's own, for a config.json that leaves them out
    "freq_shift": 0, "flip_sin_to_cos": True, "layers_per_block": 2, "downsample_padding": 1, "downsample_type": "conv",
    "upsample_type": "conv", "dropout": 0.0, "attention_head_dim": 8, "norm_num_groups": 32, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "num_class_embeds": None, "attn_norm_num_groups": None,
}  # fmt: skip


def backbone_node(config: dict[str, Any]) -> dict[str, Any]:
    """The U-Net's node from unet/config.json.

    Raises:
        ValueError: a network that this project's U-Net cannot express, naming the setting.
    """
    config = DEFAULTS | config
    scale_shift = config["resnet_time_scale_shift"] == "scale_shift"
    groups, residual = config["norm_num_groups"], config["downsample_type"] == "resnet"
    for key, value in NEUTRAL.items():
        _need(config.get(key, value) == value, key, config.get(key))
    norms = config["attn_norm_num_groups"]  # None leaves the middle's attention without one, where scale_shift
    _need(norms == groups or (norms is None and not scale_shift), "attn_norm_num_groups", norms)
    _need(residual == (config["upsample_type"] == "resnet"), "upsample_type", config["upsample_type"])
    widths, side, kinds = list(config["block_out_channels"]), config["sample_size"], list(config["down_block_types"])
    attends = [kind.startswith("Attn") for kind in kinds]
    _need(kinds == _kinds("Down", attends, residual), "down_block_types", kinds)
    up = list(config["up_block_types"])
    _need(up == _kinds("Up", attends[::-1], residual), "up_block_types", up)
    _need(not any(width % widths[0] for width in widths), "block_out_channels", widths)
    _need(isinstance(side, int), "sample_size", side)
    _need(config["out_channels"] in (config["in_channels"], 2 * config["in_channels"]), "out_channels", "")
    _need(config["downsample_padding"] in (0, 1), "downsample_padding", config["downsample_padding"])
    sides = [-(-side // 2**level) for level in range(len(widths))]
    return {
        "_target_": "src.backbones.unet.UNet",
        "image_size": side,
        "in_channels": config["in_channels"],
        "channels": widths[0],
        "channel_mults": [width // widths[0] for width in widths],
        "num_blocks": config["layers_per_block"],
        "attention_resolutions": [n for n, attention in zip(sides, attends, strict=True) if attention],
        "head_dim": config["attention_head_dim"],
        "dropout": config["dropout"],
        "num_classes": config["num_class_embeds"],
        "outputs": config["out_channels"] // config["in_channels"],
        "scale_shift": scale_shift,
        "resampling": "residual" if residual else ("conv", "symmetric_conv")[config["downsample_padding"]],
        "norm_groups": groups,
        "norm_eps": config["norm_eps"],
        "frequency_shift": int(config["freq_shift"]),
    }


def unet_config(network: UNet, image_size: int, in_channels: int) -> dict[str, Any]:
    """unet/config.json of a U-Net.

    Raises:
        ValueError: another network, or one whose heads or image size diffusers cannot express.
    """
    if not isinstance(network, UNet):
        raise ValueError(
            f"format=diffusers: diffusers has no network like {type(network).__name__}; only backbone=unet and "
            "backbone=adm can be exported so, or choose format=safetensors"
        )
    if network.patch_size > 1:
        raise ValueError(
            f"format=diffusers: diffusers' U-Net does not fold pixels (backbone.patch_size={network.patch_size}); "
            "choose format=safetensors"
        )
    strides = 2 ** len(network.downsample)
    if image_size % strides:
        raise ValueError(
            f"format=diffusers: with data.image_size={image_size} an odd side is halved, which diffusers cannot undo; "
            f"sizes that {strides} divides can be exported"
        )
    attentions = [module for module in network.modules() if isinstance(module, SelfAttention)]
    head_dims = {module.qkv.in_channels // module.num_heads for module in attentions}
    if len(head_dims) > 1 and {module.num_heads for module in attentions} != {1}:
        raise ValueError("format=diffusers: its heads differ in width; train with backbone.head_dim, not num_heads")
    down: Any = network.down
    attends = [isinstance(stages[0].attention, SelfAttention) for stages in down]
    widths = [stages[0].block.conv_1.out_channels for stages in down]
    norm, residual = network.norm, network.resampling == "residual"
    return {
        "_class_name": "UNet2DModel",
        "sample_size": image_size,
        "in_channels": in_channels,
        "out_channels": network.outputs * in_channels,
        "freq_shift": network.embedding.frequency_shift,
        "flip_sin_to_cos": False,
        "down_block_types": _kinds("Down", attends, residual),
        "up_block_types": _kinds("Up", attends[::-1], residual),
        "block_out_channels": widths,
        "layers_per_block": len(down[0]),
        "downsample_padding": 1 if network.resampling == "symmetric_conv" else 0,
        "downsample_type": "resnet" if residual else "conv",
        "upsample_type": "resnet" if residual else "conv",
        "dropout": down[0][0].block.dropout.p,
        "attention_head_dim": head_dims.pop()
        if len(head_dims) == 1
        else None,  # None is one head, as wide as its level
        "norm_num_groups": norm.num_groups,
        "attn_norm_num_groups": norm.num_groups if network.scale_shift else None,
        "norm_eps": norm.eps,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "num_class_embeds": None if network.num_classes is None else network.num_classes + 1,
    }


def process_nodes(config: dict[str, Any]) -> dict[str, Any]:
    """The schedule's and the parameterization's node from scheduler_config.json.

    Raises:
        ValueError: a scheduler that this project cannot express, naming the setting.
    """
    T, kind = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    prediction, betas = config.get("prediction_type", "epsilon"), config.get("trained_betas")
    _need(prediction in PREDICTIONS, "prediction_type", prediction)
    _need(T == 1000, "num_train_timesteps", T)
    if betas is not None:
        schedule = {"_target_": BETA + "custom", "betas": betas}
    elif kind == "squaredcos_cap_v2":
        schedule = {"_target_": BETA + "cosine", "T": T}
    else:
        _need(kind in SCHEDULES, "beta_schedule", kind)
        ends = {"beta_1": config.get("beta_start", 1e-4), "beta_T": config.get("beta_end", 0.02)}
        schedule = {"_target_": BETA + SCHEDULES[kind], "T": T, **ends}
    schedule["zero_terminal_snr"] = config.get("rescale_betas_zero_snr", False)
    return {"schedule": schedule, "parameterization": {"_target_": PARAMETERIZATION + PREDICTIONS[prediction]}}


def scheduler_config(denoiser: NetworkDenoiser) -> dict[str, Any]:
    """scheduler_config.json, with β as numbers.

    Raises:
        ValueError: a schedule without 1000 steps, or a prediction that diffusers does not know.
    """
    schedule, name = denoiser.schedule, type(denoiser.parameterization).__name__
    kinds = {ours: kind for kind, ours in PREDICTIONS.items()}
    if not isinstance(schedule, DiscreteSchedule) or schedule.T != 1000:
        raise ValueError("format=diffusers: diffusers' clock has steps 0 … 999; only schedules with T = 1000 fit it")
    if name not in kinds:
        raise ValueError(f"format=diffusers: diffusers has no prediction like {name}; eps, x0 and v can be exported")
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "trained_betas": schedule.betas.tolist(),
        "prediction_type": kinds[name],
        "variance_type": "learned_range" if denoiser.learns_variance else "fixed_small",
        "clip_sample": True,
        "timestep_spacing": "trailing",
    }


def _kinds(way: str, attends: list[bool], residual: bool) -> list[str]:
    """Block types of the levels, in the order in which they are passed."""
    plain = f"Resnet{way}sampleBlock2D" if residual else f"{way}Block2D"
    return [f"Attn{way}Block2D" if attention else plain for attention in attends]


def _need(holds: bool, key: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"pretrained: this project's U-Net and schedules have no {key}={value!r}")
