"""Files of a run that a kill, a full disk or a stranger has damaged: none blocks a resume, none goes unnoticed."""

import csv
import json
import os
import shutil
import threading
import time

import pytest
import torch
from omegaconf import OmegaConf

from lightning_diffusion.checkpoints.folder import newest
from lightning_diffusion.metrics import cache
from lightning_diffusion.runs.environment import record
from lightning_diffusion.runs.pictures import write_gif, write_png
from lightning_diffusion.system.files import NotWritten
from lightning_diffusion.training.callbacks import noise_levels
from lightning_diffusion.training.loggers.csv import CSVLogger
from lightning_diffusion.training.loggers.wandb import WandbLogger
from src.train import main as train
from tests.command import in_process
from tests.runs import TINY
from tests.test_files import small_disk  # noqa: F401


def rows(path):
    with path.open(newline="") as file:
        return [(int(row["step"]), row["loss"]) for row in csv.DictReader(file)]


class TestRows:
    WHOLE = b"step,loss\r\n1,0.5\r\n2,0.25\r\n"

    @pytest.mark.parametrize("length", range(len(WHOLE) + 1))
    def test_wherever_the_file_is_torn_the_rows_before_stay_and_the_next_is_whole(self, tmp_path, length):
        (path := tmp_path / "metrics.csv").write_bytes(self.WHOLE[:length])
        logger = CSVLogger(str(path))
        for step in (3, 4):
            logger.log_metrics({"loss": 0.125}, step)
        before = [row for row, end in (((1, "0.5"), 18), ((2, "0.25"), 26)) if length >= end]
        assert rows(path) == [*before, (3, "0.125"), (4, "0.125")]

    def test_what_a_power_cut_leaves(self, tmp_path, capsys):
        (path := tmp_path / "metrics.csv").write_bytes(b"step,loss\r\n1,0.5\r\n\0\0\0\0\r\n2\r\n3,1,2\r\n4,\xff\xfe\0")
        CSVLogger(str(path)).log_metrics({"loss": 0.125}, 5)
        assert rows(path) == [(1, "0.5"), (5, "0.125")]
        assert capsys.readouterr().err == f"{path}: dropped 4 incomplete rows\n"


@pytest.mark.parametrize("content", ["", "[{", "{}", '"x"', "\0", None])
def test_starts_that_are_damaged_are_kept_aside(tmp_path, capsys, content):
    path = tmp_path / "environment.json"
    path.mkdir() if content is None else path.write_text(content)
    record(tmp_path)
    record(tmp_path)
    assert len(json.loads(path.read_text())) == 2
    aside = tmp_path / "environment.json.damaged"
    assert aside.is_dir() if content is None else aside.read_text() == content
    assert capsys.readouterr().err == f"{path}: damaged; renamed to environment.json.damaged and started a new file\n"


@pytest.mark.parametrize(("content", "version"), [("abc123\n", "abc123"), ("abc1", None), ("", None), ("\0\0\n", None)])
def test_half_an_id_is_none(tmp_path, content, version):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "id.txt").write_text(content)
    assert WandbLogger(str(tmp_path)).version == version


