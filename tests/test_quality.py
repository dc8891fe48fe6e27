"""The default run, judged by classifiers of real digits; and the time that scores take."""

import json
import time

import numpy as np
import pytest

from benchmarks.digits import judge
from lightning_diffusion.data.mnist import MNIST
from tests.command import run
from tests.files import FASHION_MNIST


@pytest.mark.slow
def test_the_default_command_draws_digits_of_the_requested_class_and_no_copies(tmp_path):
    status, _, err = run("src.train", "hydra.run.dir=run", "logger=csv", cwd=tmp_path, timeout=600)
    assert status == 0, err
    options = ["num_samples=500", "batch_size=100", "seed=1", "sampler.num_steps=10", "output_dir=out"]
    status, _, err = run("src.sample", "ckpt_path=run/checkpoints/last.ckpt", *options, cwd=tmp_path, timeout=300)
    assert status == 0, err
    with np.load(tmp_path / "out" / "samples.npz") as samples:
        verdict = judge(samples["images"], samples["labels"])
    print(verdict)
    for name, reading in verdict.readings.items():
        assert reading.accuracy > 0.95, name  # of the classifier itself
        assert reading.sure >= 0.95 * reading.sure_real, name
        assert reading.right >= 0.95, name
    assert verdict.near_copies < 0.05


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_ten_thousand_images_are_scored_in_half_a_minute(tmp_path):
    """Fashion-MNIST's held-out images instead of samples. The second time, classifier and reference are cached."""
    data = MNIST(str(FASHION_MNIST), "FashionMNIST", channels=1, image_size=28, num_classes=10, batch_size=1)
    data.setup()
    np.savez(tmp_path / "images.npz", images=data.splits["val"].images.permute(0, 2, 3, 1).numpy())
    arguments = ("images=images.npz", "data=fashion_mnist", f"data.root={FASHION_MNIST}", "output_dir=out")
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        status, _, err = run("src.evaluate", *arguments, cwd=tmp_path, timeout=300)
        seconds.append(time.monotonic() - started)
        assert status == 0, err
    print(f"first: {seconds[0]:.1f} s, with a cached reference: {seconds[1]:.1f} s")
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["fd_classifier"]
    assert found["num_samples"] == 10_000
    assert found["value"] == pytest.approx(found["floor"]["value"], rel=1e-4)  # they are the held-out images
    assert seconds[1] < 30
