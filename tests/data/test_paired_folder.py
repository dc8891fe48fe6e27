"""A folder of images with masks or second images: partners, values, geometry, and every mistake in a line."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_diffusion.codecs.masks import IGNORED
from lightning_diffusion.data import mask_files
from lightning_diffusion.data.dataset import Mirrored
from lightning_diffusion.data.image_folder import ImageFolder
from lightning_diffusion.data.paired_folder import PairedFolder
from src.train import main as train
from tests.command import in_process
from tests.data.hostile import zipped
from tests.test_mistakes import check_one_line

OPTIONS = {"channels": 1, "image_size": [8, 12], "num_classes": None, "batch_size": 2}
SIZES = [(8, 12), (16, 24), (10, 30), (21, 9)]
COUNT, K = 12, 3
RUN = [
    "model=segmentation", "data=paired_folder", "data.channels=1", "data.image_size=[8,12]", "data.num_workers=0",
    "data.mask_classes=3", "data.batch_size=4", "backbone.channels=4", "backbone.depth=1", "trainer=cpu",
    "trainer.max_steps=2", "logger=csv", "callbacks=default",
]  # fmt: skip


def put(path, array, palette=False):
    """Write an array as a picture, or as .npy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        return np.save(path, array)
    picture = Image.fromarray(array)
    if palette:
        picture.putpalette(list(range(0, 240, 3)))
    picture.save(path)


def masks(i):
    """The classes of mask i."""
    return np.random.default_rng(i).integers(0, K, SIZES[i % len(SIZES)], dtype=np.uint8)


