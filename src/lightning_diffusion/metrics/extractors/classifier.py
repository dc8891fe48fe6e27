"""A small classifier of the data as a feature extractor: quick, offline, and trained on these very images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_diffusion.codecs.pixels import to_model
from lightning_diffusion.metrics.cache import cached
from lightning_diffusion.metrics.extractors.base import Extractor, Features, ImageSet
from lightning_diffusion.system.progress import Phase

WIDEST = 32  # pixels; larger images are averaged down to this
BATCH, PEAK_LR = 128, 3e-3
HELD_OUT = 0.1  # share of the images that test the classifier if there are no held-out ones


class Classifier(Extractor):
    """A convolutional network, trained once on the reference images' labels. Its last hidden layer gives the features.

    Its scores compare models of one data set only, so none of them is called FID.

    Args:
        steps: of training, with 128 images each; the default takes half a minute on two CPU cores.
        seed: of the weights and batches.
    """

    name = "classifier"
    resize = f"averaged down to {WIDEST} pixels where larger"

    def __init__(self, cache_dir: str, steps: int = 1000, seed: int = 0) -> None:
        if steps < 10:
            raise ValueError(f"metrics.steps={steps}: choose at least 10")
        super().__init__(cache_dir)
        self.steps, self.seed = steps, seed
        self.accuracy = float("nan")

    def check(self, train: ImageSet) -> None:
        super().check(train)
        if train[torch.arange(1)][1] is None:
            raise ValueError(
                "metrics=classifier: these images have no labels to train a classifier on; choose "
                "metrics=imagenet_lite, or callbacks=default to train without scores"
            )

    def note(self) -> dict[str, float]:
        return {"accuracy": self.accuracy}

    def load(self, train: ImageSet, held_out: ImageSet | None) -> nn.Module:
        self.check(train)
        recipe = f"{Network.__name__} 1, {self.steps} steps, seed {self.seed}"
        hashes = f"{train.fingerprint()} {held_out.fingerprint() if held_out else None}"
        state, words = cached(self.cache_dir, "classifier", f"{hashes} {recipe}", lambda: self._make(train, held_out))
        self.accuracy = float(words["accuracy"])
        network = Network(int(words["channels"]), int(words["image_size"]), len(state["head.bias"]))
        network.load_state_dict(state)
        return network

    def _make(self, train: ImageSet, held_out: ImageSet | None) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The trained weights, and their accuracy on images that they were not trained on."""
        learn = _in_memory(train)
        if held_out is None:
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed))
            size = max(1, round(HELD_OUT * len(train)))
            test, learn = [part[order[:size]] for part in learn], [part[order[size:]] for part in learn]
        else:
            test = _in_memory(held_out)
        network = fit(learn[0], learn[1], self.steps, self.seed).eval()
        with torch.inference_mode():
            predicted = torch.cat([network(images).logits.argmax(1) for images in test[0].split(500)])
        words = {"channels": str(learn[0].shape[1]), "image_size": str(max(learn[0].shape[2:]))}
        return network.state_dict(), words | {"accuracy": str(float((predicted == test[1]).double().mean()))}


def fit(images: Tensor, labels: Tensor, steps: int, seed: int) -> "Network":
    """A network trained on uint8 images (N, C, H, W) and their labels (N,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(images.shape[1], max(images.shape[2:]), int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK_LR, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    with Phase("scores: training a classifier of the data", steps) as phase:
        for _ in range(steps):
            batch = torch.randint(len(images), (BATCH,), generator=generator)
            loss = F.cross_entropy(network(images[batch]).logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            phase.advance()
    return network


def shrink(images: Tensor) -> Tensor:
    """uint8 images, averaged down until the longer side is at most WIDEST."""
    longer = max(images.shape[2:])
    if longer <= WIDEST:
        return images
    size = [max(1, round(side * WIDEST / longer)) for side in images.shape[2:]]
    return F.interpolate(images.float(), size, mode="area").round().to(torch.uint8)


def _in_memory(images: ImageSet) -> list[Tensor]:
    """[shrunk images, labels]."""
    with Phase("scores: reading the images", len(images), "image") as phase:
        parts = []
        for indices in torch.arange(len(images)).split(500):
            parts.append(images[indices])
            phase.advance(len(indices))
    return [torch.cat([shrink(part) for part, _ in parts]), torch.cat([part for _, part in parts if part is not None])]


class Network(nn.Module):
    """uint8 (B, C, H, W) -> Features, d = 64: strided convolutions down to at most four pixels, then their mean."""

    def __init__(self, channels: int, image_size: int, num_classes: int) -> None:
        super().__init__()
        side, width = min(image_size, WIDEST), 32
        stem_stride = 2 if side >= 16 else 1
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, stem_stride, padding=1)]
        side = -(-side // stem_stride)
        while side > 4:
            layers += [nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, 64, 3, 2, padding=1)]
            side, width = -(-side // 2), 64
        if width < 64:
            layers += [nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, 64, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.GroupNorm(4, 64), nn.ReLU())
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Features:
        vectors = self.layers(to_model(shrink(images))).mean((2, 3))
        return Features(vectors, self.head(vectors))
