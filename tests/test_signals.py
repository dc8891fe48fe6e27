"""A run that is asked to stop does, wherever it is and whichever process is asked; one whose rank dies ends too."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from src.train import main as train
from tests.command import in_process, run, start, start_ranks
from tests.runs import TINY
from tests.test_resume import assert_equal, end_of
from tests.training.faults import Fault

ENDLESS = [*TINY, "trainer.max_steps=1000000", "trainer.log_every_n_steps=1", "hydra.run.dir=run"]
PHASES = {  # what a run does nearly all of its time
    "training": ["trainer.val_check_interval=500000"],
    "validation": ["trainer.val_check_interval=2", "data.batch_size=2", "trainer.limit_val_batches=1.0"],
    "sampling": ["trainer.val_check_interval=2", "sampler.num_steps=1000", "callbacks.samples.num_samples=500"],
    "saving": ["trainer.val_check_interval=500000", "callbacks.checkpoint.every_n_steps=1"],
    "scores": [
        "callbacks=scores", "trainer.val_check_interval=2", "metrics.steps=10", "sampler.num_steps=1000",
        "callbacks.scores.num_samples=200", "callbacks.samples.every_n_steps=0", "callbacks.scores.share=null",
    ],
    "final pictures": [
        "trainer.val_check_interval=500000", "trainer.max_steps=6", "sampler.num_steps=1000",
        "callbacks.samples.num_samples=500",
    ],
}  # fmt: skip
LIMIT = 10  # seconds


def ranks_of(process):
    """The processes of a run's ranks, the first one first."""
    listed = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "train_ddp_process"], capture_output=True, text=True
    )
    return [process.pid, *map(int, listed.stdout.split())]


def started(folder, *options, devices):
    """A run that has begun to train, and the processes of its ranks."""
    words = [*ENDLESS, f"trainer.devices={devices}", *options]
    process = start("src.train", *words, cwd=folder, forked=True, OMP_NUM_THREADS="1")
    wait_for_training(process, folder)
    return process, ranks_of(process)


def wait_for_training(process, folder):
    metrics, deadline = folder / "run" / "metrics.csv", time.monotonic() + 90
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_gone(pids, within):
    """No process is left of them after so many seconds."""
    deadline = time.monotonic() + within
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def check_stops(folder, phase, who, signum, moment=1.0):
    process, ranks = started(folder, *PHASES[phase], devices=1 if who == "single" else 2)
    assert len(ranks) == (1 if who == "single" else 2)
    time.sleep(moment)
    asked = time.monotonic()
    for pid in {"single": ranks, "group": ranks, "first": ranks[:1], "second": ranks[1:]}[who]:
        os.kill(pid, signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert "Traceback" not in err
    check_gone(ranks, within=LIMIT - (time.monotonic() - asked))
    assert torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] > 0


def test_the_second_rank_is_asked_while_the_first_one_samples(tmp_path):
    """The ranks are started as by torchrun. In the slow tests Lightning starts the second one."""
    first, second = start_ranks(
        "src.train", *ENDLESS, "trainer.devices=2", *PHASES["sampling"], cwd=tmp_path, forked=True
    )
    wait_for_training(first, tmp_path)
    time.sleep(1)
    asked = time.monotonic()
    second.send_signal(signal.SIGTERM)
    for process in (first, second):
        _, err = process.communicate(timeout=LIMIT - (time.monotonic() - asked))
        assert "Traceback" not in err
    assert first.returncode == 128 + signal.SIGTERM
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] > 0


