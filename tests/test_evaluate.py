"""Measuring a trained model from the command line."""

import json

import pytest
import torch

from src.checkpoint import load_data, load_denoiser
from src.evaluate import main as evaluate
from src.metrics.likelihood import Likelihood
from tests.command import in_process
from tests.test_mistakes import check_one_line


def measured(finished, folder, *options):
    arguments = [f"ckpt_path={finished[0]}/checkpoints/last.ckpt", *options, f"output_dir={folder}/out"]
    status, out, err = in_process(evaluate, *arguments, cwd=folder)
    assert status == 0, err
    return json.loads((folder / "out" / "metrics.json").read_text()), out


def test_likelihood_of_each_image_does_not_depend_on_the_batch(finished, tmp_path):
    whole, out = measured(finished, tmp_path, "num_images=6", "batch_size=6")
    parts, _ = measured(finished, tmp_path, "num_images=6", "batch_size=4")
    for name in ("bound", "flow"):
        assert whole[name]["mean"] == pytest.approx(parts[name]["mean"], rel=1e-4)
        assert whole[name]["standard_error"] > 0
        assert f"{whole[name]['mean']:.4f}" in out
    total = sum(whole[f"bound/{part}"]["mean"] for part in ("prior", "steps", "decoder"))
    assert whole["bound"]["mean"] == pytest.approx(total)
    assert whole["how"]["num_images"] == 6
    assert whole["how"]["schedule"]["T"] == 100

    denoiser, trained = load_denoiser(finished[0] / "checkpoints" / "last.ckpt")
    images, labels = load_data(trained["data"])["val"][torch.arange(6)]
    again = Likelihood()(denoiser, images, labels, start=0, seed=0)
    assert float(again["flow"].mean()) == pytest.approx(whole["flow"]["mean"], rel=1e-4)


def test_a_better_model_needs_fewer_bits(finished, tmp_path):
    """Forty steps of training are enough to beat the untrained network, which knows nothing."""
    denoiser, trained = load_denoiser(finished[0] / "checkpoints" / "last.ckpt")
    images, labels = load_data(trained["data"])["val"][torch.arange(6)]
    metric = Likelihood()
    after = metric(denoiser, images, labels, start=0, seed=0)
    for parameter in denoiser.backbone.head.parameters():
        parameter.zero_()
    before = metric(denoiser, images, labels, start=0, seed=0)
    assert float(after["bound"].mean()) < float(before["bound"].mean())
    assert float(after["flow"].mean()) < float(before["flow"].mean())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("num_images=0", "num_images=0: choose a whole number of at least 1"),
        ("num_images=100000", "num_images=100000: the val split has 297"),
        ("split=test", "split=test: choose train or val"),
        ("metrics=likelyhood", "metrics=likelyhood: no such option; did you mean likelihood?"),
        ("metrics.variance=learned", "metrics.variance=learned: this model has learned no variance"),
        ("metrics.tolerance=0", "tolerance=0"),
    ],
)
def test_mistakes(finished, tmp_path, options, says):
    checkpoint = f"ckpt_path={finished[0]}/checkpoints/last.ckpt"
    status, _, err = in_process(evaluate, checkpoint, *options.split(), cwd=tmp_path)
    check_one_line(status, err, says, tmp_path)


def test_pixels_are_spread_evenly_over_their_own_level(finished, monkeypatch):
    denoiser, trained = load_denoiser(finished[0] / "checkpoints" / "last.ckpt")
    images, labels = load_data(trained["data"])["val"][torch.arange(20)]
    seen = []

    def flow(denoiser, x_0, *args):
        seen.append(x_0)
        return torch.zeros(len(x_0))

    monkeypatch.setattr("src.metrics.likelihood.flow_log_likelihood", flow)
    Likelihood()(denoiser, images, labels, start=0, seed=0)
    offsets = (seen[0] + 1) * 127.5 - images.float()
    assert offsets.abs().max() <= 0.5 + 1e-4
    assert abs(float(offsets.mean())) < 5 / (12 * offsets.numel()) ** 0.5
    assert float(offsets.var()) == pytest.approx(1 / 12, rel=0.1)
