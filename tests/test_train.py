"""The command-line contract of training and sampling, end to end on a tiny network."""

import csv
import functools
import json
import math
import os
import signal
import time

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from lightning_diffusion.checkpoints.folder import read_checkpoint
from lightning_diffusion.checkpoints.loading import load_data
from lightning_diffusion.configuration.arguments import Node
from lightning_diffusion.configuration.trusted_targets import Targets
from lightning_diffusion.data.digits import Digits
from lightning_diffusion.data.order import EndlessShuffle
from lightning_diffusion.runs import environment
from src.sample import main as sample
from src.train import main as train
from tests.command import in_process, start
from tests.files import FASHION_MNIST, write_cifar10, write_mnist
from tests.runs import TINY
from tests.test_mistakes import check_one_line


def test_run_folder_holds_what_the_contract_says(finished):
    run_dir, _ = finished
    files = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    assert files == {
        "config.yaml", "overrides.yaml", "environment.json", "metrics.csv", "metrics.json", "noise_levels.csv",
        "checkpoints/last.ckpt",
        "checkpoints/step_0000020.ckpt", "checkpoints/step_0000040.ckpt",
        "samples/step_0000020.png", "samples/final.png", "samples/trajectory.gif",
    }  # fmt: skip
    config = OmegaConf.load(run_dir / "config.yaml")
    assert config.schedule.T == 100
    assert "${" not in (run_dir / "config.yaml").read_text()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["steps"] == 40
    assert 0 < metrics["val/loss"] < 2
    assert metrics["images_per_second"] > 0
    assert metrics["terminal_snr"] < 1e-3
    averaged = read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["state_dict"]
    assert metrics["parameters"] == sum(w.numel() for name, w in averaged.items() if name.startswith("ema.model."))
    assert metrics["likelihood"] == "bound"
    levels = list(csv.DictReader((run_dir / "noise_levels.csv").open()))
    images = sum(int(level["images"]) for level in levels)
    assert images == 32  # two batches of 16
    mean = sum(int(level["images"]) * float(level["loss"]) for level in levels) / images
    assert mean == pytest.approx(metrics["val/loss"], rel=1e-5)
    (start,) = json.loads((run_dir / "environment.json").read_text())
    assert start["command"].endswith(
        "schedule.T=100 trainer.max_steps=40 trainer.val_check_interval=20 trainer.log_every_n_steps=5"
    )
    assert start["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_library_that_is_missing_stops_no_run(monkeypatch):
    monkeypatch.setattr(environment, "LIBRARIES", ("torch", "no-such-library"))
    assert list(environment.environment()["libraries"]) == ["torch"]


def test_nothing_is_written_outside_the_run(finished):
    run_dir, _ = finished
    root = run_dir.parent.parent.parent
    assert [path.name for path in root.iterdir()] == ["runs"]
    assert [path.name for path in (root / "runs").iterdir()] == ["digits"]


def test_curves_are_logged(finished):
    rows = list(csv.DictReader((finished[0] / "metrics.csv").open()))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert {"val/loss", "val/bits_per_dim", "val/bits_per_dim_se", "train/grad_norm", "images_per_second"} <= set(
        rows[0]
    )
    assert [int(row["step"]) for row in rows] == sorted(int(row["step"]) for row in rows)


def test_the_console_shows_the_progress_and_the_paths_of_results(finished):
    _, out = finished
    for part in (
        "1,500 images, 297 held out, 8×8×1, 10 classes",
        "terminal SNR",
        "val/loss",
        "python -m src.sample",
    ):
        assert part in out
    assert "Warning" not in out


def test_pictures_are_pictures(finished):
    run_dir, _ = finished
    assert Image.open(run_dir / "samples" / "final.png").size[0] > 300
    film = imageio.imread(run_dir / "samples" / "trajectory.gif", index=None)
    assert len(film) == 5  # four steps
    assert film[0].std() > film[-1].std() * 0.2  # it starts from noise


def test_checkpoint_is_weights_and_plain_containers(finished):
    checkpoint = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    config = checkpoint["hyper_parameters"]
    assert type(config) is dict
    assert type(config["backbone"]["channel_mults"]) is list
    assert checkpoint["global_step"] == 40


def test_sampling_needs_the_checkpoint_alone(finished, tmp_path):
    checkpoint = tmp_path / "moved.ckpt"
    checkpoint.write_bytes((finished[0] / "checkpoints" / "last.ckpt").read_bytes())
    arguments = [f"ckpt_path={checkpoint}", "sampler.num_steps=4", "num_samples=20"]
    images = {}
    for batch_size in (20, 7):
        output_dir = f"output_dir={tmp_path}/b{batch_size}"
        status, _, err = in_process(sample, *arguments, output_dir, f"batch_size={batch_size}", cwd=tmp_path)
        assert status == 0, err
        with np.load(tmp_path / f"b{batch_size}" / "samples.npz") as arrays:
            images[batch_size] = arrays["images"].astype(int)
            assert arrays["images"].shape == (20, 8, 8, 1)
            assert arrays["images"].dtype == np.uint8
            assert arrays["labels"].tolist() == [*range(10)] * 2
    assert abs(images[20] - images[7]).max() <= 1
    assert {path.name for path in (tmp_path / "b7").iterdir()} == {"grid.png", "samples.npz"}
    assert len(np.unique(images[20].reshape(20, -1), axis=0)) == 20


def test_final_grid_is_what_sampling_from_the_checkpoint_gives(finished, tmp_path):
    """The averaged weights are the ones that the pictures, the checkpoint and src.sample share."""
    in_process(
        sample, f"ckpt_path={finished[0]}/checkpoints/last.ckpt", "num_samples=10", "sampler.num_steps=4",
        f"output_dir={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    ours, theirs = (
        np.asarray(Image.open(p)).astype(int) for p in (tmp_path / "grid.png", finished[0] / "samples/final.png")
    )
    assert abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_samples_of_a_compiled_network_and_in_bfloat16(finished, tmp_path, monkeypatch, backend):
    """By default the graph is traced but not turned into machine code, which takes a quarter of a minute."""
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend=backend))
    torch.compiler.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    checkpoint, images = f"ckpt_path={finished[0]}/checkpoints/last.ckpt", {}
    for words in ("precision=32-true", "precision=bf16-mixed", "compile=true"):
        options = [words, "num_samples=4", "sampler.num_steps=3", f"output_dir='{words}'"]
        status, _, err = in_process(sample, checkpoint, *options, cwd=tmp_path)
        assert status == 0, err
        images[words] = np.load(tmp_path / words / "samples.npz")["images"].astype(int)
    plain, reduced, compiled = images.values()
    assert abs(plain - compiled).max() <= 1
    assert graphs["unique_graphs"] > 0
    assert 0 < abs(plain - reduced).mean() < 2  # of 255
    for words, told in (
        ("precision=16", "choose 32-true or bf16-mixed"),
        ("compile=maybe", "choose true, false or reduce-overhead"),
    ):
        status, _, err = in_process(sample, checkpoint, words, cwd=tmp_path)
        assert (status, err.strip()) == (2, f"error: {words}: {told}")


