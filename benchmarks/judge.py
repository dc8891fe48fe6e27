"""Fréchet distances of Fashion-MNIST samples in the features of a classifier that no recipe was tuned on.

python -m benchmarks.judge ROOT [IMAGES …] [--out FOLDER]

Needs:  Fashion-MNIST in ROOT; each IMAGES is an .npz file as src.sample writes it, or a folder of pictures.
Prints: the classifier's accuracy, and the distance of each set of images from the 10,000 test images.
Takes:  minutes the first time, which trains the classifier for 5,000 steps; it is kept in ~/.cache/lightning-diffusion.

The first two rows give the scale: the distance of training images, which is the floor, and that of uniform noise.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.turns import Table, parser_of
from lightning_diffusion.codecs.pixels import to_model
from lightning_diffusion.data.dataset import InMemory
from lightning_diffusion.data.external_images import read_images
from lightning_diffusion.data.mnist import MNIST
from lightning_diffusion.metrics.cache import cached
from lightning_diffusion.metrics.distances.frechet import Moments, frechet_distance, moments

STEPS, BATCH, PEAK_LR = 5000, 128, 4e-3
FLOOR = 2000  # training images
CACHE = "~/.cache/lightning-diffusion"


class Judge(nn.Module):
    """A classifier: uint8 (B, 1, 28, 28) -> 128 features; `head` maps these to logits."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((1, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        layers += [nn.Conv2d(widths[-1], 128, 3, padding=1, bias=False), nn.BatchNorm2d(128), nn.ReLU()]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(to_model(images)).mean((2, 3))


def fit(train: InMemory) -> Judge:
    """Trains a judge on the images and their mirror images."""
    torch.manual_seed(0)
    judge = Judge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK_LR, total_steps=STEPS)
    for _ in range(STEPS):
        images, labels = train[torch.randint(len(train), (BATCH,))]
        images = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, images, images.flip(-1))
        assert labels is not None
        loss = F.cross_entropy(judge.head(judge(images)), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


@torch.inference_mode()
def features(judge: Judge, images: Tensor) -> Tensor:
    return torch.cat([judge(part) for part in images.split(500)])


def judge_of(train: InMemory, test: InMemory) -> tuple[Judge, float]:
    """The cached judge and its accuracy on the test images; trains it if it is not in the cache."""

    def make() -> tuple[dict[str, Tensor], dict[str, str]]:
        judge = fit(train)
        images, labels = test[torch.arange(len(test))]
        with torch.inference_mode():
            right = judge.head(features(judge, images)).argmax(1) == labels
        return judge.state_dict(), {"accuracy": str(float(right.float().mean()))}

    state, words = cached(CACHE, "judge", f"judge 1 {train.fingerprint()} {STEPS}", make)
    judge = Judge().eval()
    judge.load_state_dict(state)
    return judge, float(words["accuracy"])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("root", help="folder of Fashion-MNIST")
    parser.add_argument("images", nargs="*", type=Path, help=".npz files or folders of samples")
    parser.add_argument("--out", type=Path, help="folder for the table as CSV")
    given = parser.parse_args()
    data = MNIST(given.root, "FashionMNIST", channels=1, image_size=28, num_classes=10, batch_size=BATCH)
    data.setup()
    train, test = data.splits["train"], data.splits["val"]
    judge, accuracy = judge_of(train, test)
    print(f"the judge classifies {accuracy:.1%} of the test images correctly")

    def of(images: Tensor) -> Moments:
        return moments(features(judge, images))

    reference = of(test[torch.arange(len(test))][0])
    table = Table("distance", "images", "number", "distance")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(len(train), generator=generator)[:FLOOR]
    table.add("training images", FLOOR, frechet_distance(of(train[drawn][0]), reference))
    noise = torch.randint(256, (FLOOR, 1, 28, 28), dtype=torch.uint8, generator=generator)
    table.add("noise", FLOOR, frechet_distance(of(noise), reference))
    for path in given.images:
        samples = read_images(path, "images")
        images = samples[torch.arange(len(samples))][0]
        table.add(path, len(samples), frechet_distance(of(images), reference))
    table.write(given.out)


if __name__ == "__main__":
    main()
