"""A run's folder belongs to one process: a second one is refused, and a folder that is gone is not recreated."""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import threading
import time

import pytest
from lightning.pytorch.utilities import rank_zero_only

from lightning_diffusion.system.files import NotWritten
from lightning_diffusion.training.loggers.csv import CSVLogger
from lightning_diffusion.training.ownership import check_owned, make_run_folder, own, ownership
from src.train import main as train
from tests.command import REPOSITORY, in_process, run, start
from tests.runs import TINY
from tests.training.test_durable import save


@contextlib.contextmanager
def another(folder, *arguments):
    """Another process, which owns the folder until it is killed."""
    process = start("tests.training.hold", folder, *arguments, cwd=REPOSITORY, forked=True)
    try:
        while not (line := process.stdout.readline()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.child = int(line)
        yield process
    finally:
        process.kill()
        process.wait()


def tree(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*") if path.name != ".lock"}


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    with ownership():
        with another(tmp_path) as process:
            with pytest.raises(NotWritten, match=f"process {process.pid} on {socket.gethostname()} is writing to it; "):
                own(tmp_path)
            process.kill()
            process.wait()
        assert (tmp_path / ".lock").exists()  # which is no sign of a run
        own(tmp_path)
        own(tmp_path)
        own(tmp_path / ".")  # opens no second lock file, whose closing would drop the lock
        _, _, err = run("tests.training.hold", tmp_path, cwd=REPOSITORY, forked=True)
        assert f"process {os.getpid()} on" in err
    assert list(tmp_path.iterdir()) == []
    with another(tmp_path):
        pass


@pytest.mark.slow
def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    with another(tmp_path, "fork") as process:
        process.kill()
        process.wait()
        try:
            with ownership():
                own(tmp_path)
        finally:
            os.kill(process.child, 9)


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, capsys):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with ownership():
        own(tmp_path)
        check_owned()
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}: not protected against a second process (No locks available)"
    ]


def test_other_ranks_leave_the_folder_to_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with another(tmp_path), ownership():
        own(tmp_path)


@pytest.mark.parametrize("change", ["moved", "removed", "replaced"])
def test_a_missing_folder_stops_the_next_row_and_save_and_is_not_recreated(tmp_path, change):
    (folder := tmp_path / "run").mkdir()
    logger = CSVLogger(str(folder / "metrics.csv"))
    with ownership():
        own(folder)
        logger.log_metrics({"a": 1}, 1)
        save(folder / "checkpoints" / "a.ckpt", 1)
        if change == "moved":
            folder.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(folder)
        if change == "replaced":
            folder.mkdir()
        for write in (
            lambda: logger.log_metrics({"a": 2}, 2),
            lambda: logger.log_metrics({"b": 2}, 2),
            lambda: CSVLogger(str(folder / "metrics.csv")).log_metrics({"b": 2}, 2),
            lambda: save(folder / "checkpoints" / "b.ckpt", 2),
            lambda: make_run_folder(folder / "samples"),
        ):
            with pytest.raises(NotWritten, match=r"run: removed or moved while the run was writing to it"):
                write()
    assert folder.exists() == (change == "replaced")
    assert change != "replaced" or list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["resume=run"],
        pytest.param(["ckpt_path=run/checkpoints/last.ckpt", "hydra.run.dir=run"], marks=pytest.mark.slow),
        pytest.param(["hydra.run.dir=new"], marks=pytest.mark.slow),
    ],
    ids=["resume", "ckpt_path", "new"],
)
def test_a_run_in_a_folder_that_is_in_use_writes_nothing(finished, tmp_path, words):
    shutil.copytree(finished[0], tmp_path / "run", symlinks=True)
    newest = tmp_path / "run" / "checkpoints" / "step_0000040.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])  # reported by the search for the newest, before it owns the folder
    (tmp_path / "new").mkdir()
    before = tree(tmp_path)
    with another(tmp_path / words[-1].split("=")[-1]) as process:
        status, out, err = in_process(train, *TINY, "trainer.max_steps=50", *words, cwd=tmp_path)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert f"process {process.pid} on" in line
    assert tree(tmp_path) == before


def test_a_run_whose_folder_is_moved_away_ends_in_a_line(tmp_path):
    def move():
        while not (tmp_path / "run" / "metrics.csv").exists():
            time.sleep(0.01)
        (tmp_path / "run").rename(tmp_path / "elsewhere")

    threading.Thread(target=move, daemon=True).start()
    options = ["trainer.max_steps=1000000", "trainer.log_every_n_steps=1", "hydra.run.dir=run"]
    status, _, err = in_process(train, *TINY, *options, cwd=tmp_path)
    assert status == 2
    assert err.splitlines() == [
        "error: run_dir=run: removed or moved while the run was writing to it; the run has stopped writing"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_of_two_that_start_at_once_one_runs(finished, tmp_path, devices):
    """Fresh, and resumed."""
    for words, steps in ((["hydra.run.dir=run"], 30), (["resume=run"], 60)):
        options = [*TINY, f"trainer.devices={devices}", f"trainer.max_steps={steps}", "trainer.log_every_n_steps=1"]
        both = [start("src.train", *options, *words, cwd=tmp_path) for _ in range(2)]
        told = [process.communicate(timeout=200)[1] for process in both]
        assert sorted(process.returncode for process in both) == [0, 2], told
        refused = next(err for process, err in zip(both, told, strict=True) if process.returncode)
        assert len(refused.splitlines()) == 1, refused
        rows = [line.split(",")[:2] for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
        trained = [int(step) for step, loss in rows if loss]
        assert trained == list(range(steps))
