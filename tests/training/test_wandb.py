"""W&B offline, unreachable or dying: the real library against loopback servers. The run continues as without it."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from lightning_diffusion.training.loggers.wandb import WandbLogger
from tests.command import start
from tests.runs import TINY
from tests.wandb_server import answering, nobody

STEPS, EVERY = 60, 5
OPTIONS = [
    *(option for option in TINY if option != "logger=csv"),
    f"trainer.max_steps={STEPS}", f"trainer.log_every_n_steps={EVERY}", "trainer.val_check_interval=30",
    "hydra.run.dir=run", "group=g", "tags=[a,b]",
]  # fmt: skip
KEY = "0" * 40
LEET = [sys.executable, "-m", "wandb", "leet", "inspect"]
START_UP, END = 15.0, 45.0  # seconds that W&B may cost at most


@dataclasses.dataclass
class Observed:
    status: int
    err: list[str]
    curve: list[dict[str, str]]
    begun: float  # seconds to the first logged step, from when the run's folder is there
    ended: float  # seconds from the last one


def observe(folder, *options, at_half=None, forked=True, **environment):
    """Trains in a process of its own, and calls at_half(pid) when half of the steps are done; prints what it took."""
    times = {}
    environment = {"HOME": str(folder), "OMP_NUM_THREADS": "1"} | environment
    process = start("src.train", *OPTIONS, *options, cwd=folder, forked=forked, **environment)
    while process.poll() is None:
        for row in rows(folder / "run" / "metrics.csv")[-1:]:
            step = int(row["step"]) + 1
            times.setdefault("first", time.time())
            if step >= STEPS:
                times.setdefault("last", time.time())
            if step >= STEPS // 2 and at_half:
                at_half(process.pid)
                at_half = None
        time.sleep(0.02)
    exited = time.time()
    _, err = process.communicate()
    curve = [
        {key: value for key, value in row.items() if key != "images_per_second"}
        for row in rows(folder / "run" / "metrics.csv")
    ]
    begun = times["first"] - (folder / "run" / "config.yaml").stat().st_mtime
    seen = Observed(process.returncode, err.splitlines(), curve, begun, exited - times.get("last", exited))
    print(f"first row after {seen.begun:.1f} s, end {seen.ended:.1f} s after the last, status {seen.status}", *seen.err)
    return seen


def rows(path):
    """The whole lines of a metrics.csv."""
    text = path.read_text() if path.exists() else ""
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def upload(seen, folder):
    """Follows the advice that the line on stderr gives; returns the names of the files that reach a server."""
    program, *words = seen.err[0].split("`")[1].split()
    command = [sys.executable, "-m", program, *words]
    with answering() as server:
        environment = os.environ | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "HOME": str(folder)}
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=60)
    rows = b"".join(content for path, content in server.uploads if path.endswith("/file_stream"))
    assert rows.count(b"train/loss") >= len([row for row in seen.curve if row["train/loss"]])
    return {path.rsplit(".", 1)[-1] for path, _ in server.uploads if "/media/" in path}


def service(pid):
    """W&B's process, a child of the training's."""
    (child,) = [
        int(stat.parent.name)
        for stat in Path("/proc").glob("[0-9]*/stat")
        for name, fields in [stat.read_text().rsplit(")", 1)]
        if name.endswith("(wandb-core") and int(fields.split()[1]) == pid
    ]
    return child


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The same run without W&B."""
    seen = observe(tmp_path_factory.mktemp("without"), "logger=csv")
    assert seen.status == 0, seen.err
    assert [int(row["step"]) for row in seen.curve if row["train/loss"]] == list(range(EVERY - 1, STEPS, EVERY))
    return seen


def check(seen, without, expected):
    """The run equals the one without W&B and takes hardly longer; it prints the expected line or none."""
    assert seen.status == 0, seen.err
    assert seen.curve == without.curve
    assert seen.begun - without.begun < START_UP
    assert seen.ended - without.ended < END
    assert len(seen.err) == (1 if expected else 0), seen.err
    for words in expected:
        assert words in seen.err[0]
        assert "no answer within" not in seen.err[0]  # W&B keeps its own time


def check_contents(offline):
    """What W&B's own reader finds in the log."""
    (log,) = offline.glob("*.wandb")
    asked = subprocess.run([*LEET, "--json", str(log)], capture_output=True, text=True)
    records = [json.loads(line) for line in asked.stdout.splitlines()]
    kept = {
        kind: [record[kind] for record in records if record["type"] == kind] for kind in ("run", "history", "files")
    }
    (run,) = kept["run"]
    assert (run["run_group"], run["tags"]) == ("g", ["a", "b"])
    rows = [row["item"] for row in kept["history"]]
    everything = {key.split(".")[0] for row in rows for key in row}
    assert everything >= {
        "train/loss", "train/grad_norm", "train/lr", "train/ema_decay", "images_per_second", "val/loss",
        "val/bits_per_dim", "val/loss_q1", "val/loss_q2", "val/loss_q3", "val/loss_q4", "samples", "trajectory",
        "trainer/global_step",
    }  # fmt: skip
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == STEPS // EVERY
    assert "config.yaml" in {file["path"] for files in kept["files"] for file in files["files"]}
    asked = subprocess.run([*LEET, "--summary", "--json", str(log)], capture_output=True, text=True)
    told = json.loads(asked.stdout)
    assert told["summary"]["train/loss"] == {"min": pytest.approx(min(losses))}
    assert told["config"]["schedule.T"] == 1000
    assert told["config"]["trainer.max_steps"] == STEPS


