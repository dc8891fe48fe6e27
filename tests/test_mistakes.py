"""A mistake is one line on stderr that names the key and the remedy, exit status 2, and nothing written."""

import os
import re
import shutil

import pytest
import torch

from src.sample import main as sample
from src.train import main as train
from tests.command import in_process, run
from tests.files import seal_anyway, write_mnist

TRAIN = [
    ("schedule.TT=5", "schedule.TT: no such key; did you mean schedule.T?"),
    ("schedule=quadratc", "schedule=quadratc: no such option"),
    ("experiment=cifar", "experiment=cifar: no such option; did you mean cifar10?"),
    ("shedule=linear", "shedule: no such key; did you mean schedule?"),
    ("+schedule.beta_end=2", "schedule.beta_end: no such key; choose among T, s"),
    ("+foo=1", "foo: no such key"),
    ("schedule.T=abc", "schedule.T='abc': expected a whole number"),
    ("schedule.T=10.5", "schedule.T=10.5: expected a whole number"),
    ("schedule.T=-5", "schedule.T=-5: the chain needs at least one step"),
    ("schedule=linear schedule.beta_1=-5", "schedule.beta_1=-5"),
    ("backbone.channels=7", "backbone.channels=7: choose an even number"),
    ("backbone.attention_resolutions=[5]", "no level is 5 pixels wide"),
    ("backbone.dropout=true", "backbone.dropout=True: expected a number"),
    ("data.batch_size=0", "data.batch_size=0: must be at least 1"),
    (
        "data.image_size=[16]",
        "data.image_size=[16]: choose a whole number of at least 1 for squares, or two",
    ),
    ("data.image_size=[16,0]", "data.image_size=[16,0]: choose"),
    ("data.image_size=a", "data.image_size='a': expected a whole number or a list"),
    ("data.image_size=[16,24,3]", "data.image_size=[16,24,3]: choose"),
    ("data.image_size=[8,16]", "data.channels=1, data.image_size=[8,16]: these images are 1 × 8 × 8"),
    ("data.num_classes=ten", "data.num_classes='ten': expected a whole number or null"),
    ("data=image_folder", "data.root: missing; give data.root=…"),
    ("data=image_folder data.root=nowhere", "data.root=nowhere: no such folder"),
    ("data=image_folder data.root=. data.unreadable=ignore", "data.unreadable='ignore': expected stop or skip"),
    ("sampler.eta=2", "sampler.eta=2: choose 0"),
    ("sampler.num_steps=5000", "sampler.num_steps=5000 and schedule.T=1000"),
    ("sampler=ddpm sampler.variance=larned", "sampler.variance='larned': expected posterior or transition or learned"),
    (
        "sampler=ddpm sampler.variance=learned",
        "sampler.variance=learned: this model was not trained with learned variance",
    ),
    ("backbone.outputs=2", "objective.vlb_weight=0 and backbone.outputs=2"),
    ("objective.vlb_weight=0.001", "objective.vlb_weight=0.001 and backbone.outputs=1"),
    ("backbone.outputs=3", "backbone.outputs=3: choose 1, or 2"),
    ("schedule=vp sampler=ddpm", "sampler.num_steps=null and schedule"),
    ("schedule=flow time_grid=karras", "time_grid=karras and schedule"),
    ("schedule=jsd parameterization=eps", "parameterization=eps and schedule"),
    ("schedule=vp parameterization=mean", "parameterization=mean and schedule"),
    ("schedule=custom", "schedule.betas: missing; give schedule.betas=…"),
    ("schedule=custom schedule.betas=[0.1,2]", "every β must lie in (0, 1]"),
    ("weighting=min_snr weighting.gamma=-1", "weighting.gamma=-1"),
    ("denoiser.label_dropout=1", "denoiser.label_dropout=1"),
    ("objective.distance=cubic", "objective.distance='cubic': expected squared or absolute or huber"),
    ("guidance=cfg data.num_classes=null", "guidance: this model was trained without classes"),
    ("guidance=cfg", "guidance: this model was trained with denoiser.label_dropout=0 and never saw an image without"),
    ("guidance=cfg guidance.scales={lable:2}", "guidance.scales: this model takes no lable; give a scale for label"),
    ("guidance=cfg guidance.scales=[2]", "guidance.scales=[2]: expected"),
    ("guidance=cfg guidance.combine=sum", "guidance.combine='sum': expected nested or independent"),
    ("condition=lowres", "condition=lowres: no such option"),
    ("condition=low_resolution condition.factor=3", "condition.factor=3 and data.image_size=8: the factor does not"),
    ("condition=low_resolution condition.noise=0.5", "condition.noise=0.5, max_noise=0.2: choose 0 <= noise <="),
    ("condition=low_resolution condition.channels=3", "condition.channels=3 and data.channels=1"),
    (
        "condition=low_resolution backbone.condition_channels=0",
        "condition, backbone.condition_channels=0: the condition has 1",
    ),
    ("backbone.condition_channels=1", "condition, backbone.condition_channels=1: the condition has 0"),
    ("backbone.condition_channels=-1", "backbone.condition_channels=-1: choose 0 for no image"),
    ("condition=grey", "condition=grey and data.channels=1: only colour images can be shown in grey"),
    ("condition=mask", "condition: these images have no masks; choose data=scenes"),
    ("condition=picture", "condition: these images have no masks; choose data=scenes"),
    ("condition=mask data=scenes condition.channels=3", "condition.channels=3 and data.mask_classes=11: the masks"),
    ("model=gan condition=low_resolution", "condition"),
    ("condition=caption", "condition=caption: these images have no captions; choose data=scenes data.num_items=[2,2]"),
    ("condition=caption data=scenes", "condition=caption: these images have no captions; choose data=scenes data.num_"),
    ("condition=caption data=scenes data.num_items=[2,2] condition.num_words=9", "condition.num_words=9: there are 15"),
    ("condition=attributes", "condition=attributes: these images have no attributes; choose data=scenes"),
    ("data=scenes data.num_items=[2,5]", "data.num_items=[2,5]: choose the least and the largest number, 1 to 4"),
    ("backbone.num_words=3", "condition, backbone.num_words=3: the condition has 0"),
    ("denoiser.tokens_dropout=1", "denoiser.tokens_dropout=1: choose 0 <= tokens_dropout < 1"),
    ("denoiser.image_dropout=1", "denoiser.image_dropout=1: choose 0 <= image_dropout < 1"),
    (
        "condition=low_resolution data.num_classes=null guidance=cfg",
        "guidance: this model was trained with denoiser.image_dropout=0 and never saw an image without",
    ),
    ("module.ema_decay=1.5", "module.ema_decay=1.5"),
    ("optimizer.nesterov=0.9", "optimizer.nesterov: no such key"),
    ("+optimizer.nesterov=0.9", "optimizer.nesterov: no such key"),
    ("optimizer=adamw optimizer.momentum=0.9", "optimizer.momentum: no such key"),
    ("lr_scheduler.warmup_steps=-1", "lr_scheduler.warmup_steps=-1"),
    ("seed=abc", "seed='abc': expected a whole number"),
    ("optimizer.lr=-1", "optimizer.lr=-1: choose 0 <= lr"),
    ("optimizer=adamw optimizer.lr=-1", "optimizer: Invalid learning rate: -1"),
    ("trainer.max_steps=many", "trainer.max_steps='many': expected a whole number"),
    ("trainer.max_epochs=3", "trainer.max_epochs: no such key"),
    ("trainer.accelerator=warp", "warp"),
    ("trainer.precision=12", "trainer.precision=12: expected"),
    ("trainer.precision=16-mixed trainer=cpu", "trainer.precision=16-mixed: float16 is for GPUs; choose bf16-mixed"),
    ("trainer.precision=64-true", "trainer.precision=64-true: choose 32-true, bf16-mixed"),
    ("trainer=cpu trainer.devices=0", "trainer.devices=0: choose a whole number of at least 1, or auto"),
    ("trainer=cpu trainer.devices=-1", "trainer.devices=-1: choose a whole number of at least 1, or auto"),
    ("trainer=cpu trainer.devices=3", "data.batch_size=64 does not divide over 3 devices; choose a multiple of 3"),
    ("trainer=cpu trainer.devices=2 trainer.num_nodes=3", "does not divide over 6 devices"),
    ("trainer=cpu trainer.num_nodes=0", "num_nodes"),
    ("trainer=cpu trainer.strategy=dpp", "dpp"),
    ("trainer=ddp_gpu", "trainer=ddp_gpu: no such option; did you mean ddp_cpu?"),
    ("trainer.max_steps=0", "trainer.max_steps=0: choose max_steps >= 1"),
    ("trainer.max_steps=-1", "trainer.max_steps=-1: choose max_steps >= 1"),
    ("trainer.val_check_interval=0", "trainer.val_check_interval=0: choose a whole number of steps, at least 1"),
    ("trainer.val_check_interval=0.5", "trainer.val_check_interval=0.5: expected a whole number"),
    ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0: choose log_every_n_steps >= 1"),
    ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0: choose accumulate_grad_batches >= 1"),
    ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: choose gradient_clip_val > 0, or null"),
    ("compile=maybe", "compile='maybe': expected true or false or reduce-overhead"),
    (
        "compile=reduce-overhead trainer.accumulate_grad_batches=2",
        "compile=reduce-overhead and trainer.accumulate_grad_batches=2: a CUDA graph overwrites the gradients",
    ),
    ("schedule=cosine schedule.s=nan", "schedule.s=nan: expected a number"),
    ("backbone.in_channels=3", "backbone.in_channels=3 and data.channels=1"),
    ("objective.time_sampler=0", "objective.time_sampler=0: expected an option of its group"),
    ("~trainer._target_", "trainer._target_: missing"),
    ("schedule=[1,2]", "command line was"),
    ("backbone.num_blocks=1000000000", "backbone.num_blocks=1000000000: choose 1 to 1,000"),
    (
        "backbone.num_blocks=1000 backbone.channels=8 backbone.channel_mults=[1,2,2]",
        "backbone: this network does not fit into this machine's memory; choose",
    ),
    (
        "callbacks.checkpoint.monitor=fid",
        "monitor=fid: choose null or val/bits_per_dim, val/loss, fd_classifier",
    ),
    ("callbacks.checkpoint.mode=least", "callbacks.checkpoint.mode='least': expected min or max"),
    ("resume=nowhere", "resume=nowhere: no run to resume"),
    ("ckpt_path=http://localhost:1/a.ckpt", "ckpt_path=http://localhost:1/a.ckpt: no such file"),
    ("callbacks.samples.num_samples=0", "num_samples=0"),
    ("callbacks.scores.share=0", "share=0"),
    ("callbacks.checkpoint.keep=1", "keep=1"),
    ("data.num_images=0", "data.num_images=0: must be at least 1"),
    ("data.num_images=2000", "data.num_images=2000: there are 1500 to train on; null takes all of them"),
    (
        "sweep=samplers",
        "sweep=samplers: for a trained model only; use python -m src.evaluate ckpt_path=… sweep=samplers",
    ),
    (
        "metrics=likelihood",
        "metrics.likelihood.Likelihood: not of type Extractor; choose another metrics",
    ),
    ("metrics=inception metrics.weights=nowhere.pth", "metrics.weights=nowhere.pth: no such file"),
    ("~trainer.gradient_clip_val", "trainer.gradient_clip_val: missing; leave it in, or give another value"),
    ("metric=fid", "metric=fid: not measured in this run; choose val/bits_per_dim, val/loss, fd_classifier"),
    ("schedule.T=10 resume=true", "resume=true: no sweep with these arguments in runs/sweeps"),
    ("module.nonfinite=ignore", "module.nonfinite='ignore': expected stop or skip"),
    ("ckpt_path=nowhere.ckpt", "ckpt_path=nowhere.ckpt: no such file"),
    ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0: every run ends with a validation"),
    ("trainer.limit_val_batches=-1", "trainer.limit_val_batches=-1: every run ends with a validation"),
    ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches=1.5: every run ends with a validation"),
    ("trainer.limit_val_batches=0.001", "trainer.limit_val_batches=0.001: leaves none of the 5 batches"),
    ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: expected a list of 2, each a number"),
    ("optimizer=adamw optimizer.betas=[0.9]", "optimizer.betas=[0.9]: expected a list of 2"),
    ("optimizer=adamw optimizer.betas=[0.9,2]", "optimizer: Invalid beta parameter"),
    ("callbacks.stop=5", "callbacks.stop=5: expected an option of its group, a Callback or null"),
    ("callbacks=5", "command line was"),
    ("~callbacks", "callbacks: missing; keep this key, or choose another callbacks=…"),
    ("~optimizer", "optimizer: missing"),
    ("logger.csv.path=''", "logger.csv.path='': name a file"),
    ("logger.csv.path=/", "logger.csv.path='/': name a file"),
    ("callbacks.noise_levels.path=.", "callbacks.noise_levels.path='.': name a file"),
    ("+trainer.overfit_batches=1", "trainer.overfit_batches=1: this option of Lightning is not supported"),
    ("+trainer.fast_dev_run=true", "trainer.fast_dev_run=True: this option of Lightning is not supported"),
    ("data.batch_size=1000000000", "data.batch_size=1000000000: these images need 238 GiB"),
    ("data.num_workers=100000", "data.num_workers=100000: choose at most"),
    ("trainer=cpu trainer.num_nodes=2", "trainer.num_nodes=2: the addresses of the other nodes are unknown"),
    ("callbacks.samples.share=0", "share=0"),
    ("optimizer._target_=my.Optimizer", "optimizer: calls my.Optimizer, which is not part of this project"),
    ("+backbone._args_=[1]", "backbone._args_: no such key"),
    ("trust=my", "trust=my: not a list of packages; give trust=[my]"),
    ("trust=[os]", "trust=[os]: part of Python's standard library, which has no models"),
    ("tags=['\\${x}']", "config: contains an interpolation"),
    ("schedule.T=", "schedule.T"),
    ("=3", "=3"),
]

