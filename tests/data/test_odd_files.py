"""Pipes, devices, sockets, links to nowhere and names that are not UTF-8, wherever data is read: a line, no wait."""

import contextlib
import os
import re
import socket

import pytest
import torch

from lightning_diffusion.data.archive import cache_folder, unpacked
from lightning_diffusion.data.cifar10 import CIFAR10
from lightning_diffusion.data.decoding import read_image
from lightning_diffusion.data.external_images import read_images
from lightning_diffusion.data.image_folder import ImageFolder
from lightning_diffusion.data.mnist import MNIST
from tests.data.hostile import SMALL, little_time, tarred, tree
from tests.files import write_cifar10, write_mnist

OPTIONS = {"channels": 3, "image_size": 8, "num_classes": None, "batch_size": 2}
GREY = {"channels": 1, "image_size": 28, "num_classes": 10, "batch_size": 4}
NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture(autouse=True)
def no_hang():
    with little_time():
        yield


def bound(path):
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:  # a socket's path must be short
        made.bind(path.name)


ODD = {
    "pipe": os.mkfifo,
    "socket": bound,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to a pipe": lambda path: (os.mkfifo(f"{path}.p"), path.symlink_to(f"{path}.p")),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "circle": lambda path: path.symlink_to(path.name),
}
odd = pytest.mark.parametrize("make", ODD.values(), ids=ODD)


def folder_of(path, count=4):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (path / f"{i}.png").write_bytes(SMALL)
    return path


@odd
def test_among_images_it_is_named_or_left_out_and_counted(tmp_path, make, capfd):
    make(folder_of(tmp_path / "d") / "x.png")
    with pytest.raises(
        ValueError, match=r"data.root=\S+: \S+/x.png: not a readable image \(.*\); .*unreadable=skip"
    ) as e:
        ImageFolder(str(tmp_path / "d"), **OPTIONS).setup()
    assert len(str(e.value).splitlines()) == 1
    data = ImageFolder(str(tmp_path / "d"), unreadable="skip", **OPTIONS)
    data.setup()
    assert len(data.paths) == 4
    assert "1 of 5 images are unreadable, left out: x.png" in capfd.readouterr().err


@odd
def test_in_place_of_a_folder_or_an_archive(tmp_path, make):
    for name in ("x", "x.zip", "x.tar.gz", "x.npz"):
        make(tmp_path / name)
        with pytest.raises(FileNotFoundError, match=r"data.root=\S+: no such folder"):
            ImageFolder(str(tmp_path / name), **OPTIONS).setup()
        with pytest.raises(FileNotFoundError, match=r"reference=\S+: no such file or folder"):
            read_images(tmp_path / name, "reference")
    with pytest.raises(ValueError, match="not a readable image"):
        read_image(tmp_path / "x", (1, 8, 8))


@odd
def test_among_given_images(tmp_path, make):
    make(folder_of(tmp_path / "d") / "x.png")
    with pytest.raises(ValueError, match=r"images=\S+: \S+/x.png: not a readable image"):
        read_images(tmp_path / "d", "images")


@odd
def test_in_place_of_mnist_s_or_cifar_10_s_files(tmp_path, make, monkeypatch):
    write_mnist(tmp_path / "m")
    (tmp_path / "m" / "train-images-idx3-ubyte").unlink()
    make(tmp_path / "m" / "train-images-idx3-ubyte")
    with pytest.raises(FileNotFoundError, match=r"MNIST's IDX files are missing; give data=mnist .*can download them"):
        MNIST(str(tmp_path / "m"), **GREY).setup()
    write_cifar10(tmp_path, monkeypatch)
    data = CIFAR10(str(tmp_path), **(OPTIONS | {"image_size": 32}))
    data.prepare_data()
    batch = next((tmp_path / "cifar-10-batches-py").glob("data_batch*"))
    batch.unlink()
    make(batch)
    with pytest.raises(FileNotFoundError, match=r"data.root=\S+: cifar-10-batches-py is missing.*can download them"):
        data.setup()


def test_names_that_are_not_utf_8_are_names(tmp_path, capfd):
    root = folder_of(tmp_path / NOT_UTF8 / NOT_UTF8)
    folder_of(tmp_path / NOT_UTF8 / "b")
    (root / f"{NOT_UTF8}.png").write_bytes(SMALL)
    (root / f"{NOT_UTF8}\x1b[31m\n.png").write_bytes(b"none")
    data = ImageFolder(str(tmp_path / NOT_UTF8), unreadable="skip", **(OPTIONS | {"num_classes": 2}))
    data.setup()
    assert len(data.paths) == 9
    told = capfd.readouterr().err
    assert re.search(r"left out: caf\\udce9/caf\\udce9\\x1b\[31m\\n.png$", told)
    assert read_images(tmp_path / NOT_UTF8 / "b", "images").fingerprint()


def test_names_in_an_archive_that_are_not_utf_8(tmp_path):
    archive = tmp_path / f"{NOT_UTF8}.tar.gz"
    archive.write_bytes(tarred(f"d/{NOT_UTF8}/1.png", f"d/{NOT_UTF8}/2.png", f"d/b/{NOT_UTF8}.png"))
    data = ImageFolder(str(archive), cache_dir=str(tmp_path / "cache"), **(OPTIONS | {"num_classes": 2}))
    data.setup()
    assert {path.parent.name for path in data.paths} == {NOT_UTF8, "b"}


def test_setup_fetches_nothing_and_writes_nothing_beside_the_cache(tmp_path, monkeypatch):
    def fetch(*args, **kwargs):
        raise AssertionError("fetched")

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    write_cifar10(tmp_path / "c", monkeypatch)
    root = folder_of(tmp_path / "i")
    before = tree(tmp_path)
    for data, remedy in (
        (MNIST(str(tmp_path / "none"), "FashionMNIST", **GREY), "data=mnist data.dataset=FashionMNIST data.root=DIR"),
        (CIFAR10(str(tmp_path / "c"), **(OPTIONS | {"image_size": 32})), "data=cifar10 data.root=DIR"),  # still packed
    ):
        with pytest.raises(FileNotFoundError, match=f"data.root=.*; give {remedy}, which can download them"):
            data.setup()
    ImageFolder(str(root), **OPTIONS).setup()
    assert tree(tmp_path) == before


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tarred("a.png", "b.png"))
    monkeypatch.setenv("LIGHTNING_DIFFUSION_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    assert cache_folder(str(tmp_path / "own")) == tmp_path / "own"
    data = ImageFolder(str(archive), **OPTIONS)
    data.setup()
    assert data.folder.is_relative_to(tmp_path / "cache")
    assert unpacked(archive, None) == data.folder
    images, _ = data.splits["train"][torch.arange(1)]
    assert images.shape == (1, 3, 8, 8)
    monkeypatch.delenv("LIGHTNING_DIFFUSION_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lightning-diffusion"
