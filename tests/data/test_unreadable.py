"""data.unreadable: stop at a file that is not a readable image, or leave such files out and say how many."""

import pytest
import torch
from PIL import Image

from lightning_diffusion.data.image_folder import ImageFolder
from src.train import main as train
from tests.command import in_process
from tests.data.hostile import SMALL, zipped
from tests.runs import TINY
from tests.test_mistakes import check_one_line

OPTIONS = {"channels": 3, "image_size": 8, "num_classes": None, "batch_size": 2}
RUN = [*TINY, "data=image_folder", "data.image_size=8", "data.num_workers=0", "schedule.T=20", "trainer.max_steps=2"]
BAD = {"03.png": b"", "07.png": b"hello", "11.png": SMALL[:-30], "15.png": SMALL[:50], "19.png": b"GIF89a"}


@pytest.fixture
def folder(tmp_path):
    """Twenty-four images, of which five are none; of two of them only the pixels are missing."""
    for i in range(24):
        name = f"{i:02d}.png"
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(path)
        if name in BAD:
            path.write_bytes(BAD[name])
    return tmp_path / "photos"


def test_stop_names_the_file_before_anything_starts(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    status, _, err = in_process(train, *RUN, f"data.root={folder}", cwd=empty)
    message = (
        f"error: data.root={folder}: {folder}/03.png: not a readable image (the file is empty); "
        "repair, shrink or remove it, or leave such files out with data.unreadable=skip"
    )
    check_one_line(status, err, message, empty)


def test_stop_names_a_file_whose_pixels_are_missing_when_it_is_read(folder):
    for name in ("03.png", "07.png", "19.png"):  # those whose headers tell
        (folder / name).unlink()
    data = ImageFolder(root=str(folder), **OPTIONS)
    data.setup()
    assert len(data.paths) == 21
    position = [path.name for path in data.splits["train"].paths].index("11.png")
    with pytest.raises(ValueError, match=r"11.png: not a readable image \(image file is truncated"):
        data.splits["train"][torch.tensor([position])]


def test_skip_trains_on_the_others_and_says_how_many(folder, tmp_path):
    """From an archive of them: all that data.root can be goes the same way."""
    archive = tmp_path / "photos.zip"
    archive.write_bytes(zipped(contents={path.name: path.read_bytes() for path in folder.iterdir()}))
    status, _, err = in_process(train, *RUN, f"data.root={archive}", "data.unreadable=skip", cwd=tmp_path)
    assert status == 0, err
    told = [line for line in err.splitlines() if "unreadable" in line]
    assert told == [f"data.root={archive}: 5 of 24 images are unreadable, left out: 03.png, 07.png, 11.png and 2 more"]


def test_skip_leaves_out_the_same_files_in_every_run(folder):
    orders = []
    for _ in range(2):
        data = ImageFolder(root=str(folder), unreadable="skip", **OPTIONS)
        data.setup()
        orders.append([path.name for split in ("train", "val") for path in data.splits[split].paths])
        images, _ = data.splits["train"][torch.arange(len(data.splits["train"]))]
        assert images[:, 0, 0, 0].tolist() == [10 * int(path.stem) for path in data.splits["train"].paths]
    assert orders[0] == orders[1]
    assert set(orders[0]) == {f"{i:02d}.png" for i in range(24)} - set(BAD)


def test_skip_says_nothing_where_all_can_be_read_and_stops_where_too_few_can(folder, capsys):
    for name in BAD:
        (folder / name).unlink()
    data = ImageFolder(root=str(folder), unreadable="skip", **OPTIONS)
    data.setup()
    assert len(data.paths) == 19
    assert capsys.readouterr().err == ""
    for path in folder.iterdir():
        path.write_bytes(b"hello" if path.name != "00.png" else path.read_bytes())
    with pytest.raises(FileNotFoundError, match=f"data.root={folder}: 1 readable images below it; at least two files"):
        ImageFolder(root=str(folder), unreadable="skip", **OPTIONS).setup()
