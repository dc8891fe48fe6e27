"""data.num_classes=auto: the classes that a folder of images has; and files that are decoded once."""

import json
import pickle

import pytest
import torch
from PIL import Image

from lightning_diffusion.data import image_files
from lightning_diffusion.data.image_files import Files
from lightning_diffusion.data.image_folder import ImageFolder
from src.evaluate import main as evaluate
from src.summary import main as summary
from src.train import main as train
from tests.command import in_process
from tests.data.hostile import zipped
from tests.runs import TINY
from tests.test_mistakes import check_one_line

OPTIONS = {"channels": 3, "image_size": 8, "batch_size": 2}
RUN = [*TINY, "data=image_folder", "data.image_size=8", "data.num_workers=0", "schedule.T=20", "trainer.max_steps=2"]
PAIRS = [f"{kind}/{i}.png" for kind in ("cats", "dogs", "eels") for i in range(8)]


def write(folder, names):
    """Writes pictures of many shapes and modes, like a user's own."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size, mode = [(8, 8), (30, 20), (9, 40)][number % 3], ["RGB", "L", "RGBA", "P"][number % 4]
        Image.new(mode, size, number).save(path)
    return folder


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (PAIRS, 3),
        (["cats/a.png", "cats/b.png", "dogs/deep/a.png", "dogs/b.png"], 2),
        ([*PAIRS, "loose.png"], None),
        (["all/a.png", "all/b.png", "all/c.png"], None),
        (["1/a.png", "2/a.png", "3/a.png"], None),  # a folder for each picture
        (["a.png", "b.png"], None),
    ],
)
def test_classes_are_counted(tmp_path, names, count):
    data = ImageFolder(str(write(tmp_path, names)), num_classes="auto", **OPTIONS)
    data.setup()
    assert data.num_classes == data.count_classes() == count
    labels = data.splits["train"][torch.arange(1)][1]
    assert (labels is None) == (count is None)


def test_an_archive_s_too(tmp_path):
    folder = write(tmp_path / "photos", PAIRS)
    archive = tmp_path / "photos.zip"
    archive.write_bytes(zipped(contents={name: (folder / name).read_bytes() for name in PAIRS}))
    data = ImageFolder(str(archive), num_classes="auto", cache_dir=str(tmp_path / "cache"), **OPTIONS)
    assert data.count_classes() == 3


def test_a_run_takes_them_and_is_measured_with_them(tmp_path):
    """The checkpoint holds the number of classes. src.evaluate takes the folder's new path if it has moved."""
    write(tmp_path / "photos", PAIRS)
    status, out, err = in_process(train, *RUN, "data.root=photos", "hydra.run.dir=run", cwd=tmp_path)
    assert status == 0, err
    assert "data: 3 class folders, used as classes; data.num_classes=null trains without classes" in out
    assert "3 classes" in out
    (tmp_path / "photos").rename(tmp_path / "moved")
    words = ["ckpt_path=run/checkpoints/last.ckpt", "data=image_folder", "data.root=moved", "data.image_size=8"]
    more = ["metrics.steps=10", "num_samples=10", "sampler.num_steps=2", "output_dir=out"]
    status, _, err = in_process(evaluate, *words, *more, cwd=tmp_path)
    assert status == 0, err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["fd_classifier"]["num_samples"] == 10


def test_null_trains_without_them_and_another_number_is_one_line(tmp_path):
    root = f"data.root={write(tmp_path / 'photos', PAIRS)}"
    status, out, err = in_process(train, *RUN, root, "data.num_classes=null", "hydra.run.dir=run", cwd=tmp_path)
    assert status == 0, err
    assert "classes" not in out
    empty = tmp_path / "empty"
    empty.mkdir()
    status, _, err = in_process(train, *RUN, root, "data.num_classes=5", cwd=empty)
    message = (
        f"error: data.num_classes=5: {tmp_path / 'photos'} has 3 class folders; leave data.num_classes out, which "
        "counts them, or set it to null to train without classes"
    )
    check_one_line(status, err, message, empty)


def test_a_summary_counts_them_too(tmp_path):
    write(tmp_path / "photos", PAIRS)
    words = ["experiment=image_folder_quick", "data.root=photos"]
    (status, with_classes, err), (_, without, _) = (
        in_process(summary, *words, *more, cwd=tmp_path) for more in ([], ["data.num_classes=null"])
    )
    assert status == 0, err
    assert with_classes != without


def test_labels_of_another_data_set_are_not_counted(tmp_path):
    status, _, err = in_process(train, "data.num_classes=auto", cwd=tmp_path)
    check_one_line(status, err, "error: data.num_classes='auto': expected a whole number or null", tmp_path)


def test_a_file_is_decoded_once(tmp_path, monkeypatch):
    paths = [write(tmp_path, PAIRS) / name for name in PAIRS]
    for most in (2**28, 0):
        monkeypatch.setattr(image_files, "KEPT", most)
        files = Files(paths, None, (3, 8, 8))
        first = files[torch.tensor([4, 2, 4])][0]
        assert (first[0] == first[2]).all()
        Image.new("RGB", (8, 8), (1, 2, 3)).save(paths[2])
        again, new = files[torch.tensor([2, 5])][0]
        assert (again == first[1]).all() == (most > 0)
        assert (new == Files(paths, None, (3, 8, 8))[torch.tensor([5])][0][0]).all()
        Image.new("RGB", (8, 8), 7).save(paths[2])


def test_a_loader_process_is_sent_no_images(tmp_path):
    files = Files([write(tmp_path, PAIRS) / name for name in PAIRS], None, (3, 8, 8))
    whole = files[torch.arange(len(files))][0]
    sent = pickle.loads(pickle.dumps(files))
    assert sent._kept is None
    assert (sent[torch.arange(len(files))][0] == whole).all()
