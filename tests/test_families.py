"""Families of models from outside: tests/toy_family is a package with its yamls, independent of this one.

The real programs train both, resume them to the bit after a kill, sample or predict, evaluate, report and sweep.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_diffusion.app.evaluate import main as evaluate
from lightning_diffusion.app.export import main as export
from lightning_diffusion.app.report import main as report
from lightning_diffusion.app.sample import main as sample
from lightning_diffusion.app.summary import main as summary
from lightning_diffusion.app.train import main as train
from lightning_diffusion.checkpoints.folder import read_checkpoint
from lightning_diffusion.checkpoints.loading import load
from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.data.digits import Digits
from lightning_diffusion.runs.run import find
from tests.command import in_process, run, start

TOY = Path(__file__).parent / "toy_family"
WORDS = [
    "--config-dir=conf", "trust=[toy]", "optimizer=adamw", "optimizer.lr=0.05", "lr_scheduler.warmup_steps=2",
    "trainer=cpu", "trainer.limit_val_batches=2", "trainer.val_check_interval=20", "callbacks=default", "logger=csv",
]  # fmt: skip
TRUST = ["ckpt_path=run/checkpoints/last.ckpt", "trust=[toy]", "device=cpu"]


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder that holds the package `toy` and its conf, from which Python imports."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copytree(TOY, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def done(main, *words, cwd):
    status, out, err = in_process(main, *words, cwd=cwd)
    assert status == 0, err
    return out


def trained(outside, *words):
    return done(train, *WORDS, *words, cwd=outside)


def weights(folder):
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.parametrize("family", ["gaussian", "masks"])
def test_after_a_kill_it_ends_with_the_weights_that_it_would_have_had(outside, family):
    words = [f"model={family}", "trainer.max_steps=40"]
    trained(outside, *words, f"hydra.run.dir={family}/whole")
    words += [f"hydra.run.dir={family}/run"]
    process = start("tests.killed_train", "before_link", 2, *WORDS, *words, cwd=outside, forked=True)
    process.communicate(timeout=120)
    assert process.returncode == -9
    assert not (outside / family / "run" / "metrics.json").exists()
    done(train, "--config-dir=conf", f"resume={family}/run", "trust=[toy]", cwd=outside)
    whole, resumed = (weights(outside / family / name) for name in ("whole", "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


class TestGaussian:
    @pytest.fixture(scope="class")
    def folder(self, outside):
        words = ["model=gaussian", "trainer.max_steps=150", "trainer.val_check_interval=150"]
        words += ["callbacks=scores", "metrics.steps=10"]
        out = trained(outside, *words, "module.ema_decay=0.9", "hydra.run.dir=run")
        assert "Moments, 1,408 parameters" in out
        return outside / "run"

    def test_samples_of_a_class_look_like_its_mean(self, folder, tmp_path, outside):
        out = done(sample, *TRUST, "label=3", "num_samples=200", f"output_dir={tmp_path}", cwd=outside)
        assert "200 samples by Gaussian: " in out
        data = Digits(1, 8, 10, 64)
        data.setup()
        images, labels = data.splits["train"][torch.arange(1500)]
        ours = np.load(tmp_path / "samples.npz")["images"][..., 0].mean(0)
        theirs = images[labels == 3].float().mean((0, 1)).numpy()
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95
        assert {path.name for path in (folder / "samples").iterdir()} == {"final.png", "trajectory.gif"}

    def test_its_likelihood_is_exact_and_that_of_the_validation(self, folder, outside, tmp_path):
        done(evaluate, *TRUST, "metrics=likelihood", "num_images=297", f"output_dir={tmp_path}", cwd=outside)
        found = json.loads((tmp_path / "metrics.json").read_text())["exact"]
        model = load(folder / "checkpoints" / "last.ckpt", trust=["toy"]).model
        levels = torch.arange(256, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        total = model.log_probability(levels, by_label(torch.full((256,), 3))).double().exp().sum(0)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)  # P of all levels of a pixel
        data = Digits(1, 8, 10, 64)
        data.setup()
        images, labels = data.splits["val"][torch.arange(297)]
        assert found["mean"] == pytest.approx(
            float(model.bits_per_dim(images, by_label(labels), range(297), 0).mean()), rel=1e-5
        )
        with pytest.raises(AssertionError, match="metrics.tolerance: this model's likelihood has no such option"):
            done(evaluate, *TRUST, "metrics=likelihood", "metrics.tolerance=1e-5", cwd=outside)

    def test_its_samples_are_scored(self, folder, outside, tmp_path):
        measured = json.loads((folder / "metrics.json").read_text())
        assert measured["val/bits_per_dim"] == pytest.approx(measured["val/loss"], rel=1e-5)
        assert measured["scores"]["fd_classifier"]["num_samples"] == 297
        done(evaluate, *TRUST, "metrics.steps=10", "num_samples=100", f"output_dir={tmp_path}", cwd=outside)
        assert json.loads((tmp_path / "metrics.json").read_text())["how"]["nfe"] == 1

    def test_parts_of_another_family_are_refused(self, folder, outside):
        for main, words, message in (
            (train, [*WORDS, "model=gaussian", "schedule=linear"], "schedule: not used by model=gaussian"),
            (summary, [*WORDS, "model=gaussian"], "model: the cost of a Moments cannot be measured"),
            (sample, [*TRUST, "sampler=ddim"], "sampler: a Gaussian has no sampler; leave it out"),
            (sample, [*TRUST, "edit=inpaint", "images=[a.png]"], "edit: a Gaussian cannot edit"),
            (evaluate, [*TRUST, "samplers=[ddim]"], "samplers: a Gaussian has no sampler"),
            (evaluate, [*TRUST, "num_steps=[5]"], "num_steps: a Gaussian has no sampler"),
            (export, TRUST[:2], "format=diffusers: exports diffusion models only"),
            (sample, TRUST[:1], "if you trust the code of toy, add trust=[toy]"),
        ):
            status, _, err = in_process(main, *words, cwd=outside)
            assert (status, len(err.strip().splitlines())) == (2, 1), err
            assert message in err

    def test_a_report_holds_it(self, folder, outside):
        out = done(report, "runs=run", cwd=outside)
        assert "val/bits_per_dim" in out
        assert (outside / "run" / "report" / "report.html").is_file()


class TestMasks:
    def test_it_learns_predicts_and_draws_nothing(self, outside):
        out = trained(
            outside, "model=masks", "trainer.max_steps=150", "trainer.val_check_interval=150", "hydra.run.dir=masks/it"
        )
        assert "val/accuracy" in out
        assert "more samples" not in out
        assert not (outside / "masks" / "it" / "samples").exists()
        model = load(outside / "masks" / "it" / "checkpoints" / "last.ckpt", trust=["toy"]).model
        data = Digits(1, 8, 10, 64)
        data.setup()
        images, _ = data.splits["val"][torch.arange(297)]
        assert float((model.predict(images) == (images[:, 0] >= 128)).float().mean()) > 0.97
        path = ["ckpt_path=masks/it/checkpoints/last.ckpt", "trust=[toy]", "device=cpu"]
        for main, words, message in (
            (sample, path, "a LinearMasks draws no samples"),
            (evaluate, path, "a LinearMasks draws no samples to score"),
            (evaluate, [*path, "metrics=likelihood"], "this model has no likelihood"),
            (train, [*WORDS, "model=masks", "metric=val/bits_per_dim"], "choose val/loss, val/accuracy"),
            (train, [*WORDS, "model=masks", "callbacks=scores"], "callbacks.scores: a LinearMasks draws no samples"),
        ):
            status, _, err = in_process(main, *words, cwd=outside)
            assert (status, len(err.strip().splitlines())) == (2, 1), err
            assert message in err


@pytest.mark.slow
def test_a_sweep_over_its_own_key(outside):
    words = ["model=gaussian", "model.log_std=-3,-1", "trainer.max_steps=40", "hydra.sweep.dir=sweep"]
    status, _, err = run("src.train", "-m", *WORDS, *words, cwd=outside, PYTHONPATH=f"{TOY.parent.parent}:{outside}")
    assert status == 0, err
    runs = find(outside / "sweep")
    assert [run.is_done for run in runs] == [True, True]
    assert runs[0].metric("val/bits_per_dim") != runs[1].metric("val/bits_per_dim")