def test_one_class_on_request_and_other_samplers(finished, tmp_path):
    checkpoint = f"ckpt_path={finished[0]}/checkpoints/last.ckpt"
    options = [
        "label=3",
        "sampler=ddpm",
        "sampler.num_steps=3",
        "num_samples=4",
        "guidance=none",
        "output_dir=out",
    ]
    status, _, err = in_process(sample, checkpoint, *options, cwd=tmp_path)
    assert status == 0, err
    assert np.load(tmp_path / "out" / "samples.npz")["labels"].tolist() == [3, 3, 3, 3]
    status, _, err = in_process(sample, checkpoint, "label=10", cwd=tmp_path)
    assert (status, err.strip()) == (2, "error: label=10: choose a whole number from 0 to 9")


def test_a_model_that_is_its_own_weaker_one_is_not_guided(finished, tmp_path):
    checkpoint, images = f"{finished[0]}/checkpoints/last.ckpt", {}
    for name in ("none", f"autoguidance guidance.weak.ckpt_path={checkpoint}"):
        options = [*f"guidance={name}".split(), "num_samples=3", "sampler.num_steps=2", f"output_dir={len(images)}"]
        status, _, err = in_process(sample, f"ckpt_path={checkpoint}", *options, cwd=tmp_path)
        assert status == 0, err
        images[name] = np.load(tmp_path / str(len(images)) / "samples.npz")["images"].astype(int)
    plain, guided = images.values()
    assert abs(plain - guided).max() <= 1


def test_without_classes(tmp_path):
    options = ["data.num_classes=null", "trainer.max_steps=3", "hydra.run.dir=run"]
    status, _, err = in_process(train, *TINY, *options, cwd=tmp_path)
    assert status == 0, err
    checkpoint = "ckpt_path=run/checkpoints/last.ckpt"
    status, _, err = in_process(sample, checkpoint, "sampler.num_steps=2", "output_dir=out", cwd=tmp_path)
    assert status == 0, err
    assert np.load(tmp_path / "out" / "samples.npz").files == ["images"]


