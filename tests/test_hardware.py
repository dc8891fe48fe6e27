"""One device, several, sharded or not, in every precision: the same mathematics and the same curve."""

import contextlib
import csv
import json

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from PIL import Image

from lightning_diffusion.training.precision import bf16_slowdown
from lightning_diffusion.training.sharding import _aligned
from lightning_diffusion.training.summary import _shared_cores, _slow_bf16
from src.sample import main as sample
from src.train import main as train
from tests import runs
from tests.command import in_process, run, start_ranks
from tests.runs import TINY

OPTIONS = [
    *(option for option in TINY if not option.startswith(("callbacks=", "trainer.accelerator"))), "callbacks=scores",
    "metrics.steps=10", "callbacks.scores.num_samples=101", "callbacks.scores.batch_size=40", "trainer.max_steps=6",
    "trainer.val_check_interval=3", "trainer.log_every_n_steps=1", "denoiser.label_dropout=0.2",
    "time_sampler=importance", "time_sampler.warmup=1", "hydra.run.dir=run",
]  # fmt: skip

FSDP = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The run on one device."""
    folder = tmp_path_factory.mktemp("single")
    status, _, err = in_process(train, *OPTIONS, "trainer=cpu", cwd=folder)
    assert status == 0, err
    return folder / "run"


def curve(run_dir):
    rows = list(csv.DictReader((run_dir / "metrics.csv").open()))
    keys = (
        "train/loss",
        "train/grad_norm",
        "val/loss",
        "val/bits_per_dim",
        "val/bits_per_dim_se",
        "fd_classifier",
        "coverage_classifier",
    )
    return {(row["step"], key): float(row[key]) for row in rows for key in keys if row.get(key)}


def check_equal_runs(got, expected):
    """Curves to float32, and the final grid to one grey level."""
    assert curve(got) == pytest.approx(curve(expected), rel=1e-3)
    assert len(curve(expected)) > 15
    pictures = [np.asarray(Image.open(folder / "samples" / "final.png")).astype(int) for folder in (got, expected)]
    assert abs(pictures[0] - pictures[1]).max() <= 2


def launched(*words, cwd):
    """Lightning starts the second rank, as for users: with the seconds of its imports."""
    return run(*words, cwd=cwd, forked=True)


def forked_ranks(*words, cwd):
    """All ranks are started from outside, as torchrun does."""
    ranks = start_ranks(*words, cwd=cwd, forked=True)
    ends = [rank.communicate(timeout=120) for rank in ranks]
    return max(rank.returncode for rank in ranks), *("".join(texts) for texts in zip(*ends, strict=True))


@pytest.mark.parametrize(
    ("options", "start"),
    [
        (["trainer=ddp_cpu"], forked_ranks),
        pytest.param(["trainer=ddp_cpu"], launched, marks=pytest.mark.slow),
        pytest.param(FSDP, launched, marks=pytest.mark.slow),
        pytest.param(["trainer=ddp_cpu", "trainer.devices=4"], launched, marks=pytest.mark.slow),
    ],
    ids=["ddp", "launched", "fsdp", "four"],
)
def test_the_same_curve_on_several_devices(tmp_path, single, options, start):
    """Times, noise, dropped labels and the time sampler's memory too; 101 samples are dealt out over the ranks."""
    status, out, err = start("src.train", *OPTIONS, *options, cwd=tmp_path)
    assert status == 0, err
    assert out.count("val/loss") == 1  # one rank speaks
    assert " × cpu" in out
    assert "Grad strides" not in err
    check_equal_runs(tmp_path / "run", single)
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]
    assert scores["fd_classifier"]["num_samples"] == 101
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.slow
def test_muon_puts_matrices_together_that_are_shared_out(tmp_path):
    curves = {}
    for name, options in {"cpu": ["trainer=cpu"], "fsdp": FSDP}.items():
        (tmp_path / name).mkdir()
        status, _, err = run("src.train", *OPTIONS, "optimizer=muon", *options, cwd=tmp_path / name)
        assert status == 0, err
        curves[name] = curve(tmp_path / name / "run")
    assert curves["fsdp"] == pytest.approx(curves["cpu"], rel=2e-3)


