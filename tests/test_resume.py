"""resume=RUN_DIR: the run that was killed ends as if it never had been."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml

from lightning_diffusion.checkpoints.folder import newest_intact, read_checkpoint
from src.train import main as train
from tests.command import in_process, run, start
from tests.equality import assert_equal
from tests.runs import TINY

OPTIONS = [
    *(option for option in TINY if option != "callbacks=default"), "callbacks=scores", "metrics.steps=10",
    "callbacks.scores.num_samples=10", "callbacks.scores.every_n_steps=8", "callbacks.scores.share=null",
    "trainer.log_every_n_steps=1", "trainer.val_check_interval=4", "callbacks.samples.every_n_steps=0",
    "backbone.dropout=0.1", "time_sampler=importance",
]  # fmt: skip


def end_of(run_dir):
    """Everything that the end of a run is made of: weights, averages, optimizer, time sampler, rate; and the curve."""
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    parts = {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}
    rows = list(csv.DictReader((run_dir / "metrics.csv").open()))
    curve = [(row["step"], row["train/loss"], row["train/grad_norm"]) for row in rows if row["train/loss"]]
    measured = [
        (name, row["step"], row[name]) for name in ("val/loss", "fd_classifier") for row in rows if row.get(name)
    ]
    return parts, curve, measured


def rows_of(run_dir):
    """The whole curve but for what was timed."""
    rows = csv.DictReader((run_dir / "metrics.csv").open())
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def kill_when(process, run_dir, steps):
    """SIGKILL once that many rows are written."""
    metrics, deadline = run_dir / "metrics.csv", time.monotonic() + 90
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > steps):
        if process.poll() is not None:
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def finish(*arguments, cwd):
    status, _, err = run("src.train", *arguments, cwd=cwd, timeout=300, forked=True)
    assert status == 0, err


@pytest.mark.parametrize(
    ("kills", "options"),
    [
        (1, ["callbacks.checkpoint.monitor=val/loss"]),
        pytest.param(10, [], marks=pytest.mark.slow),
        pytest.param(10, ["data.num_workers=2"], marks=pytest.mark.slow),
        pytest.param(10, ["trainer.accumulate_grad_batches=2"], marks=pytest.mark.slow),
        pytest.param(10, ["data.batch_size=500"], marks=pytest.mark.slow),  # three steps an epoch: kills on its edge
        pytest.param(5, ["trainer.devices=2"], marks=pytest.mark.slow),
    ],
    ids=["short", "long", "workers", "accumulation", "edges", "two ranks"],
)
def test_a_killed_run_ends_bit_for_bit_as_if_it_never_had_been(tmp_path, kills, options):
    num_steps = 60 if kills > 1 else 24
    draw, steps = random.Random(0), [f"trainer.max_steps={num_steps}"]
    finish(*OPTIONS, *options, *steps, "hydra.run.dir=whole", cwd=tmp_path)
    process = start("src.train", *OPTIONS, *options, *steps, "hydra.run.dir=run", cwd=tmp_path, forked=True)
    for kill in range(kills):
        kill_when(process, tmp_path / "run", 6 + kill * 50 // kills + draw.randrange(6))
        if kill < kills - 1:
            process = start("src.train", "resume=run", cwd=tmp_path, forked=True)
    finish("resume=run", cwd=tmp_path)
    for got, expected in zip(end_of(tmp_path / "run"), end_of(tmp_path / "whole"), strict=True):
        assert_equal(got, expected)
    assert len(list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))) > num_steps
    others = [path for path in tmp_path.rglob("*") if path.is_file() and path.relative_to(tmp_path).parts[0] == "runs"]
    assert others == []  # a kill may leave Hydra's new folder behind, empty


def disturb(run_dir, how):
    """What clocks, copies and restored machines do to a run's folder between two starts."""
    for checkpoint in (run_dir / "checkpoints").glob("step_*.ckpt"):
        if how in ("future", "past"):
            moment = time.time() + (10**7 if how == "future" else -(10**9))
            os.utime(checkpoint, (moment - int(checkpoint.stem[5:]),) * 2)  # the newest is the oldest
    if how.startswith("-"):
        subprocess.run(["cp", how, run_dir, run_dir.with_name("copy")], check=True)
        shutil.rmtree(run_dir)
        run_dir.with_name("copy").rename(run_dir)


