"""This project's training in a bare loop, for measurements without the Trainer."""

import itertools
from collections.abc import Iterator

import hydra
import lightning as L
import torch
from torch import Tensor, nn

from lightning_diffusion.app.assembly import Arguments, count_classes, groups
from lightning_diffusion.app.cli import CONF
from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.codecs.image_size import height_width
from lightning_diffusion.configuration.arguments import Node, parse
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.data.module import ImageDataModule
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.models.contracts import Training
from lightning_diffusion.training.guard import BatchRecord, Guard
from lightning_diffusion.training.module import TrainingModule


def configuration(words: list[str]) -> Arguments:
    """The checked arguments that these words of src.train give."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", overrides=["name=x", "run_dir=x", *words])
        count_classes(config)
        return parse(config, Arguments, groups())


def module_of(arguments: Arguments) -> TrainingModule:
    L.seed_everything(arguments.seed, verbose=False)
    return arguments.module.make()


def random_batches(part: Node[ImageDataModule]) -> Iterator[Batch]:
    """An endless repetition of one batch of random images and classes, with the shape of a configuration's data."""
    data, generator = part.node, torch.Generator().manual_seed(0)
    shape = (data["batch_size"], data["channels"], *height_width(data["image_size"]))
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(data["num_classes"], shape[:1], generator=generator) if data["num_classes"] else None
    return (Batch(images, by_label(labels), start) for start in itertools.count(0, len(images)))


class BareLoop:
    """Trains a TrainingModule step by step, on the device that holds it."""

    def __init__(self, module: TrainingModule, batches: Iterator[Batch], trainer: Node[L.Trainer]) -> None:
        """trainer: gives the precision and the clipping."""
        self.module, self.batches, self.number = module.train(), batches, 0
        module.configure_model()
        self.optimizer = module.optimizer(module.trained)
        self.lr_scheduler = module.lr_scheduler(self.optimizer)
        options = trainer.node
        self.clip, self.bf16 = options["gradient_clip_val"] or float("inf"), options["precision"] == "bf16-mixed"
        self.device = module.model.device
        self.guard = Guard("stop")

    def step(self) -> Tensor:
        module, batch = self.module, next(self.batches)
        images = batch.images.to(self.device, non_blocking=True)
        condition = None if batch.condition is None else batch.condition.to(self.device)
        rng = BatchRNG(module.seed, batch.start, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            batch, training = Batch(images, condition, batch.start), Training(0.0, module.ema.model)
            losses = module.objective.loss(module.model, batch, rng, training)
            loss = losses.values.mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.trained, self.clip)
        self.guard.add(BatchRecord(batch.start, loss.detach(), losses.values.detach(), losses.drawn))
        self.guard.admits(self.number + 1, norm, False, self.device.type == "cuda", bool)
        self.optimizer.step()
        module.ema.update(module.model, self.number)
        self.lr_scheduler.step()
        self.number += 1
        return loss.detach()
