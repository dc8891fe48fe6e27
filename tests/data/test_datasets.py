"""Every data set, read from files made here or that come with a package; and files that are not what they should be."""

import functools
import gzip
import http.server
import struct
import threading

import pytest
import torch
import torchvision
from PIL import Image

from lightning_diffusion.data.cifar10 import CIFAR10
from lightning_diffusion.data.dataset import InMemory, Mirrored
from lightning_diffusion.data.decoding import read_image
from lightning_diffusion.data.digits import Digits
from lightning_diffusion.data.image_folder import ImageFolder
from lightning_diffusion.data.mnist import MNIST
from tests.files import FASHION_MNIST, idx, write_cifar10, write_mnist

GREY = {"channels": 1, "image_size": 28, "num_classes": 10, "batch_size": 4}


def ready(datamodule):
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule.splits["train"], datamodule.splits["val"]


def test_digits_are_the_real_ones_and_none_is_in_both_splits():
    train, val = ready(Digits(channels=1, image_size=8, num_classes=10, batch_size=4))
    assert (len(train), len(val)) == (1500, 297)
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert train.labels.bincount().min() > 120
    # the data has eleven images that occur twice, so compare counts: 1,797 in all, whatever the split
    everything = torch.cat([train.images, val.images]).flatten(1)
    from sklearn.datasets import load_digits

    expected = torch.from_numpy(load_digits().data * 255 / 16).round()
    assert torch.equal(everything.double().sum(0), expected.sum(0))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", ["", "MNIST/raw", "raw"])
def test_mnist_files_are_found_flat_or_where_torchvision_puts_them(tmp_path, folder, suffix):
    images, labels = write_mnist(tmp_path / folder, suffix=suffix)
    train, _ = ready(MNIST(root=str(tmp_path), **GREY))
    assert torch.equal(train.images[:, 0], images)
    assert torch.equal(train.labels, labels.long())


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="apt-get install dataset-fashion-mnist")
def test_real_fashion_mnist_is_read_as_debian_packs_it():
    train, val = ready(MNIST(root=str(FASHION_MNIST), dataset="FashionMNIST", **GREY))
    assert (len(train), len(val)) == (60_000, 10_000)
    assert train.labels.bincount().tolist() == [6000] * 10
    assert abs(float(train.images.float().mean()) / 255 - 0.2860) < 1e-4  # the published mean


TRAIN_IMAGES = "train-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], "holds 15679 bytes, but its header declares 15680"),
        (lambda raw: raw + b"\0", "holds more than the 15680 bytes that its header declares"),
        (lambda raw: raw[:10], "truncated in its header"),
        (lambda raw: b"", "magic number missing, expected 00000803"),
        (lambda raw: raw[:3] + b"\x01" + raw[4:], "magic number 00000801, expected 00000803"),
        (lambda raw: b"<html>not found</html>", "magic number 3c68746d"),
        (lambda raw: gzip.compress(raw)[:-20], "damaged gzip file"),
        (lambda raw: gzip.compress(raw)[:200] + b"garbage" * 9, "damaged gzip file"),
        (lambda raw: idx(torch.zeros(19, 28, 28, dtype=torch.uint8)), "19 images, but .* has 20 labels"),
        (lambda raw: idx(torch.zeros(20, 27, 28, dtype=torch.uint8)), "these images are 1 × 27 × 28"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, damage, message):
    write_mnist(tmp_path)
    path = tmp_path / TRAIN_IMAGES
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        ready(MNIST(root=str(tmp_path), **GREY))