@pytest.mark.parametrize(
    ("devices", "signum"),
    [
        (1, signal.SIGTERM),
        pytest.param(1, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_the_training_of_the_scores_classifier_ends_at_once_and_the_run_can_be_resumed(tmp_path, devices, signum):
    """Before the first step: there is a checkpoint of step 0."""
    options = ["callbacks=scores", "metrics.steps=1000000"]
    words = [*TINY, *options, f"trainer.devices={devices}", "hydra.run.dir=run", "callbacks.scores.num_samples=10"]
    cache = {"LIGHTNING_DIFFUSION_CACHE": str(tmp_path / "cache")}
    process = start("src.train", *words, cwd=tmp_path, forked=True, OMP_NUM_THREADS="1", **cache)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("cache/classifier-*.lock")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    ranks, asked = ranks_of(process), time.monotonic()
    process.send_signal(signum)
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() - asked < LIMIT
        time.sleep(0.05)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert "Traceback" not in err
    assert "stopped; continue with resume=run" in out
    check_gone(ranks, within=LIMIT)
    status, _, err = in_process(
        train, "resume=run", "metrics.steps=10", "trainer.max_steps=2", "trainer.devices=1", cwd=tmp_path
    )
    assert status == 0, err
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.1, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8])
def test_sigterm_before_the_first_step_leaves_nothing_half_done(tmp_path, moment):
    """In imports, the configuration, the data and the start of the trainer."""
    process = start("src.train", *ENDLESS, cwd=tmp_path, OMP_NUM_THREADS="1")
    time.sleep(moment)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (143, -signal.SIGTERM) if moment < 0.5 else process.returncode == 143, err
    assert "Traceback" not in err
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert [path for path in files if path.name.startswith(".")] == []
    if (tmp_path / "run" / "checkpoints").exists():
        assert run("src.train", "resume=run", "trainer.max_steps=1500", cwd=tmp_path)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("who", ["single", "group", "first", "second"])
@pytest.mark.parametrize("phase", PHASES)
def test_sigterm(tmp_path, phase, who):
    check_stops(tmp_path, phase, who, signal.SIGTERM, moment=0.5 + hash((phase, who)) % 100 / 100)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["single", "group"])
@pytest.mark.parametrize("phase", ["training", "sampling"])
def test_ctrl_c(tmp_path, phase, who):
    check_stops(tmp_path, phase, who, signal.SIGINT)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_second_ctrl_c_ends_at_once(tmp_path, devices):
    """The first one is waiting for the end of a step that never ends."""
    hang = ["+callbacks.hang._target_=tests.test_signals.Hang", "trust=[tests]"]
    process, ranks = started(tmp_path, *PHASES["training"], *hang, devices=devices)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=2) == 130
    check_gone(ranks, within=LIMIT)


class Hang(Fault):
    def __init__(self):
        super().__init__("hang", step=5)

    def _befall(self, trainer, where):
        while where == "step" and trainer.global_step >= self.step:
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["validation", "scores"])
def test_what_a_run_is_stopped_in_is_done_when_it_goes_on(tmp_path, where):
    """Asked in the midst of a validation, or of its scores, it ends as if it never had been."""
    options = [
        *(option for option in TINY if option != "callbacks=default"), "callbacks=scores", "metrics.steps=10",
        "callbacks.scores.num_samples=10", "callbacks.samples.every_n_steps=0", "trainer.log_every_n_steps=1",
        "callbacks.scores.share=null",
        "trainer.val_check_interval=4", "trainer.max_steps=10", "trainer.limit_val_batches=3",
    ]  # fmt: skip
    fault = ["+callbacks.fault._target_=tests.training.faults.Fault", "+callbacks.fault.kind=SIGTERM", "trust=[tests]"]
    assert run("src.train", *options, "hydra.run.dir=whole", cwd=tmp_path)[0] == 0
    stopped = run("src.train", *options, *fault, f"+callbacks.fault.where={where}", "hydra.run.dir=run", cwd=tmp_path)
    assert stopped[0] == 143, stopped[2]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4
    status, _, err = run(
        "src.train", *options, "ckpt_path=run/checkpoints/last.ckpt", "hydra.run.dir=run", cwd=tmp_path
    )
    assert status == 0, err
    for got, expected in zip(end_of(tmp_path / "run"), end_of(tmp_path / "whole"), strict=True):
        assert_equal(got, expected)


@pytest.mark.parametrize(
    ("kind", "rank", "where"),
    [
        ("raise", 1, "step"),
        *(
            pytest.param(kind, rank, where, marks=pytest.mark.slow)
            for kind in ("kill", "raise", "memory")
            for rank, where in ((0, "step"), (1, "step"), (1, "validation"))
        ),
    ],
)
def test_one_rank_dies(tmp_path, kind, rank, where):
    fault = [f"+callbacks.fault.{key}={value}" for key, value in {"kind": kind, "rank": rank, "where": where}.items()]
    options = [
        *ENDLESS, "trainer.val_check_interval=4", "trainer.devices=2", "trainer.limit_val_batches=4",
        "+callbacks.fault._target_=tests.training.faults.Fault", *fault, "trust=[tests]",
    ]  # fmt: skip
    process = start("src.train", *options, cwd=tmp_path, forked=True, OMP_NUM_THREADS="1")
    metrics, deadline, ranks = tmp_path / "run" / "metrics.csv", time.monotonic() + 60, [process.pid]
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 1):
        assert time.monotonic() < deadline
        ranks = ranks_of(process)
        time.sleep(0.05)
    began = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode != 0
    check_gone(ranks, within=15 - (time.monotonic() - began))
