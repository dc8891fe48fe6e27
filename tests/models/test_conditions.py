"""Images as conditions through the real programs, on a tiny run with two conditions: the class and a low resolution."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import conditions as benchmark
from lightning_diffusion.app.evaluate import main as evaluate
from lightning_diffusion.app.export import main as export
from lightning_diffusion.app.sample import main as sample
from lightning_diffusion.app.train import main as train
from lightning_diffusion.checkpoints.loading import load, load_data
from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.data.conditions import LowResolution
from lightning_diffusion.diffusion.noise import BatchRNG, IndexedNoise
from lightning_diffusion.models.contracts import Predictor, Training
from tests.command import in_process
from tests.models.test_programs import done, words
from tests.test_configs import build, compose

PARTS = ["condition=low_resolution", "condition.factor=2", "denoiser.label_dropout=0.2", "denoiser.image_dropout=0.2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder with a run of four steps."""
    folder = tmp_path_factory.mktemp("conditions")
    done(
        train,
        *words("diffusion", *PARTS, "condition.noise=0.1", "trainer.max_steps=4", "hydra.run.dir=run"),
        cwd=folder,
    )
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder):
    return f"ckpt_path={folder / 'run' / 'checkpoints' / 'last.ckpt'}"


@pytest.fixture(scope="module")
def trained(folder):
    return load(folder / "run" / "checkpoints" / "last.ckpt")


def arrays(path):
    with np.load(path) as content:
        return torch.from_numpy(content["images"]).permute(0, 3, 1, 2)


def test_the_picture_shows_condition_sample_and_truth(folder):
    """Two of ten samples at most a quarter: each is three panels of 8 pixels, and two lines between them."""
    width, height = Image.open(folder / "run" / "samples" / "final.png").size
    assert (width / height) == pytest.approx((3 * 8 + 2) / (2 * 8 + 1))


def test_sample_i_has_the_condition_of_held_out_image_i(folder, checkpoint, trained):
    """The program's samples, at another batch size, are those of the model for these conditions."""
    numbers = (0, 5, 298)
    done(sample, checkpoint, "num_samples=300", "batch_size=300", "output_dir=all", cwd=folder)
    drawn = arrays(folder / "all" / "samples.npz")
    held_out = load_data(trained, None)["val"]
    given = held_out.sample(torch.tensor(numbers) % 297).condition(10)
    expected = trained.model.draw(numbers, given, 0).images
    assert (drawn[list(numbers)].int() - expected.int()).abs().max() <= 1
    other = trained.model.draw(numbers, held_out.sample(torch.tensor([7, 8, 9])).condition(10), 0).images
    assert (other.int() - expected.int()).abs().max() > 1


def test_evaluate_measures_the_consistency(folder, checkpoint, trained):
    few = ["num_samples=20", "metrics.steps=10", "guidance=cfg", "guidance.scales={image:1,label:2}"]
    out = done(evaluate, checkpoint, *few, "output_dir=scores", cwd=folder)
    assert "consistency_psnr" in out
    found = json.loads((folder / "scores" / "metrics.json").read_text())
    assert found["how"]["nfe"] == 2 * 2  # two steps of two evaluations
    done(sample, checkpoint, "num_samples=20", *few[2:], "output_dir=twenty", cwd=folder)
    shown = load_data(trained, None)["val"].sample(torch.arange(20)).shown
    errors = LowResolution(1, 2).consistency(arrays(folder / "twenty" / "samples.npz"), shown)
    assert found["consistency_psnr"]["value"] == pytest.approx(-10 * float(errors.mean().log10()), abs=0.1)


@pytest.mark.slow  # the flow takes seconds
def test_the_likelihood_uses_the_condition(folder, checkpoint, trained):
    done(
        evaluate,
        checkpoint,
        "metrics=likelihood",
        "num_images=2",
        "metrics.tolerance=0.1",
        "output_dir=nll",
        cwd=folder,
    )
    found = json.loads((folder / "nll" / "metrics.json").read_text())["bound"]["mean"]
    data = load_data(trained, None)["val"].sample(torch.arange(2))
    expected = trained.model.likelihoods(data.images, data.condition(10), range(2), 0, tolerance=0.1)["bound"]
    assert found == pytest.approx(float(expected.mean()), rel=1e-4)
    other = trained.model.likelihoods(data.images, None, range(2), 0, tolerance=0.1)["bound"]
    assert found != pytest.approx(float(other.mean()), rel=1e-4)


def test_an_exported_file_draws_with_data_that_are_named(folder, checkpoint, trained):
    done(export, checkpoint, "format=safetensors", "output_dir=out", cwd=folder)
    file = "pretrained=out/denoiser.safetensors"
    refused(sample, file, message="data: missing; a pretrained model does not record its training data", cwd=folder)
    done(sample, file, "data=digits", "num_samples=3", "output_dir=exported", cwd=folder)
    done(sample, checkpoint, "num_samples=3", "output_dir=own", cwd=folder)
    assert torch.equal(arrays(folder / "exported" / "samples.npz"), arrays(folder / "own" / "samples.npz"))


def refused(main, *arguments, message, cwd):
    status, _, err = in_process(main, *arguments, cwd=cwd)
    assert (status, err.count("\n")) == (2, 1), err
    assert message in err


def test_refusals(folder, checkpoint):
    diffusers = [checkpoint, "format=diffusers", "output_dir=diffusers"]
    refused(export, *diffusers, message="format=diffusers: its pipelines pass only a label as a condition", cwd=folder)
    wrong = [checkpoint, "guidance=cfg", "guidance.scales={picture:2}"]
    refused(
        sample, *wrong, message="guidance.scales: this model takes no picture; give a scale for label or", cwd=folder
    )
    assert not (folder / "diffusers").exists()


