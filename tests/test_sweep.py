"""Sweeps by the command line: each job is a separate run, however it is started."""

import json
import signal
import time

import pytest
import torch
import yaml

from lightning_diffusion.app.sweep import Sweep, sweep_to_resume
from lightning_diffusion.configuration.errors import ConfigError
from src.train import main as train
from tests.command import in_process, run, start
from tests.runs import TINY

OPTIONS = [*TINY, "trainer.max_steps=4"]


def jobs_of(folder):
    return sorted(path for path in folder.iterdir() if path.name.isdigit())


def config_of(job):
    return yaml.safe_load((job / "config.yaml").read_text())


def only_sweep(cwd):
    (folder,) = (cwd / "runs" / "sweeps").iterdir()
    return folder


@pytest.mark.usefixtures("forked_jobs")
def test_a_job_that_fails_ends_alone_and_is_told(tmp_path):
    words = ["-m", *OPTIONS, "schedule.T=-5,10"]
    status, out, err = in_process(train, *words, cwd=tmp_path)
    assert status == 1, err
    folder = only_sweep(tmp_path)
    bad, good = jobs_of(folder)
    assert json.loads((good / "metrics.json").read_text())["steps"] == 4
    assert not (bad / "config.yaml").exists()
    bits = json.loads((good / "metrics.json").read_text())["val/bits_per_dim"]
    where = bad.relative_to(tmp_path) / "output.log"
    cause = "schedule.T=-5: the chain needs at least one step, choose T >= 1"
    assert out.splitlines() == [
        f"sweep: {folder.relative_to(tmp_path)}",
        f"0: schedule.T=-5: failed: {cause} ({where})",
        f"1: schedule.T=10: val/bits_per_dim {bits:.4g}",
        f"1 of 2 jobs done in {folder.relative_to(tmp_path)}",
    ]
    assert err.splitlines()[0] == f"failed: 0: {cause}"

    other = ["-m", *OPTIONS, "schedule.T=10,20", f"hydra.sweep.dir={folder}"]  # 20 where 10 was done
    (bad / "metrics.json").write_text('{"val/loss": 1.0}')  # no need to train it
    status, out, err = in_process(train, *other, cwd=tmp_path)
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: hydra.sweep.dir: {good.relative_to(tmp_path)} holds another job")
    assert Sweep.folder is None  # what goes wrong from here on in this process takes nothing back


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["schedule=linear,cosin"], "schedule=cosin: no such option; did you mean cosine? (options: "),
        (["schedule.TT=5,10"], "schedule.TT: no such key; did you mean schedule.T?"),
        (["schedule.T=5,10", "swep=optuna"], "swep: no such key; did you mean sweep?"),
        (["seed=0,1", "resume=true"], "resume=true: no sweep with these arguments in runs/sweeps"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_misspelt_word_leaves_nothing_behind(tmp_path, words, message):
    status, _, err = in_process(train, "-m", *words, cwd=tmp_path)
    assert status == 2
    assert err.startswith(f"error: {message}")
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_job_has_one_node(tmp_path):
    words = ["-m", "seed=0,1", "trainer.num_nodes=2"]
    status, _, err = in_process(train, *words, cwd=tmp_path)
    assert status == 2
    assert err.splitlines()[-1].startswith("error: trainer.num_nodes, hydra.launcher.tasks_per_node: ")


@pytest.mark.slow
def test_one_that_is_cut_goes_on_and_those_that_are_done_stay(tmp_path):
    """Four jobs: done, failed, cut by a signal to the sweep, not begun yet; then the same words and resume=true."""
    words = ["-m", *TINY, "schedule.T=10,-5,30,40", "trainer.max_steps=60", "callbacks.checkpoint.every_n_steps=2"]
    process = start("src.train", *words, cwd=tmp_path)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("runs/sweeps/*/2/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    folder = only_sweep(tmp_path)
    done, failed, cut = jobs_of(folder)
    result = (done / "metrics.json").read_bytes()
    assert not (cut / "metrics.json").exists()
    reached = torch.load(cut / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 2 <= reached < 60
    assert out.splitlines()[2].startswith("1: schedule.T=-5: failed: schedule.T=-5: the chain needs at least one step")

    status, out, err = run("src.train", *words, "resume=true", cwd=tmp_path, timeout=300)
    assert status == 1, err
    assert [path.name for path in jobs_of(folder)] == ["0", "1", "2", "3"]
    assert (done / "metrics.json").read_bytes() == result  # with its seconds: it was not run again
    for job, T in ((done, 10), (cut, 30), (folder / "3", 40)):
        assert config_of(job)["schedule"]["T"] == T
        assert config_of(job)["group"] == folder.name
        assert json.loads((job / "metrics.json").read_text())["steps"] == 60
    assert not (failed / "metrics.json").exists()
    assert "3 of 4 jobs done" in out
    assert err.splitlines()[0].startswith("failed: 1: schedule.T=-5: ")
    assert only_sweep(tmp_path) == folder


def test_what_goes_on_must_have_been_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, words in (("a", ["x=1,2"]), ("b", ["x=1,2"]), ("c", ["x=1,3"])):
        (tmp_path / "runs" / "sweeps" / name).mkdir(parents=True)
        (tmp_path / "runs" / "sweeps" / name / "sweep.yaml").write_text(yaml.safe_dump({"words": words}))
    assert sweep_to_resume(["-m", "x=1,2", "resume=true"]) == ["hydra.sweep.dir='runs/sweeps/b'"]
    assert sweep_to_resume(["-m", "x=1,2"]) == []
    assert sweep_to_resume(["-m", "x=1", "resume=true", "hydra.sweep.dir=d"]) == []
    with pytest.raises(ConfigError, match="resume=true: no sweep with these arguments"):
        sweep_to_resume(["-m", "x=1,4", "resume=true"])


@pytest.mark.slow
def test_a_product_of_two_keys_is_a_job_for_each_pair(tmp_path):
    status, _, err = in_process(train, "-m", "schedule=linear,cosine", "schedule.T=20,50", *OPTIONS, cwd=tmp_path)
    assert status == 0, err
    assert config_of(only_sweep(tmp_path) / "1")["name"] == "digits schedule=linear schedule.T=50"
    schedules = [config_of(job)["schedule"] for job in jobs_of(only_sweep(tmp_path))]
    assert [(schedule["_target_"].rsplit(".", 1)[-1], schedule["T"]) for schedule in schedules] == [
        ("linear", 20), ("linear", 50), ("cosine", 20), ("cosine", 50),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        [],
        ["sweep=optuna", "hydra.sweeper.n_trials=2"],
        ["hydra/launcher=joblib"],
        ["hydra/launcher=submitit_local"],
    ],
    ids=["basic", "optuna", "joblib", "submitit"],
)
def test_two_jobs_of_two_ranks_are_two_runs(tmp_path, how):
    """Two folders and two W&B runs of one group: no rank starts the sweep again."""
    options = [*(option for option in OPTIONS if option != "logger=csv"), "trainer.devices=2"]
    sweep = [] if "sweep=optuna" in how else ["-m", "optimizer.lr=0.001,0.002"]
    status, out, err = run(
        "src.train", *sweep, *how, *options, cwd=tmp_path, timeout=300, WANDB_MODE="offline", OMP_NUM_THREADS="1"
    )
    assert status == 0, err
    assert "2 of 2 jobs done" in out
    folder = only_sweep(tmp_path)
    jobs = jobs_of(folder)
    assert len(jobs) == 2
    assert len({config_of(job)["optimizer"]["lr"] for job in jobs}) == 2
    assert len(list(folder.rglob("config.yaml"))) == 2 + len(list(folder.rglob("files/config.yaml")))
    runs = list(tmp_path.rglob("offline-run-*/run-*.wandb"))
    assert sorted(path.parent.parent.parent for path in runs) == jobs
    for job in jobs:
        assert config_of(job)["group"] == folder.name
        assert "4 steps" in (job / "output.log").read_text()
        assert json.loads((job / "metrics.json").read_text())["steps"] == 4


@pytest.mark.slow
def test_optuna_finds_its_earlier_trials(tmp_path):
    words = ["sweep=optuna", "hydra.sweeper.n_trials=2", *OPTIONS]
    assert run("src.train", *words, cwd=tmp_path)[0] == 0
    folder = only_sweep(tmp_path)
    (folder / "1" / "metrics.json").unlink()  # as if it had been cut at its very end
    tried = [config_of(job)["optimizer"]["lr"] for job in jobs_of(folder)]
    before = (folder / "0" / "metrics.json").stat().st_mtime_ns
    status, _, err = run("src.train", *words, "resume=true", cwd=tmp_path, timeout=300)
    assert status == 0, err
    assert [config_of(job)["optimizer"]["lr"] for job in jobs_of(folder)] == tried
    assert (folder / "0" / "metrics.json").stat().st_mtime_ns == before
    assert (folder / "1" / "metrics.json").exists()
    assert yaml.safe_load((folder / "optimization_results.yaml").read_text())["best_params"]
