"""Scenes: the masks of a painter that knows the items only, and scenes that only (image_seed, split, i) decides."""

import math
import time
from pathlib import Path

import pytest
import torch

from lightning_diffusion.data.batch import Batch
from lightning_diffusion.data.dataset import Batches, First, Mirrored
from lightning_diffusion.data.digits import Digits
from lightning_diffusion.data.scenes import COUNT, OUTLINE, SHADE, SIZE, SceneImages, Scenes, hats

OPTIONS = {"channels": 1, "image_size": 32, "num_classes": None, "batch_size": 4}
FASHION = Path("/usr/share/datasets/fashion-mnist")


def splits(**options):
    data = Scenes(**(OPTIONS | options))
    data.setup()
    return data.splits["train"], data.splits["val"]


def digits(split="train"):
    return Digits(1, 8, 10, 1).read(split)


def value(picture, item, x, y):
    """The item's value at the middle of pixel (x, y), from its four neighbours; 0 outside of its square."""
    n = len(picture)
    if not (item.left <= x + 0.5 < item.left + item.side and item.top <= y + 0.5 < item.top + item.side):
        return 0
    at = [math.floor(16 * ((p + 0.5 - start) * n / item.side - 0.5)) for p, start in ((x, item.left), (y, item.top))]
    (i, u), (j, v) = (divmod(position, 16) for position in at)
    total = 0
    for row, weight_y in ((j, 16 - v), (j + 1, v)):
        for column, weight_x in ((i, 16 - u), (i + 1, u)):
            if 0 <= row < n and 0 <= column < n:
                total += weight_y * weight_x * int(picture[row, column])
    return total / 256


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_masks_and_items_are_those_of_a_painter(height, width):
    """Pixel by pixel and item by item, a later one over an earlier one."""
    source, indices = digits(), torch.tensor([3, 11, 5])
    dataset = SceneImages(12, height, width, source, OUTLINE["digits"], stream=0)
    scenes, overlapped = dataset.compose(indices), 0
    for i, image, instances, mask in zip(indices.tolist(), *scenes, strict=True):
        canvas = [[(0, 0, None)] * width for _ in range(height)]
        items = dataset.items(i)
        for number, item in enumerate(items, 1):
            picture = source.images[item.number, 0]
            assert item.label == source.labels[item.number]
            assert 0 <= item.left <= width - item.side + 1e-4
            assert 0 <= item.top <= height - item.side + 1e-4
            for y in range(height):
                for x in range(width):
                    if (v := value(picture, item, x, y)) >= OUTLINE["digits"]:
                        overlapped += canvas[y][x][0] > 0
                        shade = 255 * item.brightness * (SHADE + (1 - SHADE) * v / 255)
                        canvas[y][x] = (number, 1 + item.label, shade)
        assert instances.tolist() == [[pixel[0] for pixel in row] for row in canvas]
        assert mask.tolist() == [[pixel[1] for pixel in row] for row in canvas]
        for y, row in enumerate(canvas):
            for x, (_, _, shade) in enumerate(row):
                assert shade is None or abs(float(image[0, y, x]) - shade) < 0.51
        assert [item.visible for item in items] == [int((instances == k + 1).sum()) for k in range(len(items))]
    assert overlapped > 0


def test_interpolation_weights():
    weights = hats(torch.tensor([[2.0]]), torch.tensor([[8.0]]), 12, 4)[0, 0]
    assert weights[2].tolist() == [0.75, 0, 0, 0]  # the middle of the pixel is half a value's width before the first
    assert weights[4].tolist() == [0.25, 0.75, 0, 0]  # 2.5 pixels are 1.25 values, and the first one's middle is at ½
    torch.testing.assert_close(weights[3:9].sum(1), torch.ones(6).double(), rtol=0, atol=0)
    assert weights[[0, 11]].sum() == 0


def test_a_scene_depends_on_its_seed_split_and_number_only():
    train, val = splits()
    assert (len(train), len(val)) == (COUNT["train"], COUNT["val"])
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:20]
    together, alone = train.compose(order), [train.compose(order[i : i + 1]) for i in range(20)]
    for part, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(torch.cat(parts), part)  # in any batch
    again, _ = splits(seed=5, batch_size=7, num_workers=1)  # in any run
    few = SceneImages(int(order.max()) + 1, 32, 32, digits(), OUTLINE["digits"], stream=0)  # in a split of any length
    for dataset in (again, few):
        assert all(map(torch.equal, dataset.compose(order), together))
    images, labels, masks, instances, *_ = train.sample(order)
    assert labels is None
    assert torch.equal(images, train[order][0])
    assert torch.equal(masks, together.masks)
    assert torch.equal(instances, together.instances)


