"""Shapes: the pictures that a polygon rasterizer draws, and images that only (image_seed, split, i) decides."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lightning_diffusion.data.dataset import InMemory
from lightning_diffusion.data.shapes import BRIGHTNESS, COUNT, DISTANCES, RADIUS, ShapeImages, Shapes

OPTIONS = {"channels": 1, "image_size": 16, "num_classes": 4, "batch_size": 4}
SCALE = 32  # pixels of the reference for each pixel


def splits(**options):
    data = Shapes(**(OPTIONS | options))
    data.setup()
    return data.splits["train"], data.splits["val"]


def everything(dataset):
    return dataset[torch.arange(len(dataset))]


def corners(label):
    """The outline of each class in the square |x|, |y| ≤ 1, y down."""
    t = 1 / 3
    circle = [(math.cos(a), math.sin(a)) for a in torch.linspace(0, 2 * math.pi, 200).tolist()]
    plus = [(-t, -1), (t, -1), (t, -t), (1, -t), (1, t), (t, t), (t, 1), (-t, 1), (-t, t), (-1, t), (-1, -t), (-t, -t)]
    return (circle, [(-1, -1), (1, -1), (1, 1), (-1, 1)], [(0, -1), (1, 1), (-1, 1)], plus)[label]


@pytest.mark.parametrize("label", range(4), ids=["disc", "square", "triangle", "cross"])
@pytest.mark.parametrize(("height", "width"), [(24, 40), (40, 24)])
def test_a_shape_covers_what_a_polygon_of_its_corners_covers(label, height, width):
    dataset = ShapeImages(80, height, width, stream=3)
    indices = torch.arange(label, 80, 4)
    images, labels = dataset[indices]
    assert labels.tolist() == [label] * 20
    shares = []
    for i, image in zip(indices, images, strict=True):
        x, y, r = float(dataset.x[i]), float(dataset.y[i]), float(dataset.radius[i])
        picture = Image.new("L", (SCALE * width, SCALE * height))
        # PIL counts from the middle of a pixel
        outline = [(SCALE * (x + r * u) - 0.5, SCALE * (y + r * v) - 0.5) for u, v in corners(label)]
        ImageDraw.Draw(picture).polygon(outline, fill=1)
        covered = np.asarray(picture).reshape(height, SCALE, width, SCALE).mean((1, 3))
        difference = (image[0] / (255 * dataset.brightness[i]) - torch.from_numpy(covered)).abs()
        assert difference.max() < 0.4  # at a sharp corner; straight edges are closer
        shares.append(float(difference.sum()) / covered.sum())
    assert sum(shares) / len(shares) < 0.02


def test_distances_from_the_centre_and_along_a_ray():
    r, down = torch.tensor(3.0), torch.tensor([0.0, 2.0, 3.0, 5.0])
    at_centre, *below = (torch.stack([distance(torch.tensor(0.0), y, r) for distance in DISTANCES]) for y in down)
    torch.testing.assert_close(at_centre, -r * torch.tensor([1, 1, 1 / math.sqrt(5), 1 / 3]))
    for y, found in zip(down[1:], below, strict=True):
        torch.testing.assert_close(found, torch.full((4,), float(y - r)))


def test_a_whole_shape_of_any_place_size_and_brightness_is_inside():
    dataset = ShapeImages(4000, 16, 32, stream=0)
    for values, low, high in (
        (dataset.radius / 16, *RADIUS),
        (dataset.brightness, *BRIGHTNESS),
        ((dataset.x - dataset.radius) / (32 - 2 * dataset.radius), 0, 1),
        ((dataset.y - dataset.radius) / (16 - 2 * dataset.radius), 0, 1),
    ):
        u = ((values - low) / (high - low)).double()
        assert -1e-5 < u.min() < 0.01
        assert 0.99 < u.max() < 1 + 1e-5
        assert abs(u.mean() - 1 / 2) < 0.02
        assert abs(u.var() - 1 / 12) < 0.01


def test_an_image_depends_on_its_seed_split_and_number_only():
    train, val = splits()
    images, labels = everything(train)
    assert (len(train), len(val)) == (COUNT["train"], COUNT["val"])
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:100]
    alone = [train[order[i : i + 1]] for i in range(100)]
    assert torch.equal(torch.cat([image for image, _ in alone]), images[order])  # in any batch
    assert torch.equal(torch.cat([label for _, label in alone]), labels[order])
    again, _ = splits(seed=5, batch_size=7, num_workers=1, num_classes=None)  # in any run
    assert torch.equal(everything(again)[0], images)
    few = everything(ShapeImages(50, 16, 16, stream=0))[0]  # in a split of any length
    assert torch.equal(few, images[:50])


def test_no_image_is_in_two_splits_or_of_two_seeds():
    parts = [everything(part)[0].flatten(1) for seed in (0, 1, 2**31 - 1) for part in splits(image_seed=seed)]
    known = [{image.tobytes() for image in part.numpy()} for part in parts]
    assert [len(part) for part in known] == [10_000, 1_000] * 3
    assert len(set.union(*known)) == 33_000


def test_classes_are_balanced_and_a_neighbour_reads_them_in_eight_pixels():
    (x, labels), (held_out, expected) = (everything(part) for part in splits(image_size=8))
    assert labels.bincount().tolist() == [2500] * 4
    x, held_out = (torch.nn.functional.normalize(images.flatten(1).float()) for images in (x, held_out))
    found = labels[(held_out @ x.T).argmax(1)]
    assert (found == expected).float().mean() > 0.95


def test_the_first_so_many_are_trained_on():
    train, val = splits(num_images=6, image_size=[8, 20])
    assert (len(train), len(val)) == (6, 1000)
    assert torch.equal(everything(train)[0], everything(splits(image_size=[8, 20])[0])[0][:6])
    with pytest.raises(ValueError, match="data.num_images=10001: there are 10000 to train on"):
        splits(num_images=10_001)


def test_the_fingerprint_is_that_of_the_images(monkeypatch):
    monkeypatch.setattr("lightning_diffusion.data.shapes.CHUNK", 7 * 8 * 9)
    found = {ShapeImages(count, 8, 9, stream).fingerprint() for count in (20, 21) for stream in (0, 1)}
    assert len(found) == 4
    monkeypatch.undo()
    assert ShapeImages(20, 8, 9, 0).fingerprint() in found
    assert ShapeImages(2, 8, 9, 0).label_range() == (0, 1)
    assert InMemory(*everything(ShapeImages(20, 8, 9, 0))).label_range() == ShapeImages(20, 8, 9, 0).label_range()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 3}, r"data.channels=3: shapes are grey; choose data.channels=1"),
        ({"image_size": 7}, r"data.image_size=7: shapes need sides of at least 8"),
        ({"image_size": [20, 7]}, r"data.image_size=\[20,7\]: shapes need sides of at least 8"),
        ({"image_seed": -1}, r"data.image_seed=-1: choose a whole number from 0 to 2147483647"),
        ({"image_seed": 2**31}, r"data.image_seed=2147483648: choose"),
        ({"num_classes": 3}, r"data.num_classes=3: these images have label 3.*set data.num_classes=4"),
    ],
)
def test_values_out_of_range(options, says):
    with pytest.raises(ValueError, match=says):
        splits(**options)
