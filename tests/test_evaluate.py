"""Measuring a trained model, or images from anywhere, from the command line."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_diffusion.checkpoints.loading import load, load_data
from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.metrics.likelihood import Likelihood
from lightning_diffusion.metrics.scores import SCORES
from src.evaluate import main as evaluate
from tests.command import in_process
from tests.test_mistakes import check_one_line


def measured(finished, folder, *options):
    arguments = [f"ckpt_path={finished[0]}/checkpoints/last.ckpt", *options, f"output_dir={folder}/out"]
    status, out, err = in_process(evaluate, *arguments, cwd=folder)
    assert status == 0, err
    return json.loads((folder / "out" / "metrics.json").read_text()), out


@pytest.mark.slow
def test_likelihood_of_each_image_does_not_depend_on_the_batch(finished, tmp_path):
    exact = ["metrics=likelihood", "metrics.tolerance=1e-6", "num_images=6"]  # the flow's own error is then far below
    whole, out = measured(finished, tmp_path, *exact, "batch_size=6")
    parts, _ = measured(finished, tmp_path, *exact, "batch_size=4")
    for name in ("bound", "flow"):
        assert whole[name]["mean"] == pytest.approx(parts[name]["mean"], rel=2e-5)
        assert whole[name]["standard_error"] > 0
        assert f"{whole[name]['mean']:.4f}" in out
    total = sum(whole[f"bound/{part}"]["mean"] for part in ("prior", "steps", "decoder"))
    assert whole["bound"]["mean"] == pytest.approx(total)
    assert whole["how"]["num_images"] == 6
    assert whole["how"]["precision"] == "32-true"
    assert whole["how"]["model"]["denoiser"]["schedule"]["T"] == 100

    model = load(finished[0] / "checkpoints" / "last.ckpt")
    images, labels = load_data(model, None)["val"][torch.arange(6)]
    again = Likelihood(tolerance=1e-6)(model.model, images, by_label(labels), start=0, seed=0)
    assert float(again["flow"].mean()) == pytest.approx(whole["flow"]["mean"], rel=2e-5)


def test_a_better_model_needs_fewer_bits(finished, tmp_path):
    """Forty steps of training are enough to beat the untrained network, which knows nothing."""
    model = load(finished[0] / "checkpoints" / "last.ckpt")
    images, labels = load_data(model, None)["val"][torch.arange(6)]
    metric = Likelihood()
    after = metric(model.model, images, by_label(labels), start=0, seed=0)
    for parameter in model.model.network.head.parameters():
        parameter.zero_()
    before = metric(model.model, images, by_label(labels), start=0, seed=0)
    assert float(after["bound"].mean()) < float(before["bound"].mean())
    assert float(after["flow"].mean()) < float(before["flow"].mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("metrics=likelihood num_images=0", "num_images=0: choose a whole number of at least 1"),
        ("metrics=likelihood num_images=100000", "num_images=100000: the val split has 297 images; choose fewer"),
        ("metrics=likelihood split=test", "split=test: choose train or val"),
        ("metrics=likelihood num_samples=8", "num_samples: not used with metrics=likelihood; give num_images=8"),
        (
            "metrics=likelihood sampler.num_steps=8",
            "sampler.num_steps: not used with metrics=likelihood; leave it out",
        ),
        ("num_images=8", "num_images: only used with metrics=likelihood; give num_samples=8"),
        ("split=train", "split: only used with metrics=likelihood; leave it out"),
        ("metrics=likelyhood", "metrics=likelyhood: no such option; did you mean likelihood?"),
        (
            "metrics=likelihood metrics.variance=learned",
            "metrics.variance=learned: this model was not trained with learned variance",
        ),
        ("metrics=likelihood metrics.tolerance=0", "tolerance=0"),
        ("num_samples=9", "num_samples=9: choose a whole number of at least 10"),
        (
            "extrapolate=true num_samples=40 metrics.steps=10",
            "extrapolate=true: 40 samples in 64 dimensions are too few",
        ),
        ("samplers=[]", "samplers=[]: empty list; give at least one, or leave it out"),
        ("num_steps=[]", "num_steps=[]: empty list"),
        ("num_samples=1000000000000", "num_samples=1000000000000: these images need"),
        ("samplers=[ddim,hoin]", "samplers=hoin: no such sampler; did you mean heun?"),
        (
            "samplers=[ddim,heun] sampler.eta=0.5",
            "samplers: each sampler has its own options; leave out sampler.eta=0.5",
        ),
        ("num_steps=[5,0]", "sampler.num_steps=0: choose at least 1"),
        ("num_steps=five", "sampler.num_steps='five': expected a whole number"),
        ("reference=nowhere", "reference=nowhere: no such folder, file or data set"),
        ("reference=digits data=digits", "reference: given together with data=NAME"),
        ("data=digits data.image_size=16", "data.image_size=16: this model was made for 8"),
        ("metrics.steps=0", "metrics.steps=0: choose at least 10"),
        ("metrics=inception metrics.weights=nowhere.pth", "metrics.weights=nowhere.pth: no such file; save https"),
        ("metrics=module", "metrics"),
        ("images=x.npz", "images: given together with a model that draws images"),
        (
            "sampler=ddpm sampler.variance=learned",
            "sampler.variance=learned: this model was not trained with learned variance",
        ),
    ],
)
def test_mistakes(finished, tmp_path, options, message):
    checkpoint = f"ckpt_path={finished[0]}/checkpoints/last.ckpt"
    status, _, err = in_process(evaluate, checkpoint, *options.split(), cwd=tmp_path)
    check_one_line(status, err, message, tmp_path)


def test_samples_are_scored_beside_real_images_with_all_that_a_score_needs(finished, tmp_path):
    found, out = measured(finished, tmp_path, "num_samples=40", "num_steps=4", "metrics.steps=100")
    assert list(found) == [
        *(f"{name}_classifier" for declared in SCORES if not declared.on_request for name in declared.best),
        "near_copies_classifier",
        "how",
    ]
    vendi = found["vendi_classifier"]
    assert vendi["num_samples"] == vendi["floor"]["num_samples"] == 40
    assert 1 < vendi["floor"]["value"] < 40
    score = found["fd_classifier"]
    assert score["num_samples"] == score["floor"]["num_samples"] == 40
    assert score["num_real"] == 1500
    assert score["value"] > 2 * score["floor"]["value"]  # forty steps of training teach little
    assert f"{score['value']:.4g}" in out
    assert "40 held out" in out
    assert "40 images in 64 dimensions: the Fréchet distance is biased upwards" in out
    how = found["how"]
    assert how["nfe"] == 4
    assert how["sampler"]["_target_"].endswith("DDIM")
    assert how["sampler"]["num_steps"] == 4
    assert 0 < how["seconds_per_1000_samples"] * 40 / 1000 < how["seconds"]
    assert {"extractor", "extractor_hash", "resize", "reference_hash", "seed", "seconds", "accuracy"} <= set(how)
    assert Image.open(tmp_path / "out" / "neighbours.png").size[0] >= 256

    again, _ = measured(finished, tmp_path, "num_samples=40", "num_steps=4", "metrics.steps=100", "batch_size=7")
    assert again["fd_classifier"]["value"] == pytest.approx(score["value"], rel=1e-4)
    other, _ = measured(finished, tmp_path, "num_samples=40", "num_steps=4", "metrics.steps=100", "seed=1")
    assert other["fd_classifier"]["value"] != score["value"]


def test_results_lie_beside_the_model_or_in_runs(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "mine", symlinks=True)
    shutil.copy(finished[0] / "checkpoints" / "last.ckpt", tmp_path / "a.ckpt")
    words = ("metrics=likelihood", "num_images=1", "metrics.tolerance=0.1", "batch_size=1")
    for path, folder in (("mine/checkpoints/last.ckpt", "mine/evaluations"), ("a.ckpt", "runs/evaluations")):
        status, out, err = in_process(evaluate, f"ckpt_path={path}", *words, cwd=tmp_path)
        assert status == 0, err
        (found,) = (tmp_path / folder).glob("*/metrics.json")
        assert str(found.relative_to(tmp_path)) in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "mine", "runs"]


def test_scores_over_evaluations_for_every_sampler_and_number_of_steps(finished, tmp_path):
    options = ("num_samples=20", "metrics.steps=100", "samplers=[ddim,heun]", "num_steps=[2,5]", "time_grid=logsnr")
    found, out = measured(finished, tmp_path, *options)
    rows = list(csv.DictReader((tmp_path / "out" / "curve.csv").open()))
    assert [(row["sampler"], row["num_steps"], float(row["nfe"])) for row in rows] == [
        ("ddim", "2", 2), ("ddim", "5", 5), ("heun", "2", 2), ("heun", "5", 8),
    ]  # fmt: skip
    assert [row["fd_classifier"] for row in found["walks"]] == [float(row["fd_classifier"]) for row in rows]
    assert found["floor"]["fd_classifier"]["num_samples"] == found["how"]["num_samples"] == 20
    assert {row["num_samples"] for row in rows} == {"20"}
    assert all(0 < float(row["seconds_per_1000_samples"]) * 20 / 1000 < float(row["seconds"]) for row in rows)
    assert {float(row["floor/fd_classifier"]) for row in rows} == {found["floor"]["fd_classifier"]["value"]}
    assert Image.open(tmp_path / "out" / "curve.png").size == (900, 600)
    assert "heun" in out
    single, _ = measured(finished, tmp_path, *options[:2], "sampler=heun", "num_steps=5", "time_grid=logsnr")
    for name in ("fd_classifier", "near_copies_classifier"):
        assert single[name]["value"] == found["walks"][3][name]


def test_on_request_it_extrapolates_to_infinitely_many_samples(finished, tmp_path):
    """The floor of as many held-out images, which are fewer, has too few to be extrapolated from."""
    options = ("num_samples=800", "num_steps=1", "metrics.steps=10", "extrapolate=true", "batch_size=200")
    found, out = measured(finished, tmp_path, *options)
    assert list(found)[:2] == ["fd_classifier", "fd_classifier_inf"]
    score = found["fd_classifier_inf"]
    assert (score["num_samples"], "floor" in score) == (800, False)
    assert score["value"] < found["fd_classifier"]["value"]
    assert 0 < score["spread"] < score["value"]
    assert f"{score['value']:.4g}" in out
    assert f"{score['spread']:.4g}" in out


class TestImages:
    @pytest.fixture(scope="class")
    def sets(self, tmp_path_factory):
        """The same grey images as files and as an array, others, and colour ones of another size."""
        root = tmp_path_factory.mktemp("sets")
        rng = np.random.default_rng(0)
        for name, shape in (("a", (30, 8, 8)), ("b", (40, 8, 8)), ("colour", (30, 12, 10, 3))):
            images = rng.integers(0, 256, shape, dtype=np.uint8)
            np.savez(root / f"{name}.npz", images=images)
            for i, image in enumerate(images):
                (root / name / str(i % 2)).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(root / name / str(i % 2) / f"{i:03}.png")
        return root

    def scored(self, folder, *options):
        pixels = ("metrics=module", "metrics.network._target_=torch.nn.Flatten", "metrics.name=pixels", "trust=[torch]")
        status, out, err = in_process(evaluate, *pixels, *options, f"output_dir={folder}/out", cwd=folder)
        assert status == 0, err
        return json.loads((folder / "out" / "metrics.json").read_text()), out

    def test_a_folder_is_what_its_array_is(self, sets, tmp_path):
        as_files, _ = self.scored(tmp_path, f"images={sets}/a", f"reference={sets}/b")
        as_array, out = self.scored(tmp_path, f"images={sets}/a.npz", f"reference={sets}/b.npz")
        assert as_files["fd_pixels"]["value"] == pytest.approx(as_array["fd_pixels"]["value"])
        assert as_array["fd_pixels"]["num_samples"] == 30
        assert "floor" not in as_array["fd_pixels"]
        assert as_array["how"]["nfe"] is None
        assert "30 samples" in out

    def test_against_data_by_name(self, sets, tmp_path):
        by_name, _ = self.scored(tmp_path, f"images={sets}/a.npz", "reference=digits")
        as_data, _ = self.scored(tmp_path, f"images={sets}/a.npz", "data=digits")
        assert by_name["fd_pixels"] == as_data["fd_pixels"]
        assert by_name["fd_pixels"]["num_real"] == 1500
        assert by_name["fd_pixels"]["value"] > 5 * by_name["fd_pixels"]["floor"]["value"]

    def test_classes_are_folders(self, sets, tmp_path):
        arguments = (f"images={sets}/a", f"reference={sets}/b", "metrics.steps=10", f"output_dir={tmp_path}/out")
        status, _, err = in_process(evaluate, *arguments, cwd=tmp_path)
        assert status == 0, err
        assert "fd_classifier" in json.loads((tmp_path / "out" / "metrics.json").read_text())

    def test_colour_and_grey_of_any_size_compare_where_all_are_resized(self, sets, tmp_path):
        resized = ("metrics.image_size=8", "metrics.colour=true")
        found, _ = self.scored(tmp_path, *resized, f"images={sets}/colour", f"reference={sets}/b")
        assert found["fd_pixels"]["value"] > 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("images=SETS/a.npz", "reference: missing; give reference=FOLDER"),
            ("images=SETS/nothing reference=digits", "no such file or folder; give a folder of images or an .npz file"),
            ("images=SETS reference=digits", "images to compare must have one size"),
            ("images=SETS/colour reference=digits", "C×H×W = 3×12×10, but the reference has 1×8×8"),
            ("images=SETS/a.npz reference=SETS/b.npz", "metrics=classifier: these images have no labels"),
            ("images=SETS/a.npz reference=digitz", "or data set; did you mean digits?"),
        ],
    )
    def test_mistakes(self, sets, tmp_path, options, message):
        status, _, err = in_process(evaluate, *options.replace("SETS", str(sets)).split(), cwd=tmp_path)
        check_one_line(status, err, message, tmp_path)


def test_pixels_are_spread_evenly_over_their_own_level(finished, monkeypatch):
    model = load(finished[0] / "checkpoints" / "last.ckpt")
    images, labels = load_data(model, None)["val"][torch.arange(20)]
    seen = []

    def flow(denoiser, x_0, *args):
        seen.append(x_0)
        return torch.zeros(len(x_0))

    monkeypatch.setattr("lightning_diffusion.models.diffusion.likelihood.flow_log_likelihood", flow)
    Likelihood()(model.model, images, by_label(labels), start=0, seed=0)
    offsets = (seen[0] + 1) * 127.5 - images.float()
    assert offsets.abs().max() <= 0.5 + 1e-4
    assert abs(float(offsets.mean())) < 5 / (12 * offsets.numel()) ** 0.5
    assert float(offsets.var()) == pytest.approx(1 / 12, rel=0.1)