def test_a_run_whose_files_are_all_torn_is_resumed(finished, tmp_path):
    """Leftovers of killed runs are removed too; other files stay."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir, symlinks=True)
    for name in ("environment.json", "config.yaml", "metrics.json", "noise_levels.csv", "samples/final.png"):
        (run_dir / name).write_bytes((run_dir / name).read_bytes()[:20])
    (run_dir / "metrics.csv").write_bytes((run_dir / "metrics.csv").read_bytes()[:-4])
    (run_dir / "checkpoints" / "last.ckpt").unlink()
    (run_dir / "checkpoints" / "last.ckpt").symlink_to("step_0000020.ckpt")
    halves = [".config.yaml.17", ".metrics.csv.17", "checkpoints/.step_0000060.ckpt.17", "samples/.final.png.17"]
    others = [".config.yaml.old", "notes.17", "checkpoints/.mine.ckpt.17"]
    for name in (*halves, *others):
        (run_dir / name).write_text("x")
    (run_dir / "checkpoints" / ".last.ckpt.17").symlink_to("step_0000040.ckpt")
    seen = []

    def watch():
        while "42" not in str((run_dir / "checkpoints" / "last.ckpt").resolve()):
            seen.append((run_dir / "checkpoints" / "last.ckpt").resolve().name)
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    status, _, err = in_process(train, "resume=run", "trainer.max_steps=42", cwd=tmp_path)
    assert status == 0, err
    assert err.splitlines() == [
        "run/environment.json: damaged; renamed to environment.json.damaged and started a new file",
        "run/metrics.csv: dropped 1 incomplete row",
    ]
    assert seen[-1] == "step_0000040.ckpt"  # before it had saved anything
    assert not any(os.path.lexists(run_dir / name) for name in (*halves, "checkpoints/.last.ckpt.17"))
    assert all((run_dir / name).exists() for name in others)
    assert len(json.loads((run_dir / "environment.json").read_text())) == 1
    assert json.loads((run_dir / "metrics.json").read_text())["steps"] == 42
    assert OmegaConf.load(run_dir / "config.yaml").trainer.max_steps == 42


def test_words_that_are_torn_are_named(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run", symlinks=True)
    path = tmp_path / "run" / "overrides.yaml"
    path.write_bytes(path.read_bytes()[:10] + b"\0\0")
    status, _, err = in_process(train, "resume=run", cwd=tmp_path)
    assert status == 2
    assert (
        "resume=run: no run to resume, overrides.yaml is missing or unreadable; give the folder of a run"
        in err.splitlines()[-1]
    )


PICTURE = torch.randint(0, 256, (3, 200, 200), dtype=torch.uint8)
LEVEL = dict.fromkeys(("time", "logsnr", "images", "loss", "error"), 1.0)


def rows_until_full(disk):
    logger = CSVLogger(str(disk / "metrics.csv"))
    for step in range(10_000):
        logger.log_metrics({"loss": 0.5}, step)


WRITERS = {
    "environment.json": record,
    "metrics.csv": rows_until_full,
    "picture.png": lambda disk: write_png(disk / "picture.png", PICTURE),
    "animation.gif": lambda disk: write_gif(disk / "animation.gif", [PICTURE, PICTURE]),
    "noise_levels.csv": lambda disk: noise_levels._write(disk / "noise_levels.csv", [LEVEL] * 20),
    "kept": lambda disk: cache.cached(str(disk), "kept", "x", lambda: ({"x": torch.zeros(10_000)}, {})),
}


def fill(disk):
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


@pytest.mark.parametrize("name", WRITERS)
def test_each_file_on_a_full_disk_is_a_line_and_the_one_before_stays(small_disk, name):  # noqa: F811
    if name not in ("metrics.csv", "kept"):
        (small_disk / name).write_text("[]")
    fill(small_disk)
    with pytest.raises((NotWritten, ValueError), match="No space left on device") as error:
        WRITERS[name](small_disk)
    assert len(str(error.value).splitlines()) == 1
    assert str(small_disk) in str(error.value)
    if name not in ("metrics.csv", "kept"):
        assert (small_disk / name).read_text() == "[]"
    assert {path.name for path in small_disk.iterdir()} - {name, "filler"} == set() or name == "kept"


@pytest.mark.parametrize("moment", ["config.yaml", "environment.json", "metrics.csv", "checkpoints/step_0000004.ckpt"])
def test_a_disk_that_fills_up_ends_the_run_in_a_line(small_disk, tmp_path, moment, cache_dir):  # noqa: F811
    """Once a file is there; 256 KiB hold one checkpoint."""

    def watch():
        while not (small_disk / "run" / moment).exists():
            time.sleep(0.001)
        fill(small_disk)

    threading.Thread(target=watch, daemon=True).start()
    options = [
        "trainer.max_steps=100000", "trainer.log_every_n_steps=1", "trainer.val_check_interval=4",
        f"hydra.run.dir={small_disk}/run",
    ]  # fmt: skip
    status, _, err = in_process(train, *TINY, *options, cwd=tmp_path)
    assert status == 2, err
    (line,) = err.splitlines()
    assert "No space left on device" in line
    checkpoint = newest(small_disk / "run" / "checkpoints")
    assert f"continue with resume={small_disk}/run" in line if checkpoint else "start again" in line
    if checkpoint:
        assert (small_disk / "run" / "checkpoints" / "last.ckpt").resolve() == checkpoint