OF_A_KIND = (  # with another that is tried by default: the same check of the same key, or of one like it
    "data.image_size=[16,0]", "data.image_size=[16,24,3]",
    "schedule.T=10.5", "data.num_classes=ten", "seed=abc", "trainer.max_steps=many", "+foo=1",
    "+optimizer.nesterov=0.9", "optimizer=adamw optimizer.momentum=0.9", "optimizer=adamw optimizer.betas=[0.9]",
    "trainer=cpu trainer.devices=-1", "trainer=cpu trainer.devices=2 trainer.num_nodes=3",
    "trainer.limit_val_batches=-1", "trainer.limit_val_batches=1.5", "+trainer.fast_dev_run=true", "~optimizer",
    "logger.csv.path=/", "callbacks.noise_levels.path=.",
)  # fmt: skip


def check_one_line(status, err, message, folder):
    assert status == 2, err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert re.match(r"error: ([\w.]+|\S+=\S*)(=|: |;|,)", lines[0]) or "command line was" in lines[0], lines[0]
    assert message in lines[0]
    assert not list(folder.rglob("*")), "something was written"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("option", ["gpu", "mps", "ddp", "fsdp"])
def test_hardware_that_is_not_here(tmp_path, option):
    status, _, err = in_process(train, f"trainer={option}", cwd=tmp_path)
    accelerator = "mps" if option == "mps" else "gpu"
    message = f"trainer.accelerator={accelerator}: not available here; choose trainer=cpu, or ddp_cpu for several"
    check_one_line(status, err, message, tmp_path)


