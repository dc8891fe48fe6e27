"""Every family of conf/model in training that is interrupted, shared by two processes, or rounded."""

import pytest
import torch

from lightning_diffusion.app.train import main as train
from lightning_diffusion.checkpoints.folder import read_checkpoint
from tests.command import in_process, start, start_ranks
from tests.equality import assert_equal
from tests.models.test_programs import FAMILIES, done, words

PLACES = ["before_link", "after_link", "before_rename", "within_row", "before_prune"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_five_kills_leave_no_trace(family, tmp_path):
    """Weights, averages, optimizer and rate; each kill is at another place, a few steps after the one before."""
    arguments = words(family, "trainer.max_steps=24", "callbacks.checkpoint.every_n_steps=1")
    done(train, *arguments, "hydra.run.dir=whole", cwd=tmp_path)
    again = [*arguments, "hydra.run.dir=killed"]
    for place in PLACES:
        process = start("tests.killed_train", place, 3, *again, cwd=tmp_path, forked=True)
        _, err = process.communicate(timeout=120)
        assert process.returncode == -9, f"{place}: {err}"
        again = ["resume=killed"]
    assert not (tmp_path / "killed" / "metrics.json").exists()
    done(train, *again, cwd=tmp_path)
    whole, killed = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "killed"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(killed[part], whole[part], part)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_have_the_gradients_of_one_process(family, tmp_path):
    """In the third step, of every trained parameter; the second step and the third see updated weights."""
    found = {}
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        program = ("tests.training.gradients", tmp_path / str(count), "float32", *words(family))
        for process in start_ranks(*program, cwd=tmp_path, count=count, forked=True):
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err[-3000:]
        found[count] = [torch.load(tmp_path / str(count) / f"{rank}.pt")["gradients"] for rank in range(count)]
    (one,) = found[1]
    size = torch.stack([gradient.norm() for gradient in one.values()]).norm()
    assert size > 0
    for rank in found[2]:
        assert rank.keys() == one.keys()
        assert {name for name in one if (rank[name] - one[name]).norm() > 1e-5 * size} == set()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_learns_as_float32_does(family, tmp_path):
    """The first losses of both precisions agree to bfloat16's three digits."""
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        arguments = words(family, "trainer.max_steps=4", f"trainer.precision={precision}", f"hydra.run.dir={precision}")
        status, _, err = in_process(train, *arguments, "trainer.log_every_n_steps=1", cwd=tmp_path)
        assert status == 0, err
        rows = (tmp_path / precision / "metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("train/loss")
        losses[precision] = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert len(losses["32-true"]) == 4
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.03)
