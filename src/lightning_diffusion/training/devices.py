"""Devices and precisions: checks of the options, and models prepared for inference."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch

from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.models.contracts import GRAPHS, Compile, Model

COUNTS = ("max_steps", "log_every_n_steps", "accumulate_grad_batches")
REPLACED = {"overfit_batches": "debug=overfit", "fast_dev_run": "debug=fast", "barebones": "debug=profile"}
CHECKED = (
    "accelerator",
    "precision",
    "devices",
    "val_check_interval",
    "limit_val_batches",
    "gradient_clip_val",
    *COUNTS,
)
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")
DRAWN_IN = ("32-true", "bf16-mixed")
COMPILED = (True, False, GRAPHS)
GPUS = ("gpu", "cuda")


def usable(name: str) -> torch.device:
    """The device of that name; auto is a GPU if there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={name}: not usable here ({str(error).splitlines()[0]}); choose auto or cpu"
        ) from error


M = TypeVar("M", bound=Model)


def prepare_for_inference(model: M, device: torch.device, precision: object, compiled: object) -> M:
    """Moves a model to a device and sets its network's precision, memory layout and compilation.

    bf16-mixed computes only the network in bfloat16. In float32 on a CPU, the network uses channels_last, which is
    faster there (`python -m benchmarks.sampling`).

    Raises:
        ConfigError: an unknown precision or way to compile.
    """
    if precision not in DRAWN_IN:
        raise ConfigError(f"precision={precision}: choose {' or '.join(DRAWN_IN)}")
    if compiled not in COMPILED:
        raise ConfigError(f"compile={compiled}: choose true, false or {GRAPHS}")
    network = model.to(device).network
    if precision == "bf16-mixed":
        network.forward = torch.autocast(device.type, torch.bfloat16)(network.forward)
    elif device.type == "cpu":
        network.to(memory_format=torch.channels_last)
    model.compile_network(cast(Compile, compiled))
    return model


def check_trainer(options: Mapping[str, Any]) -> str:
    """The device type that a trainer's options select: cuda, mps or cpu.

    Raises:
        ConfigError: an option is missing or out of range, or this machine lacks the accelerator or the devices.
    """
    for key in CHECKED:
        if key not in options:
            raise ConfigError(f"trainer.{key}: missing; leave it in, or give another value")
    accelerator, precision = options["accelerator"], options["precision"]
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    best = next(kind for kind, there in here.items() if there)
    kind = {"auto": best, "gpu": best if best != "cpu" else "cuda"}.get(accelerator, accelerator)
    if kind not in here:
        raise ConfigError(f"trainer.accelerator={accelerator}: choose auto, cpu, gpu or mps")
    if not here[kind]:
        raise ConfigError(
            f"trainer.accelerator={accelerator}: not available here; choose trainer=cpu, or ddp_cpu for several"
        )
    _check_devices(options["devices"], kind)
    _check_counts(options)
    if precision not in PRECISIONS:
        raise ConfigError(f"trainer.precision={precision}: choose {', '.join(PRECISIONS)}")
    if precision == "16-mixed" and kind == "cpu":
        raise ConfigError("trainer.precision=16-mixed: float16 is for GPUs; choose bf16-mixed")
    return kind


def _check_counts(options: Mapping[str, Any]) -> None:
    """Refuses values that Lightning gives another meaning, or on which it fails partway through a run."""
    for key in COUNTS:
        if options[key] < 1:
            raise ConfigError(f"trainer.{key}={options[key]}: choose {key} >= 1")
    for key, instead in REPLACED.items():
        if options.get(key):
            raise ConfigError(f"trainer.{key}={options[key]}: this option of Lightning is not supported; use {instead}")
    batches = options["limit_val_batches"]
    if not (0 < batches <= 1 if isinstance(batches, float) else isinstance(batches, int) and batches >= 1):
        raise ConfigError(
            f"trainer.limit_val_batches={batches}: every run ends with a validation; choose a number of batches >= 1, "
            "or a share in (0, 1]"
        )
    interval, clip = options["val_check_interval"], options["gradient_clip_val"]
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise ConfigError(f"trainer.val_check_interval={interval}: choose a whole number of steps, at least 1")
    if clip is not None and not clip > 0:
        raise ConfigError(f"trainer.gradient_clip_val={clip}: choose gradient_clip_val > 0, or null")


def _check_devices(devices: Any, kind: str) -> None:
    count = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind)
    if devices == "auto" or (devices == -1 and kind != "cpu"):
        return
    wanted = len(devices) if isinstance(devices, list) and kind == "cuda" else devices
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise ConfigError(f"trainer.devices={devices}: choose a whole number of at least 1, or auto")
    if count is not None and (wanted > count or (isinstance(devices, list) and max(devices) >= count)):
        raise ConfigError(f"trainer.devices={devices}: only {count} here; choose trainer.devices={count} or fewer")
