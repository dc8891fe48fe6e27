"""Images that are not square, and of any number of channels, by the real programs."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lightning_diffusion.app.cli import CONF
from lightning_diffusion.checkpoints.loading import check_data, load
from lightning_diffusion.checkpoints.model_file import LARGEST
from lightning_diffusion.data.array_file import ArrayFile
from lightning_diffusion.data.decoding import read_image
from lightning_diffusion.data.image_folder import ImageFolder
from src.evaluate import main as evaluate
from src.export import main as export
from src.sample import main as sample
from src.summary import main as summary
from src.train import main as train
from tests.command import in_process
from tests.runs import TINY
from tests.test_mistakes import check_one_line

H, W = 16, 24
RUN = [*TINY, "schedule.T=20", "trainer.max_steps=4", "callbacks.samples.num_samples=4", "hydra.run.dir=run"]
DRAW = ["num_samples=4", "sampler.num_steps=2"]


def ok(main, *words, cwd):
    status, out, err = in_process(main, *words, cwd=cwd)
    assert status == 0, err
    return out


def samples(folder):
    return np.load(folder / "samples.npz")["images"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of [16, 24] trained on pictures of two classes and several shapes."""
    path, rng = tmp_path_factory.mktemp("sizes"), np.random.default_rng(0)
    for i in range(60):
        picture = path / "pictures" / "ab"[i % 2] / f"{i}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, [(20, 30), (16, 50), (40, 25)][i % 3], dtype=np.uint8)).save(picture)
    words = ["data=image_folder", "data.root=pictures", "data.channels=1", f"data.image_size=[{H},{W}]"]
    ok(train, *RUN, *words, "data.num_workers=0", "data.val_fraction=0.5", cwd=path)
    return path


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("channels"), np.random.default_rng(0)
    np.savez(path / "a.npz", images=rng.integers(0, 256, (40, H, W, 2), dtype=np.uint8), labels=np.arange(40) % 2)
    words = ["data=npz", "data.root=a.npz", "data.channels=2", f"data.image_size=[{H},{W}]", "data.num_classes=2"]
    ok(
        train,
        *RUN,
        *words,
        "callbacks=scores",
        "metrics.steps=10",
        "metrics.cache_dir=cache",
        "data.val_fraction=0.5",
        cwd=path,
    )
    return path


