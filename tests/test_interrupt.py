"""Ctrl-C at any moment, to the whole process group as a terminal sends it: status 130, at most one line, within 2 s."""

import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.command import run, start
from tests.runs import TINY

WITHIN, BESIDE_OTHERS = 2.0, 10.0  # seconds, of a test that has the machine to itself, or has not
ENDLESS = [*TINY, "trainer.max_steps=1000000", "trainer.log_every_n_steps=1", "callbacks.samples.every_n_steps=0"]


def interrupt(process, within):
    """Ctrl-C; returns what was said on stderr."""
    asked = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    took = time.monotonic() - asked
    assert process.returncode == 130, err
    assert len(err.splitlines()) <= 1, err
    assert took < within, took
    return err


def check_stops_and_resumes(folder, workers, moment, *options, within=WITHIN):
    words = [*ENDLESS, f"data.num_workers={workers}", "hydra.run.dir=run", *options]
    process = start("src.train", *words, cwd=folder, group=True, forked=True, OMP_NUM_THREADS="1")
    metrics, deadline = folder / "run" / "metrics.csv", time.monotonic() + 90
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(moment)
    assert interrupt(process, within) == ""
    stopped = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert stopped > 0
    words = ["resume=run", f"trainer.max_steps={stopped + 2}"]
    status, _, err = run("src.train", *words, cwd=folder, forked=True)
    assert status == 0, err


def test_a_run_with_loader_workers(tmp_path):
    check_stops_and_resumes(tmp_path, 2, 0.5, within=BESIDE_OTHERS)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("workers", [0, 2])
def test_20_of_20(tmp_path, workers, number):
    """Half of them validate all the time."""
    validating = ["trainer.val_check_interval=2", "callbacks.checkpoint.every_n_steps=1000000"] if number % 2 else []
    check_stops_and_resumes(tmp_path, workers, random.Random(number).random(), *validating)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_asks_every_process_of_the_group(tmp_path, signum):
    words = [*ENDLESS, "data.num_workers=2", "hydra.run.dir=run"]
    process = start("src.train", *words, cwd=tmp_path, group=True, OMP_NUM_THREADS="1")
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(1)
    os.killpg(process.pid, signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signum, err
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


def check_whole(folder):
    """Files with final names can be read, and there are no others."""
    for path in folder.rglob("*"):
        if path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".npz":
            assert np.load(path)["images"].size
        assert not path.name.startswith(".") or path.name == ".lock", path


PROGRAMS = {
    "train": [*TINY, "trainer.max_steps=1000000", "hydra.run.dir=out"],
    "sample": ["ckpt_path=CHECKPOINT", "num_samples=20000", "sampler.num_steps=100", "output_dir=out"],
    "evaluate": ["ckpt_path=CHECKPOINT", "num_samples=20000", "sampler.num_steps=100", "output_dir=out"],
    "report": ["runs=RUN", "output_dir=out"],
    "export": ["ckpt_path=CHECKPOINT", "format=safetensors", "output_dir=out"],
}


@pytest.mark.parametrize(
    ("program", "moment"),
    [
        ("train", 1.0),
        pytest.param("sample", 0.5, marks=pytest.mark.slow),
        *(
            pytest.param(program, moment, marks=pytest.mark.slow)
            for program in PROGRAMS
            for moment in (0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
        ),
    ],
)
def test_a_program_from_its_imports_on(finished, tmp_path, program, moment):
    replaced = {"CHECKPOINT": f"{finished[0]}/checkpoints/last.ckpt", "RUN": str(finished[0])}
    words = [word.replace(*pair) for word in PROGRAMS[program] for pair in replaced.items() if pair[0] in word] + [
        word for word in PROGRAMS[program] if not any(name in word for name in replaced)
    ]
    process = start(f"src.{program}", *words, cwd=tmp_path, group=True, OMP_NUM_THREADS="1")
    time.sleep(moment)
    if process.poll() is None:
        interrupt(process, BESIDE_OTHERS)
    else:
        process.communicate()
    check_whole(tmp_path)
