"""A judge that no recipe was tuned on: Fréchet distances in the features of a strong classifier of Fashion-MNIST.

python -m benchmarks.judge ROOT [IMAGES …] [--out FOLDER]

ROOT holds Fashion-MNIST; each IMAGES is an .npz file, as src.sample writes it, or a folder of pictures. All are
compared with the 10,000 test images. The first rows say what a distance means: of training images, the floor, and of
uniform noise.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.turns import Table
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
    """uint8 (B, 1, 28, 28) -> 128 features, after three resolutions; `head` makes logits of them."""

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
    """Trained on the images and their mirror images."""
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
    """The judge, trained once, and its accuracy on the test images."""

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the table as CSV")
    given = parser.parse_args()
    data = MNIST(given.root, "FashionMNIST", channels=1, image_size=28, num_classes=10, batch_size=BATCH)
    data.setup()
    train, test = data.splits["train"], data.splits["val"]
    judge, accuracy = judge_of(train, test)
    print(f"the judge reads {accuracy:.1%} of the test images rightly")

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