def test_training_and_held_out_scenes_share_no_item_and_two_seeds_no_scene():
    train, val = splits()
    for dataset, split in ((train, "train"), (val, "val")):
        assert torch.equal(dataset.pictures, digits(split).images[:, 0])
        assert dataset.number.max() == len(digits(split)) - 1
    assert not torch.equal(train.window_x[: len(val)], val.window_x)
    known = {
        image.numpy().tobytes()
        for seed in (0, 1, 2**31 - 1)
        for part in splits(image_seed=seed)
        for image in part[torch.arange(50)][0]
    }
    assert len(known) == 6 * 50


def test_scenes_hold_two_to_four_items_of_any_class_size_and_place():
    train, _ = splits()
    counts = train.num_items.bincount(minlength=5).tolist()
    assert counts[:2] == [0, 0]
    assert min(counts[2:]) > 3100
    assert train.classes[train.number].flatten().bincount(minlength=10).min() > 8000
    side = train.side[:, -1] / 32
    assert SIZE[0] <= side.min() < SIZE[0] + 0.01 < SIZE[1] - 0.01 < side.max() <= SIZE[1]
    scenes = train.compose(torch.arange(500))
    assert torch.equal(scenes.masks > 0, scenes.instances > 0)
    assert scenes.masks.unique().tolist() == list(range(11))
    assert all(1 <= len(instances.unique()) - 1 <= 4 for instances in scenes.instances)


def test_brightness_does_not_give_the_mask():
    """Not even the best set of grey values does, those with the best odds."""
    train, _ = splits()
    scenes = train.compose(torch.arange(500))
    grey, item = scenes.images.flatten().long(), scenes.masks.flatten() > 0
    inside, outside = (torch.bincount(grey[chosen], minlength=256) for chosen in (item, ~item))
    order = (inside / (inside + outside).clamp(min=1)).argsort(descending=True)
    hits, misses = inside[order].cumsum(0), outside[order].cumsum(0)
    assert (hits / (inside.sum() + misses)).max() < 0.5  # intersection over union
    assert inside[:100].sum() > 0.2 * inside.sum()  # dark items
    assert outside[150:].sum() > 0.2 * inside[150:].sum()  # bright clutter


def test_a_batch_has_the_masks_also_of_the_first_and_of_mirrored_images():
    train, _ = splits()
    scenes = train.compose(torch.arange(4))
    batch = Batches(First(train, 4), None)[8, torch.arange(4)]
    assert isinstance(batch, Batch)
    assert (batch.start, batch.condition) == (8, None)
    assert torch.equal(batch.images, scenes.images)
    assert torch.equal(batch.targets, scenes.masks)
    mirrored = Batches(Mirrored(First(train, 4)), None)[0, torch.tensor([1, 5])]
    assert torch.equal(mirrored.images, torch.stack([scenes.images[1], scenes.images[1].flip(-1)]))
    assert torch.equal(mirrored.targets, torch.stack([scenes.masks[1], scenes.masks[1].flip(-1)]))


def test_the_fingerprint_is_that_of_the_images(monkeypatch):
    found = {
        SceneImages(count, 16, side, digits(), 96, stream).fingerprint()
        for count, side, stream in ((9, 16, 0), (10, 16, 0), (9, 17, 0), (9, 16, 1))
    }
    assert len(found) == 4
    monkeypatch.setattr("lightning_diffusion.data.scenes.CHUNK", 4 * 16 * 16)
    assert SceneImages(9, 16, 16, digits(), 96, 0).fingerprint() in found


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_scenes_of_clothing():
    _, val = splits(items="fashion_mnist", root=str(FASHION), image_size=64)
    scenes = val.compose(torch.arange(100))
    assert scenes.masks.unique().tolist() == list(range(11))
    assert len(val.pictures) == 10_000


@pytest.mark.slow
def test_ten_thousand_scenes_take_less_than_twenty_seconds_of_a_core():
    train, _ = splits()
    started = time.process_time()
    for indices in torch.arange(10_000).split(64):
        train.compose(indices)
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 3}, "data.channels=3: scenes are grey; choose data.channels=1"),
        ({"num_classes": 10}, "data.num_classes=10: a scene has no class; choose data.num_classes=null"),
        ({"mask_classes": 5}, "data.mask_classes=5: scenes have 11; leave it out"),
        ({"image_size": 15}, "data.image_size=15: scenes need sides of at least 16"),
        ({"image_size": [20, 8]}, r"data.image_size=\[20,8\]: scenes need sides of at least 16"),
        ({"image_seed": -1}, "data.image_seed=-1: choose a whole number from 0 to 2147483647"),
        ({"items": "fashion_mnist"}, "data.items=fashion_mnist: name the folder of its files with data.root=DIR"),
        ({"root": "x"}, "data.root=x: the digits need no files; leave it out"),
    ],
)
def test_values_out_of_range(options, says):
    with pytest.raises(ValueError, match=says):
        splits(**options)


def test_missing_files_of_items_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"data.root={tmp_path}: FashionMNIST's IDX files are missing"):
        splits(items="fashion_mnist", root=str(tmp_path))
