"""The embedded default, as a user runs it, judged by a classifier of real digits."""

import numpy as np
import pytest

from tests.command import run
from tests.judge import judge


@pytest.mark.slow
def test_the_default_command_makes_digits_that_are_read_as_asked_and_are_no_copies(tmp_path):
    status, _, err = run("src.train", "hydra.run.dir=run", "logger=csv", cwd=tmp_path, timeout=600)
    assert status == 0, err
    options = ["num_samples=500", "batch_size=100", "seed=1", "output_dir=out"]
    status, _, err = run("src.sample", "ckpt_path=run/checkpoints/last.ckpt", *options, cwd=tmp_path, timeout=300)
    assert status == 0, err
    with np.load(tmp_path / "out" / "samples.npz") as samples:
        verdict = judge(samples["images"], samples["labels"])
    print(verdict)
    assert verdict.accuracy > 0.95  # the judge itself
    assert verdict.confident >= 0.9 * verdict.confident_real
    assert verdict.near_copies < 0.05
    assert verdict.as_asked >= 0.9