def test_a_folder_that_holds_a_run_is_left_as_it_is(finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir, symlinks=True)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    status, _, err = in_process(train, "hydra.run.dir=run", cwd=tmp_path)
    assert (status, err) == (
        2,
        "error: run_dir=run: already holds a run; continue with resume=run, or choose another hydra.run.dir\n",
    )
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [pytest.param(*mistake, marks=[pytest.mark.slow] if mistake[0] in OF_A_KIND else []) for mistake in TRAIN],
    ids=[overrides for overrides, _ in TRAIN],
)
def test_train(tmp_path, overrides, message):
    status, _, err = in_process(train, *overrides.split(), cwd=tmp_path)
    check_one_line(status, err, message, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("", "ckpt_path: missing; give ckpt_path=…"),
        ("ckpt_path=nowhere.ckpt", "ckpt_path=nowhere.ckpt: no such file"),
        ("ckpt_path=nowhere.ckpt num_samples=0", "num_samples=0"),
        ("ckpt_path=nowhere.ckpt sampler=dim", "sampler=dim: no such option; did you mean ddim?"),
    ],
)
def test_sample(tmp_path, overrides, message):
    status, _, err = in_process(sample, *overrides.split(), cwd=tmp_path)
    check_one_line(status, err, message, tmp_path)