def test_without_files_and_network_one_line_says_what_to_do(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(
        FileNotFoundError, match=r"data.root=.*looked for train-images.*place MNIST's four IDX files"
    ) as e:
        ready(MNIST(root=str(tmp_path), **GREY))
    assert "\n" not in str(e.value)


def test_mnist_is_downloaded_through_torchvision(tmp_path, monkeypatch):
    """The real download code, against a mirror on this machine."""
    mirror, root = tmp_path / "mirror", tmp_path / "root"
    images, _ = write_mnist(mirror, suffix=".gz")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(mirror))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    resources = [(f"{name}.gz", None) for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")]
    resources += [(f"{name}.gz", None) for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    train, _ = ready(MNIST(root=str(root), **GREY))
    server.shutdown()
    assert torch.equal(train.images[:, 0], images)
    assert (root / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()


def test_cifar10_is_unpacked_from_its_archive(tmp_path, monkeypatch):
    """torchvision's own code, on a small archive in CIFAR-10's format with its checksums put in place."""
    pixels, archive = write_cifar10(tmp_path, monkeypatch)
    options = {"channels": 3, "image_size": 32, "num_classes": 10, "batch_size": 2}
    train, _ = ready(CIFAR10(root=str(tmp_path), **options))
    images, labels = train[torch.arange(4)]
    assert torch.equal(images, pixels)
    assert labels.tolist() == [3, 1, 4, 1]

    archive.write_bytes(archive.read_bytes()[:-1] + b"x")  # a damaged archive is not trusted
    for path in (tmp_path / "cifar-10-batches-py").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"data.root=.*cifar-10-python.tar.gz"):
        ready(CIFAR10(root=str(tmp_path), **options))


def write_images(root, count=10, mode="RGB", size=(40, 30)):
    for i in range(count):
        folder = root / ("cats" if i % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, color=i * 10 if mode == "L" else (i * 10, 0, 0)).save(folder / f"{i:02d}.png")


COLOUR = {"channels": 3, "image_size": 16, "batch_size": 4}


def test_image_folder_with_classes(tmp_path):
    write_images(tmp_path)
    train, val = ready(ImageFolder(root=str(tmp_path), num_classes=2, val_fraction=0.2, **COLOUR))
    assert (len(train), len(val)) == (8, 2)
    assert not set(train.paths) & set(val.paths)
    images, labels = train[torch.arange(8)]
    assert images.shape == (8, 3, 16, 16)
    assert images.dtype == torch.uint8
    for path, image, label in zip(train.paths, images, labels, strict=True):
        assert ["cats", "dogs"][label] == path.parent.name
        assert (image[0] == int(path.stem) * 10).all()


def test_image_folder_without_classes_reads_nested_and_loose_files(tmp_path):
    write_images(tmp_path / "deep" / "er", count=4, mode="L")
    Image.new("L", (20, 20)).save(tmp_path / "loose.JPG", format="JPEG")
    (tmp_path / "notes.txt").write_text("not an image")
    options = COLOUR | {"channels": 1}
    train, val = ready(ImageFolder(root=str(tmp_path), num_classes=None, **options))
    assert len(train) + len(val) == 5
    images, labels = train[torch.arange(2)]
    assert images.shape == (2, 1, 16, 16)
    assert labels is None


def test_image_is_upright_resized_on_its_shorter_side_and_centre_cropped(tmp_path):
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    image.paste((255, 255, 255), (10, 0, 30, 20))  # the middle square is white
    image.save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", (3, 20, 20)) == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = Image.new("L", (20, 20), 0)
    image.paste(255, (0, 0, 10, 20))  # left half white: upright, the top half is
    image.save(tmp_path / "b.png", exif=exif)
    upright = read_image(tmp_path / "b.png", (1, 20, 20))[0]
    assert (upright[:10] == 255).all()
    assert (upright[10:] == 0).all()


def test_image_folder_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.root=.*no such folder"):
        ready(ImageFolder(root=str(tmp_path / "none"), num_classes=None, **COLOUR))
    with pytest.raises(FileNotFoundError, match="0 images below it"):
        ready(ImageFolder(root=str(tmp_path), num_classes=None, **COLOUR))
    write_images(tmp_path)
    with pytest.raises(ValueError, match=r"data.num_classes=3: .* has 2 class folders"):
        ready(ImageFolder(root=str(tmp_path), num_classes=3, **COLOUR))
    with pytest.raises(ValueError, match="data.val_fraction=2"):
        ImageFolder(root=str(tmp_path), num_classes=None, val_fraction=2, **COLOUR)
    (tmp_path / "cats" / "01.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match=r"01.png: not a readable image"):
        read_image(tmp_path / "cats" / "01.png", (3, 16, 16))


def test_mirrored_holds_every_image_and_its_mirror():
    images = torch.arange(12, dtype=torch.uint8).reshape(2, 1, 2, 3)
    dataset = Mirrored(InMemory(images, torch.tensor([7, 8])))
    got, labels = dataset[torch.tensor([0, 3, 1, 2])]
    assert len(dataset) == 4
    assert torch.equal(got, torch.stack([images[0], images[1].flip(-1), images[1], images[0].flip(-1)]))
    assert labels.tolist() == [7, 8, 8, 7]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"channels": 0}, "data.channels=0: must be at least 1"),
        ({"image_size": 0}, "data.image_size=0"),
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"num_classes": 0}, "data.num_classes=0"),
    ],
)
def test_values_out_of_range(options, key):
    with pytest.raises(ValueError, match=key):
        Digits(**({"channels": 1, "image_size": 8, "num_classes": 10, "batch_size": 4} | options))


def test_contradictions_between_settings_and_data():
    with pytest.raises(ValueError, match=r"data.image_size=16: these images are 1 × 8 × 8"):
        Digits(channels=1, image_size=16, num_classes=10, batch_size=4).setup()


def test_header_layout_is_the_published_one():
    raw = idx(torch.zeros(2, 28, 28, dtype=torch.uint8))
    assert raw[:16] == bytes.fromhex("00000803") + struct.pack(">3I", 2, 28, 28)


def test_loader_processes_need_open_files(monkeypatch):
    """With few of them, they would wait for ever."""
    monkeypatch.setattr("resource.getrlimit", lambda which: (32, 1024))
    Digits(channels=1, image_size=8, num_classes=10, batch_size=4)
    with pytest.raises(ValueError, match=r"data.num_workers=2: .* ulimit -n allows, 32; give ulimit -n 256, or choose"):
        Digits(channels=1, image_size=8, num_classes=10, batch_size=4, num_workers=2)
