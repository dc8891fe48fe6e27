"""Labels that are none of data.num_classes: one line at setup, or at the batch where a data set does not know them."""

import time

import numpy as np
import pytest
import torch

from lightning_diffusion.data.cifar10 import CIFAR10
from lightning_diffusion.data.dataset import Batches, First, ImageDataset, InMemory, Mirrored, WrongLabel
from lightning_diffusion.data.external_images import read_images
from lightning_diffusion.data.mnist import MNIST
from lightning_diffusion.data.module import ImageDataModule
from src.train import main as train
from tests.command import in_process
from tests.files import idx, write_cifar10, write_mnist
from tests.runs import TINY
from tests.test_mistakes import check_one_line

OPTIONS = {"channels": 1, "image_size": 8, "batch_size": 4}


class Data(ImageDataModule):
    """A user's own."""

    def __init__(self, dataset, **options):
        super().__init__(**(OPTIONS | options))
        self.dataset = dataset

    def read(self, split):
        return self.dataset


class Unknown(ImageDataset):
    """Labels that only reading an image tells."""

    labels: tuple[int, ...] = (0, 1, 2, 3)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, indices):
        return torch.zeros(len(indices), 1, 8, 8, dtype=torch.uint8), torch.tensor(self.labels)[indices]

    def fingerprint(self):
        return ""


def images(labels):
    return InMemory(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), torch.as_tensor(labels))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [0, 1, 10],
            r"data.num_classes=10: .* label 10, and 0 to 9 are allowed; set data.num_classes=11",
        ),
        ([0, -1, 3], r"data.num_classes=10: these images have label -1, .*; number the classes from 0"),
        ([0, 2**40], f"label {2**40}, "),
        (torch.tensor([0.0, 1.0]), r"labels must be int64 \(B,\), not torch.float32"),
        (torch.zeros(2, 1, dtype=torch.long), r"labels must be int64 \(B,\), not torch.int64 \(1, 1\)"),
    ],
)
@pytest.mark.parametrize("wrapped", [lambda data: data, Mirrored, lambda data: First(data, 1)])
def test_of_any_data_set_they_are_named_at_setup(labels, message, wrapped):
    with pytest.raises(ValueError, match=message):
        Data(wrapped(images(labels)), num_classes=10).setup()


def test_more_classes_than_labels_and_labels_that_are_left_out_are_allowed():
    Data(images([0, 3]), num_classes=10).setup()
    Data(images([0, 10]), num_classes=None).setup()
    Data(Unknown(), num_classes=4).setup()


def test_mnist_s_and_cifar_10_s(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(torch.tensor([0, 200] * 10, dtype=torch.uint8)))
    with pytest.raises(ValueError, match=r"data.num_classes=10: these images have label 200"):
        MNIST(str(tmp_path), channels=1, image_size=28, num_classes=10, batch_size=4).setup()
    write_cifar10(tmp_path, monkeypatch)
    data = CIFAR10(str(tmp_path), channels=3, image_size=32, num_classes=4, batch_size=2)
    data.prepare_data()
    with pytest.raises(ValueError, match=r"data.num_classes=4: these images have label \d, .* set data.num_classes="):
        data.setup()


def test_before_anything_is_trained_or_written(tmp_path):
    root, empty = tmp_path / "data", tmp_path / "empty"
    write_mnist(root)
    empty.mkdir()
    words = [*TINY, "data=mnist", f"data.root={root}", "data.num_classes=9", "trainer.max_steps=2"]
    status, _, err = in_process(train, *words, cwd=empty)
    check_one_line(status, err, "error: data.num_classes=9: these images have label 9, and 0 to 8 are allowed", empty)


@pytest.mark.parametrize("labels", [(0, 1, 4, 2), (0, 1, 2, -1)])
def test_where_a_data_set_does_not_know_them_the_batch_is_looked_at(labels):
    dataset = Unknown()
    dataset.labels = labels
    Data(dataset, num_classes=4).setup()
    batches = Batches(Mirrored(dataset), 4)
    assert batches[0, torch.tensor([0, 1])].condition.label.tolist() == [0, 1]
    with pytest.raises(WrongLabel, match=r"data.num_classes=4: these images have label (4|-1)"):
        batches[0, torch.arange(4)]
    assert Batches(dataset, None)[0, torch.arange(4)].condition is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_meets_one_ends_in_one_line(tmp_path, monkeypatch, workers):
    """A data set of the user's own, whose last label is too large; also where a worker finds it."""
    monkeypatch.setattr(Unknown, "labels", (0,) * 30 + (7,))
    monkeypatch.setattr("lightning_diffusion.data.digits.Digits.read", lambda self, split: Unknown())
    words = [*TINY, "data.num_classes=4", f"data.num_workers={workers}", "trainer.max_steps=9", "schedule.T=20"]
    status, _, err = in_process(train, *words, cwd=tmp_path)
    assert status == 2
    assert err.splitlines()[-1].startswith("error: data.num_classes=4: these images have label 7, and 0 to 3 are allow")
    assert "Traceback" not in err


def test_a_million_labels_take_no_time():
    dataset = images(torch.arange(10**6) % 10)
    started = time.perf_counter()
    assert dataset.label_range() == (0, 9)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("labels", [[0, -1], [0, 0.5], [0, float("nan")], [0, float("inf")], [0, 2**40]])
def test_of_given_arrays_too(tmp_path, labels):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.array(labels))
    with pytest.raises(ValueError, match=r"reference=.*a.npz: its labels must be whole numbers from 0 to 99,999"):
        read_images(tmp_path / "a.npz", "reference")