@pytest.mark.slow
def test_torchrun_makes_one_run(tmp_path, single):
    options = [option for option in OPTIONS if "run.dir" not in option]
    ranks = start_ranks("src.train", *options, "trainer=ddp_cpu", cwd=tmp_path)
    for process in ranks:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    (run_dir,) = (tmp_path / "runs" / "digits").iterdir()
    check_equal_runs(run_dir, single)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
def test_slurm_makes_one_run(tmp_path, single):
    """Two tasks of one node, with the variables that srun gives them."""
    options = [option for option in OPTIONS if "run.dir" not in option]
    common = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0",
        **dict.fromkeys(("MASTER_ADDR", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "GROUP_RANK", "LOCAL_WORLD_SIZE")),
    }  # fmt: skip
    ranks = start_ranks("src.train", *options, "trainer=ddp_cpu", cwd=tmp_path, **common)
    for process in ranks:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    (run_dir,) = (tmp_path / "runs" / "digits").iterdir()
    check_equal_runs(run_dir, single)


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", 1e-12), pytest.param("float32", 1e-5, marks=pytest.mark.slow)]
)
def test_two_ranks_have_the_gradients_of_one_process_and_noise_of_their_own(tmp_path, dtype, bound):
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        words = ("tests.training.gradients", tmp_path / str(count), dtype)
        for process in start_ranks(*words, cwd=tmp_path, count=count, forked=True):
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err[-3000:]
    one = torch.load(tmp_path / "1" / "0.pt")
    two = [torch.load(tmp_path / "2" / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(torch.cat([rank["noise"][0] for rank in two]), one["noise"][0])
    assert not torch.equal(two[0]["noise"][0], two[1]["noise"][0])
    for name, gradient in one["gradients"].items():
        assert gradient.dtype == getattr(torch, dtype)
        for rank in two:
            difference = (rank["gradients"][name] - gradient).norm() / gradient.norm()
            assert difference < bound, name


@pytest.mark.parametrize(
    ("device", "precision", "times", "told"),
    [
        ("cpu", "bf16-mixed", 300.0, True),
        ("cpu", "bf16-true", 2.5, True),
        ("cpu", "bf16-mixed", 0.5, False),
        ("cpu", "32-true", 300.0, False),
        ("cuda", "bf16-mixed", 300.0, False),
    ],
)
def test_a_cpu_that_is_slow_in_bf16_is_told(monkeypatch, device, precision, times, told):
    monkeypatch.setattr("lightning_diffusion.training.summary.bf16_slowdown", lambda: times)
    assert _slow_bf16(device, precision) == (
        {"note": f"on this CPU bf16 is {times:.0f} times slower than float32; choose trainer.precision=32-true"}
        if told
        else {}
    )


def test_more_processes_than_cores_are_reported_in_a_line(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    assert _shared_cores("cpu", 2) == _shared_cores("cuda", 4) == {}
    (line,) = _shared_cores("cpu", 4).values()
    assert line.startswith("4 CPU processes share 2 cores and take turns")
    assert "trainer.devices=1" in line


@pytest.mark.parametrize(
    ("device", "threads", "load", "told"),
    [("cpu", 2, 2.1, True), ("cpu", 2, 2.0, False), ("cpu", 1, 9.0, False), ("cuda", 2, 9.0, False)],
)
def test_cores_that_other_programs_use_are_reported_with_the_remedy(monkeypatch, device, threads, load, told):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    line = _shared_cores(device, 1).get("sharing", "")
    assert ("load average 2.1 on 2 cores" in line and "OMP_NUM_THREADS=1" in line) == told == bool(line)


def test_an_unknown_load_is_no_load(monkeypatch):
    def unknown():
        raise OSError

    monkeypatch.setattr("os.getloadavg", unknown)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert _shared_cores("cpu", 1) == {}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_aligned_gradients_are_the_same_numbers_in_the_parameters_strides(memory_format):
    network = torch.nn.Conv2d(6, 4, 1).to(memory_format=memory_format)
    odd = torch.arange(24.0).view(4, 6).as_strided((4, 6, 1, 1), (6, 1, 6, 6))
    same = _aligned(network.weight, odd)
    assert same.stride() == network.weight.stride()
    assert torch.equal(same, odd)
    assert same.data_ptr() == odd.data_ptr()
    other = torch.randn(6, 4).T[..., None, None]  # really another order
    assert _aligned(network.weight, other) is other


def test_bf16_slowdown_is_a_ratio_of_times():
    assert 0 < bf16_slowdown(side=16) < 1e6


def test_bf16_true_rounds_only_the_network(tmp_path, single, monkeypatch):
    monkeypatch.setattr("lightning_diffusion.training.summary.bf16_slowdown", lambda: 300.0)
    status, out, err = in_process(train, *OPTIONS, "trainer=cpu", "trainer.precision=bf16-true", cwd=tmp_path)
    assert status == 0, err
    assert "bf16 is 300 times slower than float32" in out
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    kinds = {name: value.dtype for name, value in checkpoint["state_dict"].items() if value.is_floating_point()}
    assert {kind for name, kind in kinds.items() if name.startswith("model.denoiser.backbone")} == {torch.bfloat16}
    assert {kind for name, kind in kinds.items() if name.startswith("ema.model.denoiser.backbone")} == {torch.float32}
    assert kinds["objective.time_sampler.second_moment"] == torch.float32
    averaged = [
        value for name, value in checkpoint["state_dict"].items() if name.startswith("ema.model.denoiser.backbone")
    ]
    assert any((value != value.bfloat16().float()).any() for value in averaged)
    mine, theirs = curve(tmp_path / "run"), curve(single)
    for step in range(6):
        assert mine[str(step), "train/loss"] == pytest.approx(theirs[str(step), "train/loss"], rel=0.03)
    arguments = ["ckpt_path=run/checkpoints/last.ckpt", "num_samples=10", "sampler.num_steps=4", "output_dir=out"]
    status, _, err = in_process(sample, *arguments, cwd=tmp_path)
    assert status == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_compiled_in_place(tmp_path, single, precision):
    options = ["trainer=cpu", "compile=true", f"trainer.precision={precision}"]
    status, _, err = in_process(train, *OPTIONS, *options, cwd=tmp_path)
    assert status == 0, err
    names = [
        list(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
        for folder in (tmp_path / "run", single)
    ]
    assert names[0] == names[1]
    mine, theirs = curve(tmp_path / "run"), curve(single)
    rel = 1e-4 if precision == "32-true" else 0.03
    for step in range(6):
        assert mine[str(step), "train/loss"] == pytest.approx(theirs[str(step), "train/loss"], rel=rel)


class Scaled(MixedPrecision):
    """Lightning's plugin of 16-mixed, without float16."""

    def forward_context(self):
        return contextlib.nullcontext()


class TestGradientScaler:
    """16-mixed with the fused optimizer, by the scaler itself: float16 needs a GPU, the scaler does not."""

    def fit(self, scale, clip, max_steps=3, gain=1.0):
        module = runs.module(dropout=0.0)
        for parameter in module.model.denoiser.parameters():
            parameter.register_hook(lambda gradient: gradient * gain)
        module.optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        plugins = [Scaled("16-mixed", "cpu", scaler)] if scaler else []
        trainer = runs.trainer(max_steps, gradient_clip_val=clip, plugins=plugins)
        trainer.fit(module, runs.digits())
        return module, trainer

    def test_clips_what_it_has_unscaled(self):
        plain, _ = self.fit(None, 0.1)
        scaled, _ = self.fit(2.0**10, 0.1)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(scaled.state_dict()[name], value, msg=name)

    def test_leaves_out_steps_that_overflow(self):
        """The first scales are tried and halved; nothing is taken for a divergence."""
        module, trainer = self.fit(2.0**127, 0.1, max_steps=6, gain=1e6)
        assert trainer.precision_plugin.scaler.get_scale() == 2.0**121
        assert all(value.isfinite().all() for value in module.state_dict().values())
        assert trainer.global_step == 6
