"""Images from anywhere: read as they are, or refused with a reason."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_diffusion.data.dataset import InMemory, Mirrored
from lightning_diffusion.data.external_images import read_images


def everything(images):
    return images[torch.arange(len(images))]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_a_folder_in_the_order_of_its_paths(tmp_path):
    grey = np.arange(2 * 5 * 7, dtype=np.uint8).reshape(2, 5, 7)
    save(tmp_path / "b.png", grey[1])
    save(tmp_path / "a" / "z.png", grey[0])
    images, labels = everything(read_images(tmp_path, "images"))
    assert images.tolist() == grey[:, None].tolist()
    assert labels is None


def test_class_folders_are_labels(tmp_path):
    for name in ("cat", "dog", "ant"):
        save(tmp_path / name / "1.png", np.zeros((4, 4), np.uint8))
    assert everything(read_images(tmp_path, "images"))[1].tolist() == [0, 1, 2]


def test_one_coloured_image_makes_all_of_them_colour(tmp_path):
    save(tmp_path / "a.png", np.full((4, 4), 9, np.uint8))
    save(tmp_path / "b.png", np.full((4, 4, 3), (1, 2, 3), np.uint8))
    images, _ = everything(read_images(tmp_path, "images"))
    assert images[:, :, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]


def test_a_turned_image_is_as_large_as_it_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by three quarters
    for format, options in (("png", {}), ("tiff", {}), ("webp", {"lossless": True})):
        folder = tmp_path / format
        folder.mkdir()
        picture = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
        picture.save(folder / f"a.{format}", exif=exif, **options)
        images, _ = everything(read_images(folder, "images"))
        assert images[0, 0].tolist() == [[3, 6], [2, 5], [1, 4]]


@pytest.mark.parametrize("name", ["images", "arr_0"])
@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 5, 7, 1), (3, 5, 7, 3), (3, 5, 7, 2), (3, 5, 7, 4)])
def test_arrays(tmp_path, name, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", **{name: array, "labels": np.array([2, 0, 1])})
    images, labels = everything(read_images(tmp_path / "a.npz", "images"))
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy().reshape(shape), array)
    assert labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 4, 4), np.uint8)}, "must hold an array images or arr_0, uint8"),
        ({"images": np.zeros((2, 4, 4))}, "must hold an array images or arr_0, uint8"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "must hold an array images or arr_0, uint8"),
        ({"images": np.array([open], dtype=object)}, "not a readable .npz file"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3)}, "2 images but 3 labels"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_images(tmp_path / "a.npz", "images")


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"images=.*a.npz: not a readable .npz file"):
        read_images(tmp_path / "a.npz", "images")
    with pytest.raises(ValueError, match=r"images=.*a.npz: not a readable image \(File is not a zip file\)"):
        read_images(tmp_path, "images")
    (tmp_path / "a.npz").rename(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match=r"images=.*: no file below it ends in"):
        read_images(tmp_path, "images")
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"a.png: not a readable image"):
        read_images(tmp_path, "images")


def test_a_fingerprint_is_of_pixels_and_labels_and_their_order(tmp_path):
    images = torch.randint(0, 256, (4, 1, 5, 5), dtype=torch.uint8)
    changed = images.clone()
    changed[2, 0, 3, 3] ^= 1
    sets = [
        InMemory(images), InMemory(changed), InMemory(images.flip(0)), InMemory(images.reshape(4, 1, 25, 1)),
        InMemory(images, torch.arange(4)), InMemory(images, torch.zeros(4, dtype=torch.long)),
        Mirrored(InMemory(images)),
    ]  # fmt: skip
    assert len({each.fingerprint() for each in sets}) == len(sets)
    assert InMemory(images.clone()).fingerprint() == sets[0].fingerprint()
    for i in range(3):
        save(tmp_path / f"{i}.png", images[i, 0].numpy())
    folder = read_images(tmp_path, "images").fingerprint()
    assert folder == read_images(tmp_path, "images").fingerprint()
    save(tmp_path / "1.png", changed[2, 0].numpy())
    assert folder != read_images(tmp_path, "images").fingerprint()