def test_files_that_are_no_checkpoints_are_refused_and_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    files, empty = tmp_path / "files", tmp_path / "empty"
    files.mkdir()
    empty.mkdir()
    torch.save({"state_dict": Hostile()}, files / "hostile.ckpt")
    torch.save({"state_dict": {}}, files / "foreign.ckpt")
    (files / "text.ckpt").write_text("hello")
    for name in ("hostile.ckpt", "foreign.ckpt"):
        seal_anyway(files / name)
    for path in files.iterdir():
        for program in (train, sample):
            status, _, err = in_process(program, f"ckpt_path={path}", cwd=empty)
            check_one_line(status, err, "not a readable checkpoint of this project", empty)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_that_calls_foreign_code_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    call = {
        "_target_": "lightning_diffusion.diffusion.denoiser.NetworkDenoiser",
        "backbone": {"_target_": "os.mkdir", "path": "made"},
    }
    torch.save({"hyper_parameters": {"denoiser": call}, "state_dict": {}}, path)  # as the first version has it
    seal_anyway(path)
    status, _, err = in_process(sample, f"ckpt_path={path}", cwd=tmp_path)
    assert status == 2
    assert "its configuration cannot be used: model.denoiser.backbone: calls os.mkdir, which is not part of" in err
    assert not (tmp_path / "made").exists()