def test_a_runs_row_shows_the_best_value_as_the_score_declares_it(tmp_path, monkeypatch):
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ERROR_REPORTING", "WANDB_SILENT"):
        monkeypatch.setenv(variable, str(tmp_path))
    logger, run = WandbLogger(str(tmp_path)), mock.Mock()
    monkeypatch.setattr(logger._session, "call", lambda function: function(run))
    logger.declare({"new_x": "max", "fd_x": "min"})
    logger.log_metrics({"new_x": 1.0, "fd_x": 2.0, "val/loss": 3.0, "train/lr": 4.0}, 5)
    shown = {call.args[0]: call.kwargs["summary"] for call in run.define_metric.call_args_list}
    assert shown == {"new_x": "max", "fd_x": "min", "val/loss": "min", "train/lr": None}


@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.slow)])  # the slow one: imports too
def test_without_a_key_it_logs_offline_and_stays_in_the_run(tmp_path, without, forked):
    folder = tmp_path / "home"
    folder.mkdir()
    check(observe(folder, forked=forked), without, expected=[])
    (offline,) = (folder / "run" / "wandb").glob("offline-run-*")
    check_contents(offline)
    assert list((offline / "files" / "media").rglob("*.png"))
    assert list((offline / "files" / "media").rglob("*.gif"))
    # torchmetrics imports matplotlib where there is one, which keeps a font cache of its own for the user
    assert {path.name for path in folder.iterdir()} <= {"run", ".cache", ".config"}
    assert [path for path in folder.glob(".*/**/*") if path.is_file() and "matplotlib" not in path.parts] == []


def test_a_service_that_dies_turns_it_off(tmp_path, without):
    seen = observe(tmp_path, at_half=lambda pid: os.kill(service(pid), signal.SIGKILL), WANDB_MODE="offline")
    check(seen, without, ["W&B is off (", "`wandb sync run/wandb/offline-run-"])


@pytest.mark.parametrize("code", [1, pytest.param(0, marks=pytest.mark.slow)])  # the next test also ends with 0
def test_a_server_gets_the_exit_status_of_the_run(tmp_path, monkeypatch, capfd, code):
    with answering() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        logger = WandbLogger(str(tmp_path))
        logger.log_metrics({"loss": 1.5}, 7)
        logger.finish(code)
        told = b"".join(content for path, content in server.uploads if path.endswith("/file_stream"))
    assert b'"exitcode":%d' % code in told
    assert rb"\"loss\":1.5" in told
    assert rb"\"trainer/global_step\":7" in told
    assert not capfd.readouterr().err


def test_a_checkpoint_that_the_server_does_not_take_is_told_and_the_run_ends_well(tmp_path, monkeypatch, capfd):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    with answering() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        logger = WandbLogger(str(tmp_path), log_checkpoints=True)
        logger.log_metrics({"loss": 1.5}, 7)
        logger.finish(0)
        told = b"".join(content for path, content in server.uploads if path.endswith("/file_stream"))
    assert b'"exitcode":0' in told
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("W&B did not accept last.ckpt (")


@pytest.mark.slow
def test_a_service_that_hangs_turns_it_off(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(str(tmp_path))
    logger.log_metrics({"loss": 1.0}, 0)
    hung = service(os.getpid())
    os.kill(hung, signal.SIGSTOP)
    began = time.monotonic()
    for step in range(100):  # until the pipe is full
        logger.log_metrics({"x" * 100_000: 1.0}, step)
    logger.finish(0)
    assert time.monotonic() - began < 20
    os.kill(hung, signal.SIGKILL)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("W&B is off (no answer within 10 s); upload the data so far with `wandb sync ")
    again = WandbLogger(str(tmp_path / "again"))  # as in a sweep
    again.log_metrics({"loss": 1.0}, 0)
    again.finish(0)
    assert len(list((tmp_path / "again" / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert not capfd.readouterr().err


def test_a_key_that_is_none_falls_back(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    logger = WandbLogger(str(tmp_path))
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finish(0)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("W&B is offline (")
    assert "API key" in line


@pytest.mark.slow
@pytest.mark.parametrize("backlog", [None, 16, 0], ids=["refuses", "never answers", "never accepts"])
def test_a_server_that_cannot_be_reached_costs_seconds(tmp_path, without, backlog):
    with nobody(backlog) as url:
        seen = observe(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
    check(seen, without, ["W&B is offline (", "`wandb sync run/wandb/offline-run-"])
    assert upload(seen, tmp_path) == {"png", "gif"}


@pytest.mark.slow
def test_a_server_that_answers_gets_everything(tmp_path, without):
    with answering() as server:
        check(observe(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url), without, expected=[])
    assert any(path.endswith("/file_stream") for path, _ in server.uploads)
    assert {path.rsplit(".", 1)[1] for path, _ in server.uploads if "/media/" in path} == {"png", "gif"}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["die", "fall_silent"])
def test_a_server_that_is_lost_midway_is_told_at_the_end(tmp_path, without, ending):
    with answering() as server:

        def lose(pid):
            assert server.uploads  # it was online
            getattr(server, ending)()

        seen = observe(tmp_path, at_half=lose, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    check(seen, without, ["W&B is off (", "`wandb sync --include-online run/wandb/run-"])
    assert upload(seen, tmp_path) == {"png", "gif"}


@pytest.mark.slow
def test_it_may_be_disabled(tmp_path, without):
    check(observe(tmp_path, WANDB_MODE="disabled"), without, expected=[])