def test_a_kill_in_the_last_pictures_loses_nothing_and_resuming_makes_them(tmp_path):
    options = [*OPTIONS, "trainer.max_steps=8", "sampler.num_steps=4"]
    status, _, err = in_process(train, *options, "hydra.run.dir=whole", cwd=tmp_path)
    assert status == 0, err
    process = start("tests.killed_train", "in_animation", 1, *options, "hydra.run.dir=run", cwd=tmp_path, forked=True)
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    assert not (tmp_path / "run" / "samples" / "trajectory.gif").exists()
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 8
    status, _, err = in_process(train, "resume=run", cwd=tmp_path)
    assert status == 0, err
    for got, expected in zip(end_of(tmp_path / "run"), end_of(tmp_path / "whole"), strict=True):
        assert_equal(got, expected)
    for name in ("final.png", "trajectory.gif"):
        made = [(tmp_path / folder / "samples" / name).read_bytes() for folder in ("run", "whole")]
        assert made[0] == made[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_a_kill_after_the_last_step_keeps_the_weights_20_of_20(tmp_path, number):
    """In pictures, animation, validation and scores, which take about ten seconds here on an idle machine."""
    options = [*OPTIONS, "trainer.max_steps=8", "sampler.num_steps=300", "callbacks.samples.num_samples=100"]
    options = [*options, "callbacks.scores.num_samples=100", "trainer.val_check_interval=8"]
    process = start("src.train", *options, "hydra.run.dir=run", cwd=tmp_path)
    metrics, deadline = tmp_path / "run" / "metrics.csv", time.monotonic() + 90
    while not (metrics.exists() and "\n7," in metrics.read_text()):  # the last step's row
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.25 + number / 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 8
    if number % 5 == 0:
        finish("resume=run", cwd=tmp_path)
        assert (tmp_path / "run" / "samples" / "trajectory.gif").exists()
        scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]
        assert scores["fd_classifier"]["num_samples"] == 100


@pytest.mark.slow
def test_a_busy_machine_changes_neither_the_number_nor_the_score(tmp_path):
    """The second run competes with eight busy processes."""
    options = [*OPTIONS[:-3], "callbacks.scores.num_samples=null", "trainer.max_steps=16", "sampler.num_steps=20"]
    finish(*options, "hydra.run.dir=idle", cwd=tmp_path)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    try:
        finish(*options, "hydra.run.dir=loaded", cwd=tmp_path)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    idle, loaded = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("idle", "loaded"))
    assert idle["scores"] == loaded["scores"]
    assert idle["scores"]["fd_classifier"]["num_samples"] == 297
    assert_equal(end_of(tmp_path / "idle")[0], end_of(tmp_path / "loaded")[0])


