"""What images as conditions are worth: super-resolution next to simple methods, and masks against a segmenter.

python -m benchmarks.conditions super_resolution MODEL --root ROOT [--steps 1600] [--count 1000]
python -m benchmarks.conditions mask_to_image MODEL --segmenter SEGMENTER [--count 1000]
python -m benchmarks.conditions image_to_mask MODEL --segmenter SEGMENTER [--variants 8] [--count 1000]

Needs:  MODEL, the checkpoint of a run: src.train experiment=fashion_mnist_quick condition=low_resolution
        data.num_classes=null data.root=ROOT, or experiment=mask_to_image or image_to_mask. SEGMENTER, the checkpoint of
        src.train experiment=scenes on the same scenes. ROOT, the folder of Fashion-MNIST.
Prints: super_resolution: PSNR to the true images, PSNR of the low resolution, and the judge's distance of held-out
        images, bicubic interpolation, a regression by the same network, and samples.
        mask_to_image: the segmenter's mean IoU on real scenes and on samples of their masks.
        image_to_mask: the mean IoU of the segmenter, of one sample, and of the most frequent class of several.
Takes:  super_resolution: as long as MODEL's training, for the regression; the others: minutes.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.judge import features, judge_of
from benchmarks.turns import Table, parser_of
from lightning_diffusion.checkpoints.loading import load, load_data
from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.codecs.pixels import to_model, to_uint8
from lightning_diffusion.data.conditions import LowResolution, WithCondition, shares
from lightning_diffusion.data.dataset import ImageDataset, Sample
from lightning_diffusion.data.mnist import MNIST
from lightning_diffusion.data.module import Split
from lightning_diffusion.metrics.distances.frechet import frechet_distance, moments
from lightning_diffusion.metrics.segmentation import ConfusionMatrix
from lightning_diffusion.models.contracts import Generator, Model, Predictor

BATCH, LR = 64, 2e-3


def decibels(squared_error: Tensor) -> float:
    """The peak signal-to-noise ratio of values in [0, 1]."""
    return -10 * math.log10(max(float(squared_error.double().mean()), 1e-10))


def psnr(images: Tensor, truth: Tensor) -> float:
    return decibels(((images.float() - truth.float()) / 255).square())


def drawn(model: Generator, held_out: ImageDataset, numbers: list[int]) -> Tensor:
    """Sample i of the condition of held-out image i mod N, for these i."""
    batches = [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]
    return torch.cat([model.draw(batch, model.conditions_in_turn(batch, held_out), 0).images for batch in batches])


def bicubic(images: Tensor, factor: int) -> Tensor:
    """The means over factor × factor pixels, interpolated to the size of the images."""
    small = F.avg_pool2d(to_model(images), factor)
    return to_uint8(F.interpolate(small, scale_factor=factor, mode="bicubic"))


class Regression(nn.Module):
    """A network that predicts an image from a condition's image in one evaluation: the mean of all that fit."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.channels = network, channels

    def forward(self, shown: Tensor) -> Tensor:
        x = torch.zeros(len(shown), self.channels, *shown.shape[2:])
        output: Tensor = self.network(x, torch.zeros(len(shown)), Condition(image=shown))
        return output