@pytest.mark.parametrize("experiment", ["mnist", "fashion_mnist", "cifar10", "image_folder", "image_folder_quick"])
def test_experiments_run_on_small_files(tmp_path, experiment, monkeypatch):
    """A fast development run: the experiment's own pipeline, a smaller network."""
    root = tmp_path / "files"
    if experiment == "cifar10":
        write_cifar10(root, monkeypatch)
    elif "image_folder" in experiment:
        root.mkdir()
        for i in range(12):
            Image.new("RGB", (40, 50), (20 * i, 0, 0)).save(root / f"{i}.png")
    else:
        write_mnist(root, suffix=".gz")
    options = [
        f"experiment={experiment}", f"data.root={root}", "hydra.run.dir=run", "trainer.max_steps=2",
        "backbone.channels=8", "data.batch_size=4", "data.num_workers=1", "sampler.num_steps=2",
        "callbacks.samples.num_samples=4", "logger=csv", "trainer.accelerator=cpu",
    ]  # fmt: skip
    if "image_folder" not in experiment:
        options.append("metrics.steps=10")
    if experiment == "cifar10":
        options.append("callbacks=default")  # four images are too few for scores
    status, out, err = in_process(train, *options, cwd=tmp_path)
    assert status == 0, err
    assert (tmp_path / "run" / "samples" / "final.png").exists()
    if "mnist" in experiment:
        assert "scores: fd_classifier … of 20 samples against 20 training images" in out
    if "image_folder" in experiment:
        assert "scores: fd_efficientnet_lite0 … of 10 samples against 11 training images" in out
    if "mnist" in experiment:
        score = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]["fd_classifier"]
        assert score["num_samples"] == score["floor"]["num_samples"] == 20


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="apt-get install dataset-fashion-mnist")
def test_real_fashion_mnist_trains_from_debian_s_folder(tmp_path):
    options = [
        "experiment=fashion_mnist", f"data.root={FASHION_MNIST}", "hydra.run.dir=run", "trainer.max_steps=2",
        "backbone.channels=8", "data.batch_size=4", "sampler.num_steps=2", "callbacks.samples.num_samples=4",
        "logger=csv", "trainer.accelerator=cpu", "callbacks=default",
    ]  # fmt: skip
    status, out, err = in_process(train, *options, cwd=tmp_path)
    assert status == 0, err
    assert "60,000 images, 10,000 held out, 28×28×1, 10 classes" in out


