"""Every family of conf/model through the real programs, found without being named."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import get_class

from lightning_diffusion.app.evaluate import main as evaluate
from lightning_diffusion.app.report import main as report
from lightning_diffusion.app.sample import main as sample
from lightning_diffusion.app.train import main as train
from lightning_diffusion.checkpoints.folder import read_checkpoint
from lightning_diffusion.checkpoints.loading import load
from lightning_diffusion.configuration.trusted_targets import CONF
from lightning_diffusion.models.contracts import Generator, Likelihood, Predictor
from lightning_diffusion.runs.reporting.families import compare_families
from lightning_diffusion.runs.reporting.table import compare
from lightning_diffusion.runs.run import find
from tests.command import in_process, start

FAMILIES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
WORDS = [
    "optimizer=adamw", "lr_scheduler.warmup_steps=2", "trainer=cpu", "trainer.limit_val_batches=1", "callbacks=default",
    "callbacks.samples.num_samples=10", "trainer.val_check_interval=4", "data.batch_size=16", "logger=csv",
]  # fmt: skip
SMALL = {
    "autoregressive": ["network.width=8", "network.depth=1"],
    "diffusion": ["sampler.num_steps=2", "backbone.channels=8", "schedule.T=20"],
    "gan": ["network.width=4", "discriminator.width=4"],
    "segmentation": ["data=scenes", "data.image_size=16", "backbone.channels=4", "backbone.depth=1"],
    "vae": ["network.width=4"],
}


SCORED = ["callbacks=scores", "callbacks.scores.every_n_steps=0", "callbacks.scores.num_samples=20", "metrics.steps=10"]
TRAINED = {}  # the runs of the families so far that draw samples


def class_of(family: str) -> type:
    """The class of a family's models."""
    target = yaml.safe_load((CONF / "model" / f"{family}.yaml").read_text())["model"]["_target_"]
    return get_class(target)


def words(family: str, *more: str) -> list[str]:
    return [f"model={family}", *WORDS, *SMALL.get(family, []), *more]


def done(main, *words, cwd):
    status, out, err = in_process(main, *words, cwd=cwd)
    assert status == 0, err
    return out


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tmp_path_factory):
    """A family, and the folder of its run of eight steps."""
    folder = tmp_path_factory.mktemp(request.param)
    draws = issubclass(class_of(request.param), Generator)
    scored = SCORED if draws else []
    done(train, *words(request.param, *scored, "trainer.max_steps=8", "hydra.run.dir=whole"), cwd=folder)
    if draws:
        TRAINED[request.param] = folder / "whole"
    return request.param, folder


def weights(run):
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(trained):
    family, folder = trained
    arguments = words(family, "trainer.max_steps=8", "callbacks.checkpoint.every_n_steps=1", "hydra.run.dir=killed")
    process = start("tests.killed_train", "before_link", 3, *arguments, cwd=folder, forked=True)
    process.communicate(timeout=120)
    assert process.returncode == -9
    assert not (folder / "killed" / "metrics.json").exists()
    done(train, "resume=killed", cwd=folder)
    whole, resumed = weights(folder / "whole"), weights(folder / "killed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_it_draws_is_measured_and_reported(trained, tmp_path):
    _, folder = trained
    checkpoint = ["ckpt_path=whole/checkpoints/last.ckpt", "device=cpu"]
    model = load(folder / "whole" / "checkpoints" / "last.ckpt").model
    words = [*checkpoint, "num_samples=10", f"output_dir={tmp_path / 'samples'}"]
    if isinstance(model, Generator):
        assert {path.name for path in (folder / "whole" / "samples").iterdir()} >= {"final.png", "trajectory.gif"}
        done(sample, *words, "label=3", cwd=folder)
        with np.load(tmp_path / "samples" / "samples.npz") as samples:
            assert samples["images"].shape == (10, 8, 8, 1)
            assert samples["labels"].tolist() == [3] * 10
    else:
        for main in (sample, evaluate):
            status, _, err = in_process(main, *words, cwd=folder)
            assert (status, len(err.strip().splitlines())) == (2, 1), err
            assert f"a {type(model).__name__} draws no samples" in err
        assert not (tmp_path / "samples").exists()
    arguments = ["metrics=likelihood", "num_images=16", f"output_dir={tmp_path / 'likelihood'}"]
    status, _, err = in_process(evaluate, *checkpoint, *arguments, cwd=folder)
    if isinstance(model, Likelihood):
        assert status == 0, err
        results = json.loads((tmp_path / "likelihood" / "metrics.json").read_text())
        assert all(
            0 <= result["mean"] < 100 for result in results.values() if isinstance(result, dict) and "mean" in result
        )
    else:
        assert (status, len(err.strip().splitlines())) == (2, 1), err
    assert "metrics=likelihood" in err or status == 0
    done(report, "runs=whole", cwd=folder)
    assert (folder / "whole" / "report" / "report.html").is_file()


def test_the_report_compares_it_with_the_families_before(trained, tmp_path):
    if trained[0] not in TRAINED:
        pytest.skip("draws no samples")
    for name, run in TRAINED.items():
        shutil.copytree(run, tmp_path / "runs" / name, ignore=shutil.ignore_patterns("checkpoints", "report"))
    found = compare_families(compare(find(tmp_path / "runs"), "fd_classifier"))
    if len(TRAINED) == 1:
        assert found is None
        return
    floor, *rows = found.rows
    assert (floor.label, {row.label for row in rows}) == ("held-out images", TRAINED.keys())
    for row in rows:
        model = load(TRAINED[row.label] / "checkpoints" / "last.ckpt").model
        assert set(found.columns.values()) <= row.cells.keys()
        assert row.value("parameters") == sum(weight.numel() for weight in model.parameters())
        assert row.value("nfe") == model.draw(range(2), model.conditions_in_turn(range(2)), 0).cost / 2
        assert 0 < row.value("seconds_per_1000_samples") * 20 / 1000 < row.value("seconds")
        assert ("val/bits_per_dim" in row.cells) == isinstance(model, Likelihood)
        assert row.bits_sign == ("" if isinstance(model, Likelihood) and model.exact else "≤ ")
    if len(TRAINED) == 2:
        done(report, "runs=runs", cwd=tmp_path)
        assert "<h2>Families</h2>" in (tmp_path / "runs" / "report" / "report.html").read_text()
        assert all((tmp_path / "runs" / "report" / f"{name}.png").is_file() for name in ("families", "families_cost"))


def test_pictures_of_held_out_images_are_drawn_by_the_families_that_have_any(trained):
    _, folder = trained
    model = load(folder / "whole" / "checkpoints" / "last.ckpt").model
    images = torch.zeros(10, *model.shape, dtype=torch.uint8)
    condition = model.conditions_in_turn(range(10)) if isinstance(model, Generator) else None
    expected = set(model.pictures_of(images, condition))
    expected |= {"final"} if isinstance(model, Generator) else set()
    expected |= {"predictions"} if isinstance(model, Predictor) else set()
    written = {path.stem for path in (folder / "whole" / "samples").glob("*.png") if not path.stem.startswith("step_")}
    assert written == expected


def test_the_run_stops_within_one_step_of_a_nan(trained):
    family, folder = trained
    arguments = words(
        family, "trainer.max_steps=8", "optimizer.lr=1e30", "hydra.run.dir=nan", "trainer.gradient_clip_val=null"
    )
    status, _, err = in_process(train, *arguments, cwd=folder)
    assert status == 2, err
    assert "error: step 2: " in err  # the first step whose loss or gradient overflows
