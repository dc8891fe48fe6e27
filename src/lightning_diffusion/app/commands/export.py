"""A trained model, written for other programs."""

from pathlib import Path

from omegaconf import DictConfig

from lightning_diffusion.app.cli import mistakes
from lightning_diffusion.checkpoints.diffusers import folder
from lightning_diffusion.checkpoints.loading import load, write_safetensors
from lightning_diffusion.configuration.build import ConfigError, Text, check
from lightning_diffusion.system.console import console
from lightning_diffusion.system.files import writable

SLOTS = {"ckpt_path": Text, "trust": list[str], "format": str, "output_dir": Text, "label": int | None}


def main(config: DictConfig) -> None:
    """Writes the averaged weights: a folder for diffusers' pipelines, or denoiser.safetensors."""
    with mistakes():
        plain = check(config, SLOTS)
        model = load(plain["ckpt_path"], trust=plain["trust"])
        denoiser, output_dir, label = model.denoiser, Path(str(plain["output_dir"])), plain["label"]
        if plain["format"] not in ("diffusers", "safetensors"):
            raise ConfigError(f"format={plain['format']}: choose diffusers or safetensors")
        if output_dir.exists() and any(output_dir.iterdir()):
            raise ConfigError(f"output_dir={output_dir}: not empty; name a new folder")
        if label is not None:
            K = model.num_classes
            if plain["format"] != "diffusers" or K is None or not isinstance(label, int) or not 0 <= label < K:
                raise ConfigError(
                    f"label={label}: one class can be baked in by format=diffusers, label=0 … K − 1 of K classes"
                )
        writable(output_dir, "output_dir")
        if plain["format"] == "safetensors":
            write_safetensors(output_dir / "denoiser.safetensors", denoiser, model.file.denoiser)
            told = [f"{output_dir}/denoiser.safetensors"]
        else:
            pipeline = folder.write(output_dir, denoiser, model.file.data["image_size"], model.shape[0], label)
            told = [f"{output_dir}: {pipeline}.from_pretrained loads it"]
            if pipeline == "DDPMPipeline" and model.num_classes is not None and label is None:
                told += ["its UNet2DModel takes class_labels, which DDPMPipeline does not pass; label=0 … bakes one in"]
    for line in told:
        console().print(line, soft_wrap=True)