class TestTraining:
    """One model in memory, without the programs."""

    @pytest.fixture(scope="class")
    def parts(self):
        small = ["backbone.channels=8", "schedule.T=20"]
        config = compose(*small, "condition=low_resolution", "condition.noise=0.1", *PARTS[1:])
        torch.manual_seed(0)
        model, objective = build(config.model), build(config.objective)
        images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
        shown = torch.cat([torch.randn(6, 1, 8, 8), torch.ones(6, 1, 8, 8)], dim=1)
        return model, objective, Batch(images, Condition(label=torch.arange(6), image=shown), 12)

    def seen(self, model, monkeypatch):
        """The conditions that the network gets from now on."""
        found, predict = [], model.denoiser.predict
        monkeypatch.setattr(model.denoiser, "predict", lambda x, t, c=None: found.append(c) or predict(x, t, c))
        return found

    def test_noise_and_dropout_are_those_of_the_draws(self, parts, monkeypatch):
        model, objective, batch = parts
        seen = self.seen(model, monkeypatch)
        objective.loss(model, batch, BatchRNG(3, 12), Training(0.0, model))
        rng = BatchRNG(3, 12)
        noised = batch.condition.noised(0.2 * rng.uniform(6), rng.normal(batch.condition.image[:, :1]))
        rng.uniform(6), rng.normal(batch.images.float())  # times and noise
        expected = noised.without("label", no_class=10, where=rng.uniform(6) < 0.2)
        expected = expected.without("image", where=rng.uniform(6) < 0.2)
        assert torch.equal(seen[0].image, expected.image)
        assert torch.equal(seen[0].label, expected.label)

    def test_two_ranks_draw_as_one(self, parts):
        model, objective, batch = parts
        whole = objective.loss(model, batch, BatchRNG(3, 12), Training(0.0, model)).values
        for rank in (0, 1):
            here = slice(3 * rank, 3 * rank + 3)
            part = Batch(batch.images[here], batch.condition[here], 12 + 3 * rank)
            rng = BatchRNG(3, 12, rank=rank, world_size=2)
            torch.testing.assert_close(objective.loss(model, part, rng, Training(0.0, model)).values, whole[here])

    def test_noise_of_a_sample_is_its_own(self, parts, monkeypatch):
        """Of the fixed level, as a function of (seed, i); none if the level is 0."""
        model, _, batch = parts
        monkeypatch.setattr(model.sampler, "num_steps", 2)
        seen = self.seen(model, monkeypatch)
        model.eval().draw([4, 9], batch.condition[:2], seed=5)
        for row, i in enumerate((4, 9)):
            eps = IndexedNoise(5, [i], (1, 8, 8), stream="condition")()
            wanted = batch.condition[row : row + 1].noised(torch.tensor([0.1]), eps)
            torch.testing.assert_close(seen[0].image[row : row + 1], wanted.image)
        assert torch.equal(seen[0].image, seen[-1].image)  # the same at every step
        monkeypatch.setattr(model.condition_source, "noise", 0.0)
        model.draw([4, 9], batch.condition[:2], seed=5)
        assert torch.equal(seen[-1].image, batch.condition.image[:2])
        model.train()


class TestBenchmark:
    """benchmarks/conditions.py at a tiny budget, with networks that have learned nothing."""

    def made(self, *words):
        config = compose("backbone.channels=8", "sampler.num_steps=2", *words)
        torch.manual_seed(0)
        model, data = build(config.model).eval(), build(config.data)
        data.condition_source = model.condition_source
        data.setup()
        return model, data.splits

    def test_super_resolution_next_to_other_methods(self):
        model, splits = self.made("condition=low_resolution", "condition.factor=2", "data.num_classes=null")
        images = benchmark.restored(model, splits, steps=12, count=8)
        assert list(images) == ["held-out images", "bicubic", "regression", "samples"]
        table = benchmark.super_resolution(images, model.condition_source, lambda images: float(len(images)))
        psnr = {name: float(value) for name, value, _, _ in table.rows}
        assert (psnr["held-out images"], table.rows[0][2]) == (100, "100.00")
        assert 100 > psnr["bicubic"] > psnr["samples"]  # of a network that has learned nothing
        assert psnr["regression"] > psnr["samples"] + 3
        flat = torch.full((1, 1, 8, 8), 77, dtype=torch.uint8)
        assert torch.equal(benchmark.bicubic(flat, 4), flat)

    @pytest.mark.parametrize("condition", ["mask", "picture"])
    def test_masks_against_a_segmenter(self, condition):
        model, splits = self.made(f"condition={condition}", "data=scenes", "data.image_size=16")
        held_out = splits["val"]
        masks = held_out.sample(torch.arange(4)).targets

        class Perfect(Predictor):
            mask_classes = 11

            def predict(self, images):
                return masks[: len(images)]

        if condition == "mask":
            table = benchmark.masks_to_images(model, held_out, Perfect(), count=4)
            assert table.rows == [("real scenes", "1.000"), ("samples", "1.000")]
        else:
            table = benchmark.images_to_masks(model, held_out, Perfect(), variants=3, count=4)
            assert table.rows[0] == ("segmenter", "1.000")
            assert [name for name, _ in table.rows[1:]] == ["one sample", "most frequent class of 3 samples"]
            assert all(float(value) < 0.3 for _, value in table.rows[1:])
