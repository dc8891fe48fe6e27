"""Folders of 48×80 colour pictures and of images with five channels, from training to export, by the real programs."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_diffusion.data.archive import unpacked
from lightning_diffusion.data.decoding import MEMORY, UnreadableImage, image_shape, read_image
from lightning_diffusion.data.external_images import read_images
from lightning_diffusion.data.image_files import image_files
from lightning_diffusion.data.image_folder import ImageFolder
from src.evaluate import main as evaluate
from src.export import main as export
from src.sample import main as sample
from src.train import main as train
from tests.command import in_process
from tests.data.hostile import little_memory, npy, zipped
from tests.runs import TINY
from tests.test_mistakes import check_one_line

RUN = [
    *TINY, "data=image_folder", "data.root=data", "data.num_workers=0", "data.val_fraction=0.5", "trainer.max_steps=2",
    "callbacks.samples.num_samples=4", "backbone.attention_resolutions=[]", "hydra.run.dir=run",
]  # fmt: skip
MODEL = "ckpt_path=run/checkpoints/last.ckpt"
FEW = ["sampler.num_steps=1"]


def done(main, *words, cwd):
    status, out, err = in_process(main, *words, cwd=cwd)
    assert status == 0, err
    return out


def write(folder, count, shape, ending):
    """Random images of two classes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        (path := folder / "ab"[i % 2] / f"{i}{ending}").parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        np.save(path, pixels) if ending == ".npy" else Image.fromarray(pixels).save(path)
    return folder


def inpainted(picture, folder):
    """The first picture with its left half filled in, (H, W, C)."""
    words = ["edit=inpaint", f"images=[{picture}]", "mask=left", "edit.num_steps=1", "edit.jump=1", "label=0"]
    done(sample, MODEL, *words, *FEW, "output_dir=edited", cwd=folder)
    return np.load(folder / "edited" / "samples.npz")["images"][0]


@pytest.mark.slow
def test_48_by_80_in_colour(tmp_path):
    """Trained, sampled, filled in, scored and exported for diffusers and as one file."""
    pictures = write(tmp_path / "data", 40, (48, 80, 3), ".png")
    scored = ["callbacks=scores", "metrics.steps=10", "metrics.cache_dir=cache"]
    done(train, *RUN, *scored, "data.image_size=[48,80]", cwd=tmp_path)
    assert "fd_classifier" in json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]
    done(sample, MODEL, *FEW, "num_samples=4", "output_dir=drawn", cwd=tmp_path)
    assert np.load(tmp_path / "drawn" / "samples.npz")["images"].shape == (4, 48, 80, 3)
    given = np.asarray(Image.open(pictures / "a" / "0.png")).astype(int)
    edited = inpainted("data/a/0.png", tmp_path).astype(int)
    assert abs(edited[:, 40:] - given[:, 40:]).max() <= 1
    assert abs(edited[:, :40] - given[:, :40]).max() > 20
    done(evaluate, MODEL, *FEW, *scored[1:], "num_samples=16", "output_dir=scored", cwd=tmp_path)
    assert json.loads((tmp_path / "scored" / "metrics.json").read_text())["fd_classifier"]["value"] > 0
    done(export, MODEL, "output_dir=pipeline", cwd=tmp_path)
    assert json.loads((tmp_path / "pipeline" / "unet" / "config.json").read_text())["sample_size"] == [48, 80]
    done(export, MODEL, "format=safetensors", "output_dir=file", cwd=tmp_path)


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """A run on arrays of five channels."""
    folder = tmp_path_factory.mktemp("five")
    write(folder / "data", 40, (8, 12, 5), ".npy")
    done(train, *RUN, "data.channels=5", "data.image_size=[8,12]", cwd=folder)
    return folder


def test_five_channels(five):
    """A picture of five channels shows them in a row, in grey."""
    done(sample, MODEL, *FEW, "num_samples=4", "output_dir=drawn", cwd=five)
    drawn = np.load(five / "drawn" / "samples.npz")["images"]
    assert drawn.shape == (4, 8, 12, 5)
    picture = np.asarray(Image.open(five / "drawn" / "grid.png"))
    factor = picture.shape[1] // (2 * 5 * 12 + 1)
    row = picture[: 8 * factor : factor, : 60 * factor : factor]
    assert np.array_equal(row, np.concatenate(list(np.moveaxis(drawn[0], -1, 0)), axis=1))
    given, edited = np.load(five / "data" / "a" / "0.npy").astype(int), inpainted("data/a/0.npy", five).astype(int)
    assert abs(edited[:, 6:] - given[:, 6:]).max() <= 1
    assert abs(edited[:, :6] - given[:, :6]).max() > 20


@pytest.mark.slow
def test_five_channels_are_scored_and_exported(five):
    words = ["num_samples=16", "metrics.steps=10", "metrics.cache_dir=cache"]
    done(evaluate, MODEL, *FEW, *words, "output_dir=scored", cwd=five)
    assert json.loads((five / "scored" / "metrics.json").read_text())["fd_classifier"]["value"] > 0
    done(evaluate, "images=data", "reference=data", *words[1:], "output_dir=compared", cwd=five)
    assert json.loads((five / "compared" / "metrics.json").read_text())["fd_classifier"]["value"] == pytest.approx(0)
    done(export, MODEL, "output_dir=pipeline", cwd=five)
    assert json.loads((five / "pipeline" / "unet" / "config.json").read_text())["in_channels"] == 5