def test_missing_data_without_network(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    status, _, err = in_process(train, "experiment=mnist", "data.root=nowhere", cwd=tmp_path)
    assert status == 2
    assert "place MNIST's four IDX files in nowhere" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_damaged_data_is_named_before_training(tmp_path):
    write_mnist(tmp_path / "files")
    path = tmp_path / "files" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    status, _, err = in_process(train, "experiment=mnist", f"data.root={tmp_path}/files", cwd=tmp_path)
    assert status == 2
    assert "t10k-labels-idx1-ubyte: holds 19 bytes, but its header declares 20" in err


def test_as_a_command_one_that_hydra_finds(tmp_path):
    status, out, err = run("src.train", "schedule.TT=5", cwd=tmp_path)
    assert not out
    check_one_line(status, err, "schedule.TT", tmp_path)


@pytest.mark.slow
def test_as_a_command_one_that_a_constructor_finds_with_a_traceback_on_request(tmp_path):
    status, _, err = run("src.train", "schedule.T=-5", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert status == 2
    assert "Traceback" in err
    assert err.strip().splitlines()[-1].startswith("error: schedule.T=-5")


def test_folders_that_were_there_before_stay(tmp_path):
    """A mistake removes the run's folder that Hydra has just made, never one of the user's, empty or not."""
    mine = tmp_path / "mine"
    mine.mkdir()
    os.utime(mine, (0, 0))
    status, _, _ = in_process(train, "schedule.T=-5", "hydra.run.dir=mine", cwd=tmp_path)
    assert status == 2
    assert mine.is_dir()
    status, _, _ = in_process(train, "schedule.T=-5", "hydra.run.dir=a/b", cwd=mine)
    assert status == 2
    assert list(mine.iterdir()) == []