PLACES = ["before_link", "after_link", "before_prune", "before_rename", "within_row"]
DISTURBANCES = ["future", "past", "-r", "-a"]
BEST = ["callbacks.checkpoint.monitor=val/loss", "trainer.max_steps=60"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    finish(*OPTIONS, *BEST, "hydra.run.dir=whole", cwd=folder)
    return folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_8_kills_at_a_chosen_place_of_a_run_whose_clock_and_disk_change(tmp_path, whole, place):
    """Of saving a checkpoint or writing a row; the folder's times are set or it is copied after each."""
    run_dir, draw = tmp_path / "run", random.Random(place)
    words, kills = [*OPTIONS, *BEST, "hydra.run.dir=run"], 0
    while kills < 8:
        count = draw.randrange(3, 6) if place == "within_row" else draw.randrange(1, 3)
        process = start("tests.killed_train", place, count, *words, cwd=tmp_path, forked=True)
        _, err = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, err
        kills += 1
        if (run_dir / "checkpoints").exists() and list((run_dir / "checkpoints").glob("step_*.ckpt")):
            disturb(run_dir, DISTURBANCES[kills % 4])
            words = ["resume=run"]
        else:
            shutil.rmtree(run_dir)
    finish("resume=run", cwd=tmp_path)
    for got, expected in zip(end_of(run_dir), end_of(whole), strict=True):
        assert_equal(got, expected)
    for name in ("best.ckpt", "last.ckpt"):
        assert (run_dir / "checkpoints" / name).resolve().name == (whole / "checkpoints" / name).resolve().name
    names = {path.relative_to(run_dir) for path in run_dir.rglob("*")}
    assert names == {path.relative_to(whole) for path in whole.rglob("*")}  # and no halves of files


def test_the_curve_is_the_same_whichever_step_it_goes_on_from(tmp_path):
    """Steps 3 to 5: before, at and after a validation, whose row has the number of its step."""
    options = [*OPTIONS, "trainer.max_steps=7", "callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=9"]
    status, _, err = in_process(train, *options, "hydra.run.dir=whole", cwd=tmp_path)
    assert status == 0, err
    for step in (3, 4, 5):
        run_dir = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole", run_dir, symlinks=True)
        for checkpoint in (run_dir / "checkpoints").glob("step_*.ckpt*"):
            if int(checkpoint.name[5:12]) > step:
                checkpoint.unlink()
        status, _, err = in_process(train, f"resume={step}", cwd=tmp_path)
        assert status == 0, err
        assert rows_of(run_dir) == rows_of(tmp_path / "whole"), step


@pytest.mark.slow
def test_20_kills_of_a_run_that_does_nothing_but_save_on_another_file_system(tmp_path):
    """A user who stages files elsewhere and copies them back loses the last one too."""
    draw, options = random.Random(2), [*OPTIONS, "trainer.max_steps=90", "callbacks.checkpoint.every_n_steps=1"]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        assert Path(disk).stat().st_dev != tmp_path.stat().st_dev
        finish(*options, "hydra.run.dir=whole", cwd=disk)
        process = start("src.train", *options, "hydra.run.dir=run", cwd=disk, forked=True)
        for kill in range(20):
            kill_when(process, Path(disk) / "run", 2 + 4 * kill + draw.randrange(4))
            process = start("src.train", "resume=run", cwd=disk, forked=True)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        for got, expected in zip(end_of(Path(disk) / "run"), end_of(Path(disk) / "whole"), strict=True):
            assert_equal(got, expected)


def test_a_damaged_checkpoint_is_passed_over_and_named(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run", symlinks=True)
    newest = tmp_path / "run" / "checkpoints" / "step_0000040.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])
    status, out, err = in_process(train, "resume=run", "trainer.max_steps=42", cwd=tmp_path)
    assert status == 0, err
    assert err.splitlines()[:2] == [
        "resume=run: step_0000040.ckpt is damaged",
        "resume=run: continuing from step_0000020.ckpt",
    ]
    assert "42 steps" in out
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").resolve().name == "step_0000042.ckpt"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_there_must_be_a_good_one(tmp_path):
    with pytest.raises(Exception, match="it has no checkpoint yet"):
        newest_intact(tmp_path, "resume=x")
    (tmp_path / "step_0000001.ckpt").write_text("x")
    with pytest.raises(Exception, match="none of its checkpoints is intact"):
        newest_intact(tmp_path, "resume=x")


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (None, "resume=nowhere", "resume=nowhere: no run to resume"),
        (None, "resume=run schedule.Tee=5", "schedule.Tee: no such key"),
        (["+callbacks.x._target_=os.system"], "resume=run", "calls os.system, which is not part of this project"),
        (
            ["optimizer._target_=torch.utils.collect_env.run"],
            "resume=run",
            "calls torch.utils.collect_env.run, which is not part of this project",
        ),
        (["trainer.max_steps=[broken"], "resume=run", ""),
    ],
)
def test_mistakes(finished, tmp_path, overrides, options, message):
    shutil.copytree(finished[0], tmp_path / "run", symlinks=True)
    if overrides is not None:
        (tmp_path / "run" / "overrides.yaml").write_text(yaml.safe_dump({"name": "digits", "overrides": overrides}))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    status, _, err = in_process(train, *options.split(), cwd=tmp_path)
    assert status == 2, err
    assert message in err.splitlines()[-1]
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_it_is_one_run_for_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = [option for option in TINY if option != "logger=csv"]
    for arguments in ([*options, "trainer.max_steps=2", "hydra.run.dir=run"], ["resume=run", "trainer.max_steps=4"]):
        status, _, err = in_process(train, *arguments, cwd=tmp_path)
        assert status == 0, err
        assert "W&B is off" not in err, "W&B did not start in time: " + err
    folders = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({folder.name.rsplit("-", 1)[1] for folder in folders}) == 1