def test_arrays_pages_and_bands_give_the_same_channels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 4), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    np.savez_compressed(tmp_path / "b.npz", any_name=pixels)
    pages = [Image.fromarray(pixels[..., c]) for c in range(4)]
    pages[0].save(tmp_path / "c.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(pixels, "RGBA").save(tmp_path / "d.png")
    Image.fromarray(pixels, "CMYK").save(tmp_path / "e.tif")
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    for name in ("a.npy", "b.npz", "c.tif", "d.png", "e.tif"):
        assert torch.equal(read_image(tmp_path / name, (4, 8, 12)), expected), name
    for c in range(4):  # resized and cropped as a grey picture is
        pages[c].save(tmp_path / "grey.png")
        for name in ("a.npy", "c.tif", "d.png"):
            assert torch.equal(
                read_image(tmp_path / name, (4, 16, 16))[c], read_image(tmp_path / "grey.png", (1, 16, 16))[0]
            )
    np.save(tmp_path / "a.npy", pixels[..., 0])
    assert torch.equal(read_image(tmp_path / "a.npy", (1, 8, 12)), expected[:1])
    assert image_shape(tmp_path / "a.npy") == (1, 8, 12)


def test_arrays_are_read_where_there_is_no_picture(tmp_path):
    write(tmp_path / "a", 4, (8, 12, 5), ".npy")
    assert [path.suffix for path in image_files(tmp_path)] == [".npy"] * 4
    assert read_images(tmp_path, "images")[torch.arange(4)][0].shape == (4, 5, 8, 12)
    write(tmp_path / "b", 2, (8, 12, 3), ".png")
    assert [path.suffix for path in image_files(tmp_path)] == [".png"] * 2


def test_an_archive_of_arrays(tmp_path):
    folder = write(tmp_path / "data", 4, (8, 12, 5), ".npy")
    content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.npy")}
    (tmp_path / "data.zip").write_bytes(zipped(contents=content))
    assert len(image_files(unpacked(tmp_path / "data.zip", str(tmp_path / "cache")))) == 4
    data = ImageFolder(
        str(tmp_path / "data.zip"), channels=5, image_size=[8, 12], batch_size=2, cache_dir=str(tmp_path / "cache")
    )
    data.setup()
    assert data.splits["train"][torch.arange(3)][0].shape == (3, 5, 8, 12)


def as_npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def as_npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


WRONG = {  # the name of the file, its content, and the reason
    "float": (
        "a.npy",
        lambda: as_npy(zeros(8, 12, 5, dtype=np.float32)),
        "it holds 8×12×5 float32; H×W×C or H×W",
    ),
    "sixteen-bits": ("a.npy", lambda: as_npy(zeros(8, 12, 5, dtype=np.uint16)), "it holds 8×12×5 uint16"),
    "many-images": ("a.npy", lambda: as_npy(zeros(2, 8, 12, 5)), "it holds 2×8×12×5 uint8"),
    "other-channels": ("a.npy", lambda: as_npy(zeros(8, 12, 4)), "it has 4 channels, not 5"),
    "channels-first": ("a.npy", lambda: as_npy(zeros(5, 8, 12)), "it has 12 channels, not 5"),
    "two-arrays": ("a.npz", lambda: as_npz(a=zeros(8, 12, 5), b=zeros(8, 12, 5)), "it holds 2 arrays; one image"),
    "objects": ("a.npy", lambda: as_npy(np.array([open])), "a.npy holds object"),
    "fortran": ("a.npy", lambda: as_npy(np.asfortranarray(zeros(8, 12, 5))), "in Fortran order"),
    "cut": ("a.npy", lambda: as_npy(zeros(8, 12, 5))[:-9], "holds 471 bytes, but its header declares 480"),
    "empty": ("a.npy", lambda: b"", ""),
    "promises-much": ("a.npy", lambda: npy((10**5, 10**5, 5)), f"1 to {MEMORY // 4 * 3:,} are allowed"),
    "a-grey-picture": ("a.png", None, "it has 1 channel, not 5"),
    "two-pages": ("a.tif", None, "it has 2 channels, not 5"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line(tmp_path, name):
    file, content, message = WRONG[name]
    path = tmp_path / "data" / file
    path.parent.mkdir()
    picture = Image.new("L", (12, 8))
    if content is not None:
        path.write_bytes(content())
    elif file == "a.png":
        picture.save(path)
    else:
        picture.save(path, save_all=True, append_images=[picture])
    with little_memory(), pytest.raises(UnreadableImage) as caught:
        read_image(path, (5, 8, 12))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if name in ("float", "two-pages"):
        (empty := tmp_path / "empty").mkdir()
        words = [*RUN, "data.channels=5", "data.image_size=[8,12]", f"data.root={path.parent}"]
        status, _, err = in_process(train, *words, cwd=empty)
        check_one_line(status, err, message, empty)


def test_pages_of_different_sizes_are_refused(tmp_path):
    first, second = Image.new("L", (12, 8)), Image.new("L", (12, 9))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    with pytest.raises(UnreadableImage, match="page 2 is not a grey image of 8×12 pixels"):
        read_image(tmp_path / "a.tif", (2, 8, 12))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "backbone=dit data.image_size=[7,11]",
            "backbone.patch_size=2 and data.image_size=[7,11]: patches do",
        ),
        (
            "backbone=unet_lecture data.image_size=[3,80]",
            "backbone.depth=2 and data.image_size=[3,80]: the image",
        ),
    ],
)
def test_a_network_that_cannot_take_the_size_says_so(tmp_path, words, message):
    write(tmp_path / "data", 4, (8, 12, 5), ".npy")
    (empty := tmp_path / "empty").mkdir()
    given = ["data=image_folder", f"data.root={tmp_path}/data", "data.channels=5", "callbacks=default", "trainer=cpu"]
    status, _, err = in_process(train, *given, *words.split(), cwd=empty)
    check_one_line(status, err, message, empty)