def test_pictures_that_are_not_square(folder, tmp_path):
    model = f"ckpt_path={folder}/run/checkpoints/last.ckpt"
    ok(sample, model, *DRAW, "output_dir=drawn", cwd=tmp_path)
    drawn = samples(tmp_path / "drawn")
    assert drawn.shape == (4, H, W, 1)

    ok(export, model, "format=safetensors", "output_dir=exported", cwd=tmp_path)
    exported = "ckpt_path=exported/denoiser.safetensors"
    ok(sample, exported, *DRAW, "output_dir=again", cwd=tmp_path)
    assert np.array_equal(samples(tmp_path / "again"), drawn)

    picture = folder / "pictures" / "a" / "0.png"  # 20×30, which [16, 24] keeps whole
    edit = [
        "edit=inpaint",
        f"images=[{picture}]",
        "mask=left",
        "edit.num_steps=2",
        "edit.jump=1",
        "sampler.num_steps=2",
        "label=0",
    ]
    ok(sample, exported, *edit, "output_dir=edited", cwd=tmp_path)
    edited = samples(tmp_path / "edited")[0, :, :, 0].astype(int)
    small = np.asarray(Image.open(picture).resize((W, H), Image.Resampling.BICUBIC)).astype(int)
    assert abs(edited[:, W // 2 :] - small[:, W // 2 :]).max() <= 1
    assert abs(edited[:, : W // 2] - small[:, : W // 2]).max() > 20

    data = ["data=image_folder", f"data.root={folder}/pictures", "data.channels=1", f"data.image_size=[{H},{W}]"]
    few = ["num_samples=20", "metrics.steps=10", "sampler.num_steps=1", "output_dir=scored", "data.val_fraction=0.5"]
    ok(evaluate, exported, *data, *few, f"metrics.cache_dir={tmp_path}/cache", cwd=tmp_path)
    assert json.loads((tmp_path / "scored" / "metrics.json").read_text())["fd_classifier"]["value"] > 0

    further = ["pretrained=exported/denoiser.safetensors", "data.num_workers=0", "optimizer.lr=0"]
    ok(train, *RUN, *data, *further, cwd=tmp_path)  # the same weights
    ok(sample, "ckpt_path=run/checkpoints/last.ckpt", *DRAW, "output_dir=further", cwd=tmp_path)
    assert np.array_equal(samples(tmp_path / "further"), drawn)

    status, _, err = in_process(evaluate, exported, *data[:3], "data.image_size=16", *few, cwd=tmp_path)
    message = "data.image_size=16: this model was made for [16,24]; set data.image_size=[16,24]"
    assert (status, message in err, len(err.splitlines())) == (2, True, 1), err


def test_a_summary_names_both_sides(tmp_path):
    assert f"UNet on {H}×{W}×1" in ok(summary, *TINY, f"data.image_size=[{H},{W}]", cwd=tmp_path)


def test_a_folder_is_cropped_to_the_shape_wanted(folder):
    data = ImageFolder(str(folder / "pictures"), channels=1, image_size=[H, W], num_classes=2, batch_size=4)
    data.setup()
    images, _ = data.splits["train"][torch.arange(len(data.splits["train"]))]
    assert images.shape[1:] == data.shape == (1, H, W)
    with pytest.raises(ValueError, match=r"0.png: not a readable image \(it has 1 channel, not 2\)"):
        ImageFolder(str(folder), channels=2, image_size=8, batch_size=4).setup()


@pytest.mark.parametrize(
    ("picture", "whole", "left_out"),  # H×W of the picture, of what just covers 16×24, and the rows and columns cut off
    [
        ((20, 30), (16, 24), (0, 0)),
        ((40, 25), (38, 24), (11, 0)),
        ((16, 50), (16, 50), (0, 13)),
        ((8, 8), (24, 24), (4, 0)),
    ],
)
def test_pictures_are_scaled_until_they_cover_and_cropped_in_the_middle(tmp_path, picture, whole, left_out):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, picture, dtype=np.uint8)).save(tmp_path / "a.png")
    resized = np.asarray(Image.open(tmp_path / "a.png").resize(whole[::-1], Image.Resampling.BICUBIC))
    y, x = left_out
    assert np.array_equal(read_image(tmp_path / "a.png", (1, H, W))[0].numpy(), resized[y : y + H, x : x + W])


def test_two_channels(two_channels, tmp_path):
    assert "fd_classifier" in json.loads((two_channels / "run" / "metrics.json").read_text())["scores"]
    model = f"ckpt_path={two_channels}/run/checkpoints/last.ckpt"
    ok(sample, model, *DRAW, "output_dir=drawn", cwd=tmp_path)
    drawn = samples(tmp_path / "drawn")
    assert drawn.shape == (4, H, W, 2)
    picture = np.asarray(Image.open(tmp_path / "drawn" / "grid.png"))
    factor = picture.shape[1] // (2 * 2 * W + 1)
    tiles = picture[::factor, ::factor]
    assert tiles.shape == (2 * H + 1, 2 * 2 * W + 1)
    assert np.array_equal(tiles[:H, :W], drawn[0, :, :, 0])
    assert np.array_equal(tiles[:H, W : 2 * W], drawn[0, :, :, 1])


def test_what_two_channels_cannot_do(two_channels, tmp_path):
    model = f"ckpt_path={two_channels}/run/checkpoints/last.ckpt"
    Image.new("L", (W, H)).save(two_channels / "a.png")
    words = ["edit=inpaint", f"images=[{two_channels}/a.png]", "mask=left", "sampler.num_steps=2", "label=0"]
    status, _, err = in_process(sample, model, *words, cwd=tmp_path)
    check_one_line(
        status, err, f"images: {two_channels}/a.png: not a readable image (it has 1 channel, not 2)", tmp_path
    )
    given = [f"images={two_channels}/a.npz", f"reference={two_channels}/a.npz", "metrics=imagenet_lite"]
    status, _, err = in_process(evaluate, *given, cwd=tmp_path)
    message = "metrics: this extractor takes grey or colour images, not 2 channels; choose metrics=classifier"
    check_one_line(status, err, message, tmp_path)


def test_an_array_is_split_as_it_says(two_channels):
    options = {"channels": 2, "image_size": [H, W], "num_classes": 2, "batch_size": 4}
    data = ArrayFile(str(two_channels / "a.npz"), val_fraction=0.25, **options)
    data.setup()
    parts = [data.splits[split] for split in ("train", "val")]
    assert [len(part) for part in parts] == [30, 10]
    images, labels = (torch.cat(both) for both in zip(*(part[torch.arange(len(part))] for part in parts), strict=True))
    with np.load(two_channels / "a.npz") as file:
        known = {image.tobytes(): label for image, label in zip(file["images"], file["labels"], strict=True)}
    found = {i.permute(1, 2, 0).numpy().tobytes(): int(label) for i, label in zip(images, labels, strict=True)}
    assert found == known
    with pytest.raises(FileNotFoundError, match=r"data.root=nowhere.npz: no such file"):
        ArrayFile("nowhere.npz", **options).setup()
    with pytest.raises(ValueError, match=r"data.image_size=\[24,16\]: these images are 2 × 16 × 24"):
        ArrayFile(str(two_channels / "a.npz"), **{**options, "image_size": [W, H]}).setup()


@pytest.fixture(scope="module")
def with_size(finished, tmp_path_factory):
    """Writes a model's file with another size in it -> its path."""
    path = tmp_path_factory.mktemp("files")
    in_process(export, f"ckpt_path={finished[0]}/checkpoints/last.ckpt", "format=safetensors", f"output_dir={path}/a",
               cwd=path)  # fmt: skip
    source = path / "a" / "denoiser.safetensors"
    with safe_open(source, "pt") as file:
        words = file.metadata()

    def write(size):
        node = json.loads(words["model"])
        node["image_size"] = node["denoiser"]["backbone"]["image_size"] = size
        save_file(load_file(source), path / "b.safetensors", metadata={**words, "model": json.dumps(node)})
        return path / "b.safetensors"

    return write


def test_a_file_may_give_a_square_either_way(with_size):
    shapes = [load(with_size(size)).shape for size in (8, [8, 8], [8, 12])]
    assert shapes == [(1, 8, 8), (1, 8, 8), (1, 8, 12)]
    made_for = load(with_size([8, 8])).file.data
    for size in (8, [8, 8]):
        check_data(OmegaConf.create({"channels": 1, "image_size": size, "num_classes": 10}), made_for)


@pytest.mark.parametrize(
    "size",
    [[8], [8, 0], [8, -8], [8, 8, 8], [8, True], [8, 8.0], [[8], [8]], [8, LARGEST + 1], LARGEST + 1, -8, "8", True, {},
     [8, {"_target_": "os.system"}], [8] * 10**5],
    ids=lambda size: str(size)[:20],
)  # fmt: skip
def test_hostile_sizes_of_a_file(with_size, size):
    with pytest.raises(ValueError, match=r"image_size|whole number|calls") as caught:
        load(with_size(size))
    assert "\n" not in str(caught.value)


def test_configuration_asks_for_no_square():
    assert not [path for path in CONF.rglob("*.yaml") if path.read_text().count("${data.image_size}") > 1]
