"""The share of captions that samples obey, on combinations of classes that training has shown and on others.

python -m benchmarks.captions RUN [--seconds S] [--samples N] [--scale W]

Needs:  a run of experiment=captions.
Prints: for samples, for real scenes and for wrong captions: the share of images with both items of the caption, and
        of these the share with the right relation. A segmentation network finds the items. It is trained on scenes of
        one to four held-out items. The real scenes contain training items, which this network has not seen.
Takes:  S seconds (120 by default) to train this network, and the time of twice N samples (400 by default).
"""

import math
import time
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from benchmarks.loop import configuration
from benchmarks.turns import Table, parser_of
from lightning_diffusion.app.sampling import as_generator, draw
from lightning_diffusion.checkpoints.loading import load
from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.data.captions import RELATIONS, Vocabulary, relation
from lightning_diffusion.data.scenes import SceneImages, Scenes
from lightning_diffusion.diffusion.guidance import ClassifierFree
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.models.contracts import Training
from lightning_diffusion.models.segmentation.model import Segmentation
from lightning_diffusion.runs.run import CHECKPOINT

STREAMS: Final = {"detector": 2**32 - 1, "real": 2**32 - 2, "asked": 2**32 - 3}  # of the last image_seeds
LEAST: Final = 0.01  # share of the pixels that an item covers
BATCH: Final = 32
LR: Final = 2e-3


class Share(NamedTuple):
    """A share of `count` images."""

    value: float
    count: int

    def __str__(self) -> str:
        if self.count == 0:
            return "–"
        return f"{self.value:.1%} ± {math.sqrt(self.value * (1 - self.value) / self.count):.1%}"


class Obeyed(NamedTuple):
    """present: the share of images with both items. right: of these, the share with the right relation."""

    present: Share
    right: Share


def obeyed(masks: Tensor, captions: Tensor, vocabulary: Vocabulary) -> Obeyed:
    """How well masks (N, H, W) of images obey captions (N, 3) of two different classes.

    An item is present if at least LEAST of the pixels have its class. Its centre is the mean position of these pixels.
    """
    subjects, relations, others = vocabulary.parts(captions)
    (one, size_1), (two, size_2) = centres(masks, 1 + subjects), centres(masks, 1 + others)
    present = torch.minimum(size_1, size_2) >= LEAST * masks[0].numel()
    right = relation(*(two - one).unbind(1))[present] == relations[present]
    return Obeyed(share(present), share(right))


def centres(masks: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (x, y) of the pixels of a class in each mask, (N, 2), and their number, (N,)."""
    here = (masks == classes[:, None, None]).double()
    size, (H, W) = here.flatten(1).sum(1), masks.shape[1:]
    x, y = here.sum(1) @ torch.arange(W).double(), here.sum(2) @ torch.arange(H).double()
    return torch.stack([x, y], dim=1) / size.clamp(min=1)[:, None], size


def share(flags: Tensor) -> Share:
    return Share(float(flags.double().mean()) if len(flags) else 0.0, len(flags))


def detector(data: Scenes, seconds: float, **sizes: int) -> Segmentation:
    """A segmentation network that is trained for some seconds on scenes of held-out items."""
    _, H, W = data.shape
    words = [f"data.image_size=[{H},{W}]", *(f"backbone.{name}={value}" for name, value in sizes.items())]
    arguments = configuration(["experiment=scenes", *words])  # of digits, but neither network nor loss depends on it
    torch.manual_seed(0)
    model, objective = arguments.model.make(), arguments.objective.make()
    scenes = data.made("val", 10_000, STREAMS["detector"], (1, 4), True, None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    started, step = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 50) * max(0.01, 1 - elapsed / seconds)
        found = scenes.sample(torch.randint(len(scenes), (BATCH,)))
        batch = Batch(found.images, None, step * BATCH, found.targets)
        losses = objective.loss(model, batch, BatchRNG(0, batch.start), Training(elapsed / seconds, model))
        losses.values.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    print(f"the detector trained for {step:,} steps")
    assert isinstance(model, Segmentation)
    return model.eval()


def of_two_classes(scenes: SceneImages, count: int) -> tuple[Tensor, Tensor]:
    """The numbers and captions of the first scenes with two different classes."""
    captions = scenes.captions(torch.arange(len(scenes)))
    assert captions is not None
    numbers = (captions[:, 0] != captions[:, 2]).nonzero().flatten()[:count]
    return numbers, captions[numbers]


def predicted(model: Segmentation, images: Tensor) -> Tensor:
    return torch.cat([model.predict(batch) for batch in images.split(BATCH)])


def with_other_relations(captions: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The captions with random relations."""
    subjects, relations, others = vocabulary.parts(captions)
    drawn = torch.randint(len(RELATIONS), relations.shape, generator=torch.Generator().manual_seed(0))
    return vocabulary.of(subjects, drawn, others)


def report(checkpoint: Path, seconds: float, count: int, scale: float, **sizes: int) -> Table:
    trained = load(checkpoint)
    model, options = as_generator(trained.model), trained.file.data
    data = Scenes(**{key: value for key, value in options.items() if not key.startswith("_")})
    vocabulary = data.vocabulary
    assert vocabulary is not None
    if scale != 1:
        trained.model.guidance = lambda denoiser: ClassifierFree(denoiser, scale)  # type: ignore[assignment]
        trained.model.check()
    judge = detector(data, seconds, **sizes)
    table = Table("captions", "images", "combinations", "both items", "right relation", "both and right")
    for name, pairs in (("seen in training", False), ("held out", True)):
        numbers, captions = of_two_classes(
            scenes := data.made("train", 2 * count, STREAMS["real"], (2, 2), data.overlap, pairs), count
        )
        real = predicted(judge, scenes[numbers][0])
        asked = data.made("val", 2 * count, STREAMS["asked"], (2, 2), data.overlap, pairs)
        wanted = of_two_classes(asked, count)[1]
        masks = predicted(judge, draw(model, Condition(tokens=wanted), len(wanted), BATCH, 0))
        by_chance = Obeyed(
            obeyed(masks, wanted.roll(1, 0), vocabulary).present,
            obeyed(masks, with_other_relations(wanted, vocabulary), vocabulary).right,
        )
        rows = {
            "real scenes": obeyed(real, captions, vocabulary),
            "samples": obeyed(masks, wanted, vocabulary),
            "samples, wrong captions": by_chance,
        }
        for what, found in rows.items():
            table.add(what, name, found.present, found.right, f"{found.present.value * found.right.value:.1%}")
    return table


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("--seconds", type=float, default=120.0, help="of training for the detector; 120 by default")
    parser.add_argument("--samples", type=int, default=400, help="for each kind of combination; 400 by default")
    parser.add_argument("--scale", type=float, default=1.0, help="of guidance by the caption; 1 by default, none")
    given = parser.parse_args()
    report(given.run / CHECKPOINT, given.seconds, given.samples, given.scale)


if __name__ == "__main__":
    main()