def grey(*shape):
    return np.zeros(shape, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Images of several sizes in two subfolders, each 40 times its mask, which is grey or has a palette."""
    root = tmp_path / "set"
    for i in range(COUNT):
        name = f"{'ab'[i % 2]}/{i:02d}"
        put(root / "images" / f"{name}.png", 40 * masks(i))
        put(root / "masks" / f"{name}.png", masks(i), palette=i % 3 == 0)
    return root


def made(root, **options):
    data = PairedFolder(str(root), **({"mask_classes": K} | OPTIONS | options))
    data.setup()
    return data


def everything(dataset):
    return dataset.sample(torch.arange(len(dataset)))


def test_each_image_has_its_own_mask(folder):
    """Where a file has the size of the network's images, pixel by pixel; elsewhere after the same resizing."""
    data = made(folder)
    assert [len(data.splits[split]) for split in ("train", "val")] == [11, 1]
    for split in data.splits.values():
        images, labels, targets = everything(split)[:3]
        assert labels is None
        assert (images.dtype, images.shape[1:]) == (torch.uint8, (1, 8, 12))
        assert (targets.dtype, targets.shape[1:]) == (torch.uint8, (8, 12))
        for path, image, mask in zip(split.images.paths, images[:, 0], targets, strict=True):
            i = int(path.stem)
            if SIZES[i % len(SIZES)] == (8, 12):
                assert np.array_equal(mask, masks(i))
                assert torch.equal(image, 40 * mask)
            assert set(mask.unique().tolist()) <= set(range(K))


@pytest.mark.parametrize(
    ("size", "whole", "left_out"),  # as in the test of images in tests/test_image_size.py
    [
        ((20, 30), (16, 24), (0, 0)),
        ((40, 25), (38, 24), (11, 0)),
        ((16, 50), (16, 50), (0, 13)),
        ((8, 8), (24, 24), (4, 0)),
    ],
)
def test_a_mask_is_resized_and_cropped_as_its_image_by_the_nearest_pixel(tmp_path, size, whole, left_out):
    mask = np.random.default_rng(0).integers(0, K, size, dtype=np.uint8)
    for i in range(2):
        put(tmp_path / "images" / f"{i}.png", grey(*size))
        put(tmp_path / "masks" / f"{i}.png", mask, palette=True)
    resized, (y, x) = np.asarray(Image.fromarray(mask).resize(whole[::-1], Image.Resampling.NEAREST)), left_out
    targets = everything(made(tmp_path, image_size=[16, 24]).splits["train"]).targets
    assert np.array_equal(targets[0], resized[y : y + 16, x : x + 24])


def test_the_same_images_are_held_out_as_by_image_folder(folder):
    ours, theirs = made(folder), ImageFolder(str(folder / "images"), **OPTIONS)
    theirs.setup()
    for split in ("train", "val"):
        assert ours.splits[split].images.paths == theirs.splits[split].paths


@pytest.mark.parametrize("ending", [".png", ".npy", ".bmp"])
def test_levels_and_unknown_pixels(tmp_path, ending):
    values = np.array([[0, 255, 7], [255, 0, 0]], np.uint8)
    for i in range(2):
        put(tmp_path / "images" / f"{i}.png", np.zeros((2, 3), np.uint8))
        put(tmp_path / "masks" / f"{i}{ending}", values)
    data = made(tmp_path, mask_classes=2, levels=[0, 255], ignore=7, image_size=[2, 3])
    assert everything(data.splits["train"]).targets.tolist() == [[[0, 1, IGNORED], [1, 0, 0]]]
    data = made(tmp_path, mask_classes=8, ignore=255, image_size=[2, 3])
    assert everything(data.splits["train"]).targets.tolist() == [[[0, IGNORED, 7], [IGNORED, 0, 0]]]


def test_black_and_white_is_the_classes_0_and_1(tmp_path):
    values = np.array([[True, False], [False, False]])
    for i in range(2):
        put(tmp_path / "images" / f"{i}.png", np.zeros((2, 2), np.uint8))
        put(tmp_path / "masks" / f"{i}.png", values)
    for levels in (None, [0, 255]):
        data = made(tmp_path, mask_classes=2, levels=levels, image_size=2)
        assert everything(data.splits["val"]).targets.tolist() == [[[1, 0], [0, 0]]]


def test_second_images_are_targets_with_their_own_channels(folder):
    """Here of half the size; both are scaled to the same shape."""
    for i in range(COUNT):
        H, W = SIZES[i % len(SIZES)]
        array = np.full((H // 2, W // 2, 3), (10, 20, i), np.uint8)
        put(folder / "small" / f"{'ab'[i % 2]}/{i:02d}.bmp", array)
    data = made(folder, mask_classes=None, targets="small")
    assert data.mask_classes is None
    train = data.splits["train"]
    targets = everything(train).targets
    assert targets.shape == (11, 3, 8, 12)
    assert targets[:, :, 0, 0].tolist() == [[10, 20, int(path.stem)] for path in train.images.paths]
    grey_targets = made(folder, mask_classes=None, targets="small", target_channels=1).splits["val"]
    assert everything(grey_targets).targets.shape == (1, 1, 8, 12)


def test_mirror_images_have_mirrored_targets(folder):
    train = made(folder).splits["train"]
    both = everything(Mirrored(train))
    assert torch.equal(both.targets[len(train) :], everything(train).targets.flip(-1))


def test_an_archive_and_folders_elsewhere(folder, tmp_path):
    names = [path.relative_to(tmp_path) for path in folder.rglob("*.png")]
    archive = tmp_path / "set.zip"
    archive.write_bytes(zipped(contents={str(name): (tmp_path / name).read_bytes() for name in names}))
    expected = everything(made(folder).splits["train"])
    packed = everything(made(archive, cache_dir=str(tmp_path / "cache")).splits["train"])
    (folder / "masks").rename(tmp_path / "elsewhere")
    apart = everything(made(folder, targets=str(tmp_path / "elsewhere")).splits["train"])
    for found in (packed, apart):
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.targets, expected.targets)


def test_skip_leaves_out_pairs_of_which_one_is_unreadable(folder, capfd):
    whole = {path.stem for path in (folder / "images").rglob("*.png")}
    (folder / "images" / "a" / "02.png").write_bytes(b"no")
    (folder / "masks" / "b" / "05.png").write_bytes((folder / "masks" / "b" / "05.png").read_bytes()[:-40])
    data = made(folder, unreadable="skip")
    assert {pair.image.stem for pair in data.pairs} == whole - {"02", "05"}
    assert "2 of 12 images are unreadable, left out: a/02.png, b/05.png" in capfd.readouterr().err


def test_a_loader_process_reads_the_same(folder):
    train = made(folder).splits["train"]
    expected = everything(train)
    assert torch.equal(everything(pickle.loads(pickle.dumps(train))).targets, expected.targets)


def test_a_segmentation_network_trains_and_is_scored_on_them(folder, tmp_path):
    status, out, err = in_process(train, *RUN, f"data.root={folder}", "hydra.run.dir=run", cwd=tmp_path)
    assert status == 0, err
    assert "11 images, 1 held out, 8×12×1" in out
    assert 0 <= json.loads((tmp_path / "run" / "metrics.json").read_text())["val/mean_iou"] <= 1
    assert (tmp_path / "run" / "samples" / "predictions.png").is_file()


MISTAKES = {  # what is done to the folder, further words, and the message
    "no-root": (lambda root: None, "data.root=nowhere", "data.root=nowhere: no such folder"),
    "no-images": (lambda root: (root / "images").rename(root / "i"), "", "data.images=images: no such folder in data."),
    "no-targets": (lambda root: None, "data.targets=labels", "data.targets=labels: no such folder in data.root="),
    "the-same-folder": (lambda root: None, "data.targets=images", "data.targets=images: the same folder as data"),
    "nested-folders": (lambda root: None, "data.images=.", "data.targets=masks: not apart from data.images=."),
    "empty-folders": (
        lambda root: [path.unlink() for path in root.rglob("*.png")], "", "data.images=images: 0 images below it",
    ),
    "no-mask": (
        lambda root: [(root / "masks" / "a" / f"{i}.png").unlink() for i in ("04", "06")], "",
        "data.images=images: 2 of 12 files have no partner in data.targets=masks, first a/04.png; add a file of the",
    ),
    "no-image": (
        lambda root: (root / "images" / "b" / "03.png").unlink(), "",
        "data.targets=masks: 1 of 12 files have no partner in data.images=images, first b/03.png",
    ),
    "ambiguous": (
        lambda root: put(root / "masks" / "a" / "00.bmp", masks(0)), "",
        "data.targets=masks: 00.png and 00.bmp have the same name, a/00, so their partner is ambiguous; remove or",
    ),
    "another-size": (
        lambda root: put(root / "masks" / "a" / "00.png", grey(8, 11)), "",
        "00.png: the mask is 8×11, its image 00.png 8×12 (H×W); save it in the size of the image",
    ),
    "beyond-the-classes": (
        lambda root: put(root / "masks" / "a" / "00.png", masks(0) + 1), "",
        "00.png: the value 3 is not a class of data.mask_classes=3, 0 to 2; set data.mask_classes=4, or data.ignore=3",
    ),
    "beyond-a-palette": (
        lambda root: put(root / "masks" / "a" / "00.png", masks(0) * 3, palette=True), "",
        "00.png: the value 6 is not a class of data.mask_classes=3",
    ),
    "not-a-level": (lambda root: None, "data.levels=[0,1,9]", "the value 2 is not in data.levels=[0,1,9]; add it"),
    "colour": (
        lambda root: put(root / "masks" / "a" / "00.png", grey(8, 12, 3)), "",
        "00.png: a mask in colour or with transparency (mode RGB); save the class numbers as palette indices",
    ),
    "sixteen-bits": (
        lambda root: put(root / "masks" / "a" / "00.png", np.zeros((8, 12), np.uint16)), "",
        "00.png: a mask of more than 8 bits a pixel; save it with 8",
    ),
    "jpeg": (
        lambda root: put((root / "masks" / "a" / "00.png").rename(root / "masks" / "a" / "00.jpg"), masks(0)), "",
        "00.jpg: a mask in the format JPEG, which can change the values of pixels; save it as PNG",
    ),
    "unreadable-mask": (
        lambda root: (root / "masks" / "a" / "00.png").write_bytes(b"no"), "",
        "a/00.png: not a readable image (none of PNG, JPEG, WEBP, BMP, GIF, TIFF); repair, shrink or remove it, or le",
    ),
    "another-aspect-ratio": (
        lambda root: put(root / "masks" / "a" / "00.png", grey(8, 30)), "data.mask_classes=null model=diffusion",
        "00.png: 8×30, its image 00.png 8×12 (H×W); the two must have the same aspect ratio",
    ),
    "no-classes-given": (lambda root: None, "data.mask_classes=???", "data.mask_classes: missing; give data.mask_c"),
    "too-few-classes": (lambda root: None, "data.mask_classes=1", "data.mask_classes=1: choose a number from 2 to 255"),
    "levels-of-other-classes": (lambda root: None, "data.levels=[0,255]", "data.levels=[0, 255]: give a different"),
    "a-level-of-9-bits": (lambda root: None, "data.levels=[0,1,256]", "data.levels: 256 is not the value of a"),
    "an-ignored-class": (lambda root: None, "data.ignore=2", "data.ignore=2: this is the value of a class; choose"),
    "levels-without-masks": (
        lambda root: None, "data.mask_classes=null data.levels=[0,1] model=diffusion", "data.levels=[0, 1]: only for",
    ),
    "no-masks-to-learn": (lambda root: None, "data.mask_classes=null", "model=segmentation: these data have no masks"),
    "classes-of-images": (lambda root: None, "data.num_classes=2", "data.num_classes=2: pairs have no classes; choose"),
    "no-channels": (
        lambda root: None, "data.mask_classes=null data.target_channels=0 model=diffusion", "data.target_channels=0",
    ),
    "too-small-for-the-network": (
        lambda root: None, "backbone.depth=4", "backbone.depth=4 and data.image_size=[8,12]: the image is too small",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(folder, tmp_path, name):
    spoil, more, message = MISTAKES[name]
    spoil(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    given = [*RUN, f"data.root={folder}", *more.split()]
    words = dict(word.split("=", 1) for word in given)  # the last of a key counts
    if words["model"] == "diffusion":
        words = {key: value for key, value in words.items() if not key.startswith("backbone")}
    status, _, err = in_process(train, *(f"{key}={value}" for key, value in words.items()), cwd=empty)
    check_one_line(status, err, message, empty)


def test_a_mask_that_changes_during_the_run_is_named(folder, monkeypatch):
    """It is a wrong label, which ends a run with its line."""
    data = made(folder)
    path = data.splits["train"].targets.paths[0]
    put(path, np.full(np.asarray(Image.open(path)).shape, 9, np.uint8))
    with pytest.raises(mask_files.WrongTarget, match=f"{path.name}: the value 9 is not a class"):
        data.splits["train"].sample(torch.arange(1))