def fitted(model: Regression, train: ImageDataset, steps: int) -> Regression:
    """The model after `steps` steps on the squared error, from new weights."""
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=steps)
    for _ in range(steps):
        sample = train.sample(torch.randint(len(train), (BATCH,)))
        assert sample.shown is not None
        loss = (model(sample.shown) - to_model(sample.images)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def restored(model: Model, splits: Mapping[Split, ImageDataset], steps: int, count: int) -> dict[str, Tensor]:
    """Images uint8 (count, C, H, W) by method, of the low resolutions of the first held-out images."""
    source, truth = model.condition_source, splits["val"].sample(torch.arange(count))
    assert isinstance(source, LowResolution)
    assert isinstance(model, Generator)
    assert truth.shown is not None
    samples = drawn(model, splits["val"], list(range(count)))
    regression = fitted(Regression(model.network, source.channels), splits["train"], steps)  # overwrites the weights
    with torch.inference_mode():
        means = torch.cat([to_uint8(regression(part)) for part in truth.shown.split(BATCH)])
    return {
        "held-out images": truth.images, "bicubic": bicubic(truth.images, source.factor), "regression": means,
        "samples": samples,
    }  # fmt: skip


def super_resolution(images: Mapping[str, Tensor], source: LowResolution, distance: Callable[[Tensor], float]) -> Table:
    truth = images["held-out images"]
    shown = source(Sample(truth, None, None)).shown
    assert shown is not None
    table = Table("super_resolution", "images", "PSNR", "PSNR of the low resolution", "judge's distance")
    for name, found in images.items():
        consistency = decibels(source.consistency(found, shown))
        table.add(name, f"{psnr(found, truth):.2f}", f"{consistency:.2f}", f"{distance(found):.3f}")
    return table


def judged(root: str) -> Callable[[Tensor], float]:
    """The judge's distance of images from 10,000 training images; the judge's own script compares with test images,
    whose low resolutions are the conditions here."""
    data = MNIST(root, "FashionMNIST", channels=1, image_size=28, num_classes=10, batch_size=1)
    data.setup()
    train = data.splits["train"]
    judge, _ = judge_of(train, data.splits["val"])  # type: ignore[arg-type]
    reference = moments(features(judge, train[torch.arange(10_000)][0]))
    return lambda images: float(frechet_distance(moments(features(judge, images)), reference))


def mean_iou(predicted: Tensor, masks: Tensor, classes: int) -> float:
    confusion = ConfusionMatrix(classes)
    confusion.add(predicted, masks)
    return float(confusion.scores()["mean_iou"])


def segmented(segmenter: Predictor, images: Tensor) -> Tensor:
    return torch.cat([segmenter.predict(part) for part in images.split(BATCH)])


def masks_to_images(model: Model, held_out: ImageDataset, segmenter: Predictor, count: int) -> Table:
    assert isinstance(model, Generator)
    real = held_out.sample(torch.arange(count))
    samples = drawn(model, held_out, list(range(count)))
    assert real.targets is not None
    assert segmenter.mask_classes is not None
    table = Table("mask_to_image", "images", "segmenter's mean IoU")
    for name, images in {"real scenes": real.images, "samples": samples}.items():
        table.add(name, f"{mean_iou(segmented(segmenter, images), real.targets, segmenter.mask_classes):.3f}")
    return table


def images_to_masks(model: Model, held_out: ImageDataset, segmenter: Predictor, variants: int, count: int) -> Table:
    assert isinstance(model, Generator)
    assert isinstance(held_out, WithCondition)
    N = len(held_out)
    real = held_out.sample(torch.arange(count))
    scenes = held_out.dataset[torch.arange(count)][0]
    numbers = [v * N + i for v in range(variants) for i in range(count)]
    samples = drawn(model, held_out, numbers).unflatten(0, (variants, count))
    assert real.targets is not None
    assert segmenter.mask_classes is not None
    table = Table("image_to_mask", "prediction", "mean IoU")
    rows = {
        "segmenter": segmented(segmenter, scenes),
        "one sample": samples[0].argmax(1),
        f"most frequent class of {variants} samples": shares(samples).argmax(1),
    }
    for name, predicted in rows.items():
        table.add(name, f"{mean_iou(predicted.to(torch.uint8), real.targets, segmenter.mask_classes):.3f}")
    return table


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("task", choices=["super_resolution", "mask_to_image", "image_to_mask"])
    parser.add_argument("model", type=Path, help="checkpoint of a run with the task's condition")
    parser.add_argument("--root", help="folder of Fashion-MNIST, for super_resolution")
    parser.add_argument("--segmenter", type=Path, help="checkpoint of a segmentation run, for the other tasks")
    parser.add_argument("--steps", type=int, default=1600, help="of the regression; 1600 by default")
    parser.add_argument("--variants", type=int, default=8, help="samples of each image for image_to_mask; 8 by default")
    parser.add_argument("--count", type=int, default=1000, help="held-out images; 1000 by default")
    given = parser.parse_args()
    needed = "root" if given.task == "super_resolution" else "segmenter"
    if getattr(given, needed) is None:
        parser.error(f"{given.task} needs --{needed}")
    trained = load(given.model)
    model, splits = trained.model, load_data(trained, None)
    if given.task == "super_resolution":
        assert isinstance(model.condition_source, LowResolution)
        images = restored(model, splits, given.steps, given.count)
        super_resolution(images, model.condition_source, judged(given.root))
        return
    segmenter = load(given.segmenter).model
    assert isinstance(segmenter, Predictor)
    if given.task == "mask_to_image":
        masks_to_images(model, splits["val"], segmenter, given.count)
    else:
        images_to_masks(model, splits["val"], segmenter, given.variants, given.count)


if __name__ == "__main__":
    main()
