"""The export of a trained model for other programs."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from lightning_diffusion.app.cli import config_errors
from lightning_diffusion.app.edit_inputs import same_label
from lightning_diffusion.app.output import show
from lightning_diffusion.checkpoints.diffusers import folder
from lightning_diffusion.checkpoints.loading import assembled, write_safetensors
from lightning_diffusion.checkpoints.model_file import read
from lightning_diffusion.configuration.arguments import Text, parse
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.system.files import writable


@dataclass(frozen=True)
class Arguments:
    """The keys of conf/export.yaml."""

    ckpt_path: Text
    trust: list[str]
    format: str
    output_dir: Text
    label: int | None


def main(config: DictConfig) -> None:
    """Write the averaged weights: a folder for diffusers' pipelines, or denoiser.safetensors."""
    with config_errors():
        arguments = parse(config, Arguments)
        model = assembled(read(str(arguments.ckpt_path), "ckpt_path", arguments.trust), arguments.trust)
        output_dir, label = Path(str(arguments.output_dir)), arguments.label
        if arguments.format not in ("diffusers", "safetensors"):
            raise ConfigError(f"format={arguments.format}: choose diffusers or safetensors")
        if output_dir.exists() and any(output_dir.iterdir()):
            raise ConfigError(f"output_dir={output_dir}: not empty; give a new folder")
        if label is not None:
            if arguments.format != "diffusers":
                raise ConfigError(f"label={label}: only format=diffusers can fix a class; leave it out")
            same_label(label, 1, model.num_classes)  # refuses a class that the model does not have
        writable(output_dir, "output_dir")
        if arguments.format == "safetensors":
            write_safetensors(output_dir / "denoiser.safetensors", model)
            lines = [f"{output_dir}/denoiser.safetensors"]
        else:
            pipeline = folder.write(output_dir, model.model, label)
            lines = [f"{output_dir}: {pipeline}.from_pretrained loads it"]
            if pipeline == "DDPMPipeline" and model.num_classes is not None and label is None:
                lines += [
                    "its UNet2DModel takes class_labels, which DDPMPipeline does not pass; label=0 … fixes one class"
                ]
    show(*lines)