@pytest.mark.parametrize(("signum", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_can_go_on(tmp_path, signum, expected):
    options = [*TINY, "trainer.log_every_n_steps=1", "hydra.run.dir=run"]
    endless = ["trainer.max_steps=100000", "trainer.val_check_interval=50000"]
    process = start("src.train", *options, *endless, cwd=tmp_path, forked=True)
    metrics = tmp_path / "run" / "metrics.csv"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 5):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signum)
    out, err = process.communicate(timeout=20)
    assert process.returncode == expected, err
    assert "Traceback" not in err
    assert "continue with resume=run" in out
    step = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step >= 5
    status, _, err = in_process(train, "resume=run", f"trainer.max_steps={step + 3}", cwd=tmp_path)
    assert status == 0, err
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == step + 3
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_going_on_in_the_same_folder_keeps_one_curve(tmp_path):
    options = [*TINY, "hydra.run.dir=run", "trainer.log_every_n_steps=2", "lr_scheduler=warmup_constant"]
    in_process(train, *options, "trainer.max_steps=6", cwd=tmp_path)
    in_process(train, *options, "trainer.max_steps=10", "ckpt_path=run/checkpoints/last.ckpt", cwd=tmp_path)
    whole = tmp_path / "whole"
    in_process(train, *options, "trainer.max_steps=10", f"hydra.run.dir={whole}", cwd=tmp_path)

    def curve(folder):
        rows = csv.DictReader((folder / "metrics.csv").open())
        return [(int(row["step"]), row["train/loss"]) for row in rows if row["train/loss"]]

    assert len(curve(whole)) == 5
    assert curve(tmp_path / "run") == curve(whole)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three pictures of digits, one of them large and in colour."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, size in enumerate((8, 8, 50)):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels if size == 50 else pixels[..., 0]).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("options", "rows", "columns", "results"),
    [
        ("edit=inpaint mask=left edit.num_steps=4 edit.jump=1 edit.resamples=2 edit.num_variants=3", 3, 5, 9),
        ("edit=image_to_image edit.strength=0.7 edit.num_variants=2", 3, 4, 6),
        ("edit=invert edit.num_iterations=1", 3, 3, 3),
        ("edit=interpolate edit.num_frames=3 edit.num_iterations=1", 2, 5, 6),
    ],
)
def test_pictures_are_edited_from_files_into_a_strip(finished, pictures, tmp_path, options, rows, columns, results):
    files = ",".join(str(path) for path in sorted(pictures.iterdir()))
    common = [f"ckpt_path={finished[0]}/checkpoints/last.ckpt", f"images=[{files}]", "label=3", "sampler.num_steps=4"]
    status, out, err = in_process(sample, *common, *options.split(), f"output_dir={tmp_path}/out", cwd=tmp_path)
    assert status == 0, err
    width, height = Image.open(tmp_path / "out" / "strip.png").size
    factor = math.ceil(512 / (9 * columns - 1))
    assert (width, height) == (factor * (9 * columns - 1), factor * (9 * rows - 1))
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert arrays["images"].shape == (results, 8, 8, 1)
        assert arrays["labels"].tolist() == [3] * results
        if "inpaint" in options:  # the right half is the pictures' own
            for v in range(3):
                for i in range(2):
                    given = np.asarray(Image.open(pictures / f"{i}.png"))
                    assert (arrays["images"][3 * v + i, :, 4:, 0] == given[:, 4:]).all()
            assert (arrays["images"][0] != arrays["images"][3]).any()  # variants differ
    assert "strip.png" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("images=[a.png]", "images: no edit is chosen; give edit="),
        ("edit=inpaint mask=left label=1", "images: missing; give picture files"),
        ("edit=inpaint images=[nowhere.png] mask=left label=1", "images=nowhere.png: no such file"),
        ("edit=inpaint images=[PICTURE] label=1", "mask: missing; give a picture that is white where to fill in"),
        (
            "edit=inpaint images=[PICTURE] mask=side label=1",
            "mask=side: no such file; give a picture, or one of left, right, top, bottom, middle",
        ),
        ("edit=invert images=[PICTURE] mask=left label=1", "mask: only edit=inpaint uses a mask"),
        ("edit=invert images=[PICTURE]", "label: missing; this model needs the class of each image, label=0 … 9"),
        ("edit=invert images=[PICTURE] label=10", "label=10: choose a whole number from 0 to 9"),
        ("edit=invert images=[PICTURE] label=1 sampler=ddpm", "edit: a latent determines its picture"),
        ("edit=interpolate images=[PICTURE] label=1", "images: give at least 2"),
        ("edit=image_to_image images=[PICTURE] label=1 edit.strength=2", "edit.strength=2"),
        ("edit=paint images=[PICTURE]", "edit=paint: no such option; did you mean inpaint?"),
        ("guidance=cfg", "guidance: this model was trained with denoiser.label_dropout=0"),
        ("guidance=autoguidance", "guidance.weak.ckpt_path: missing; give guidance.weak.ckpt_path=…"),
        ("guidance=autoguidance guidance.weak.ckpt_path=a.ckpt", "guidance.weak.ckpt_path=a.ckpt: no such file"),
        ("guidance=classifier", "guidance.classifier._target_: missing"),
    ],
)
def test_an_impossible_edit_is_an_error_of_one_line(finished, pictures, tmp_path, options, message):
    arguments = options.replace("PICTURE", str(pictures / "0.png")).split()
    checkpoint = f"ckpt_path={finished[0]}/checkpoints/last.ckpt"
    status, _, err = in_process(sample, checkpoint, *arguments, cwd=tmp_path)
    check_one_line(status, err, message, tmp_path)


def test_overfitting_takes_ten_images(tmp_path):
    """debug=overfit trains on ten images only, which are also the run's reference."""
    options = [*(word for word in TINY if not word.startswith("data.batch_size")), "trainer.max_steps=2"]
    status, out, err = in_process(train, "debug=overfit", *options, "hydra.run.dir=run", cwd=tmp_path)
    assert status == 0, err
    assert "10 images, 297 held out" in out
    node = OmegaConf.to_container(OmegaConf.load(tmp_path / "run" / "config.yaml").data)
    data = load_data(None, Node("data", node, Targets()))
    everything = Digits(channels=1, image_size=8, num_classes=None, batch_size=1).read("train")
    assert torch.equal(data["train"][torch.arange(10)][0], everything.images[:10])
    assert len(data["train"]) == 10
    order = EndlessShuffle(10, 40, num_batches=2, seed=0)
    assert all(sorted(indices.tolist()) == sorted([*range(10)] * 4) for _, indices in order)
