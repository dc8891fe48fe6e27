"""Arrays in files (.npz, IDX, CIFAR-10's archive): a wrong size, or code to execute, is refused."""

import gzip
import hashlib
import io
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
import torchvision

from lightning_diffusion.data.cifar10 import CIFAR10
from lightning_diffusion.data.external_images import ARRAYS as NAMES
from lightning_diffusion.data.external_images import read_images
from lightning_diffusion.data.idx import read_idx
from lightning_diffusion.data.limited_reader import ENOUGH
from tests.data.hostile import MB, little_memory, npy, npz, tarred, tree
from tests.files import write_cifar10


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


ONE = npy((1, 1, 1), b"\0")
OBJECTS = npy((1,), pickle.dumps([Hostile()]), "|O")


def black(*shape):
    return np.zeros(shape, np.uint8)


def compressed(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def packed_by(method):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("images.npy", npy((2, 4, 4), bytes(32)))
    return file.getvalue()


ARRAYS = {
    "bomb": (lambda: npz(images=npy((ENOUGH + 1, 1, 1), bytes(ENOUGH + 1))), "1 to 201,326,592 are allowed"),
    "two-bombs": (lambda: compressed(**dict.fromkeys(NAMES, black(ENOUGH // 2 + 1, 1, 1))), "arr_0.npy: "),
    "bomb-of-labels": (lambda: npz(images=ONE, labels=npy((2**40,))), "labels.npy: its header declares"),
    "promises-much": (lambda: npz(images=npy((4 * 10**9, 28, 28))), "declares 4000000000×28×28×1 bytes"),
    "promises-more-than-numbers-hold": (lambda: npz(images=npy((2**62, 2**62, 3))), "1 to 201,326,592 are allowed"),
    "promises-less-than-nothing": (lambda: npz(images=npy((-4, -4, 2), bytes(32))), "images.npy: its header declares"),
    "promises-more-than-it-holds": (lambda: npz(images=npy((9, 28, 28), bytes(99))), "holds 99 bytes, but its header"),
    "holds-more-than-it-promises": (lambda: npz(images=npy((2, 4, 4), bytes(99 * MB))), "holds more than the 32 bytes"),
    "objects": (lambda: compressed(images=np.array([Hostile()] * 3)), "images.npy holds object"),
    "pickle-in-a-member": (lambda: npz(images=pickle.dumps(Hostile())), "magic string"),
    "objects-for-labels": (lambda: npz(images=ONE, labels=OBJECTS), "labels.npy holds object"),
    "structure": (lambda: npz(images=npy((2, 4, 4), bytes(99), "|V3")), "images.npy holds |V3"),
    "words-for-labels": (lambda: compressed(images=black(1, 1, 1), labels=np.array(["a"])), "labels.npy holds <U1"),
    "labels-of-two-kinds": (lambda: compressed(images=black(2, 1, 1), labels=black(2, 2)), "2 images but 2×2 labels"),
    "long-header": (lambda: npz(images=b"\x93NUMPY\2\0" + struct.pack("<I", 99 * MB) + bytes(99 * MB)), "format 1.0"),
    "header-that-calls": (lambda: npz(images=npy("__import__('os')")), "not a readable .npz"),
    "in-fortran-s-order": (lambda: compressed(images=np.asfortranarray(black(2, 3, 4))), "in Fortran order"),
    "bzip2": (lambda: packed_by(zipfile.ZIP_BZIP2), "compressed by another method than deflate"),
    "cut": (lambda: compressed(images=black(2, 4, 4))[:-30], "not a readable .npz"),
    "damaged": (lambda: packed_by(zipfile.ZIP_STORED).replace(bytes(32), bytes(31) + b"x"), "Bad CRC-32"),
    "empty": (lambda: b"", "not a readable .npz"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_refused_in_one_line(tmp_path, capfd, name):
    make, message = ARRAYS[name]
    path = tmp_path / "a.npz"
    path.write_bytes(make())
    with little_memory(), pytest.raises(ValueError, match=f"images={path}: .*{re.escape(message)}") as caught:
        read_images(path, "images")
    line = str(caught.value)
    assert "\n" not in line
    assert capfd.readouterr() == ("", "")


def test_cifar_10_in_one_array_is_read_without_a_copy_of_it(tmp_path):
    """50,000 images of 32×32×3, 154 MB: of zeros they are as small as a bomb. A mark shows that nothing is mixed up."""
    images = np.zeros((50_000, 32, 32, 3), np.uint8)
    images[[0, 49_999], 3, 5] = [[1, 2, 3], [4, 5, 6]]
    path = tmp_path / "a.npz"
    path.write_bytes(compressed(images=images))
    del images
    with little_memory(250):  # a copy would make it 293
        read = read_images(path, "images")
    pixels, _ = read[torch.tensor([0, 1, 49_999])]
    assert pixels[:, :, 3, 5].tolist() == [[1, 2, 3], [0, 0, 0], [4, 5, 6]]
    assert int(pixels.sum()) == 21


IDX = {
    "bomb": (lambda: gzip.compress(idx_of(2, 28, 28) + bytes(400 * MB), 1), "holds more than the 1568 bytes that its"),
    "bomb-as-promised": (lambda: gzip.compress(idx_of(257, 1024, 1024) + bytes(257 * MB), 1), "1 to 201,326,592 are"),
    "promises-much": (lambda: idx_of(4 * 10**9, 28, 28), "its header declares 4000000000×28×28 bytes"),
    "promises-much-packed": (lambda: gzip.compress(idx_of(2**32 - 1, 2**32 - 1, 2**32 - 1)), "its header declares"),
    "promises-nothing": (lambda: idx_of(0, 28, 28), "its header declares 0×28×28 bytes"),
    "wrong-checksum": (lambda: gzip.compress(idx_of(1, 2, 2) + b"abcd")[:-8] + bytes(8), "damaged gzip file .*CRC"),
    "empty": (lambda: b"", "magic number missing"),
    "empty-gzip": (lambda: b"\x1f\x8b", "damaged gzip file"),
}


def idx_of(*shape):
    return bytes([0, 0, 8, 3]) + struct.pack(">3I", *shape)


@pytest.mark.parametrize("name", IDX)
def test_an_idx_file_is_refused_in_one_line(tmp_path, name):
    make, message = IDX[name]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(make())
    with little_memory(), pytest.raises(ValueError, match=rf"{path}: .*{message}") as caught:
        read_idx(path, ndim=3)
    assert "\n" not in str(caught.value)


def test_cifar_10_s_archive_with_another_checksum_is_never_unpacked(tmp_path, monkeypatch):
    root, options = tmp_path / "root", {"channels": 3, "image_size": 32, "num_classes": 10, "batch_size": 2}
    _, archive = write_cifar10(root, monkeypatch)
    archive.write_bytes(tarred("../evil.png", "cifar-10-batches-py/data_batch_1"))
    before = tree(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"data.root=.*published checksums; .*place the archive there"
    ) as caught:
        CIFAR10(root=str(root), **options).prepare_data()
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before

    # the test can fail: torchvision itself would let it out
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    with pytest.raises(FileNotFoundError):
        CIFAR10(root=str(root), **options).prepare_data()
    assert (tmp_path / "evil.png").exists()


def test_cifar_10_s_files_with_another_checksum_are_never_unpickled(tmp_path, monkeypatch, capfd):
    options = {"channels": 3, "image_size": 32, "num_classes": 10, "batch_size": 2}
    _, archive = write_cifar10(tmp_path, monkeypatch)
    data = CIFAR10(root=str(tmp_path), **options)
    data.prepare_data()
    archive.unlink()
    for name in ("data_batch_1", "batches.meta"):
        path = tmp_path / "cifar-10-batches-py" / name
        content = path.read_bytes()
        path.write_bytes(pickle.dumps(Hostile()))
        with pytest.raises((FileNotFoundError, ValueError), match=r"data.root=\S+: "):
            data.prepare_data()
        assert capfd.readouterr().out == ""
        path.write_bytes(content)
