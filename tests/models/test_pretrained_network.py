"""A segmentation model that starts from the network of a diffusion model."""

import pytest
import torch

from lightning_diffusion.app.train import main as train
from lightning_diffusion.checkpoints.folder import read_checkpoint
from lightning_diffusion.checkpoints.loading import load
from tests.command import in_process

WORDS = [
    "experiment=scenes", "data.image_size=16", "data.batch_size=4", "backbone=unet", "backbone.channels=8",
    "trainer=cpu", "trainer.max_steps=1", "trainer.limit_val_batches=1", "callbacks=default", "logger=csv",
    "callbacks.samples.num_samples=4",
]  # fmt: skip
CHECKPOINT = "diffusion/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the run of a diffusion model."""
    path = tmp_path_factory.mktemp("pretrained")
    words = ["model=diffusion", "sampler.num_steps=1", "hydra.run.dir=diffusion"]
    status, _, err = in_process(train, *WORDS, *words, cwd=path)
    assert status == 0, err
    return path


def test_the_network_starts_from_the_averaged_weights_and_only_the_head_is_new(folder):
    words = [f"pretrained={CHECKPOINT}", "optimizer.lr=0", "hydra.run.dir=masks"]
    status, out, err = in_process(train, *WORDS, *words, cwd=folder)
    assert status == 0, err
    theirs = load(folder / CHECKPOINT).model.network.state_dict()
    ours = load(folder / "masks" / "checkpoints" / "last.ckpt").model.network.state_dict()
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        assert name.startswith("head.") or torch.equal(value, theirs[name])
    assert len(ours["head.weight"]) == 11 != len(theirs["head.weight"])
    count = len(ours)
    report = f"pretrained={CHECKPOINT}: {count - 2} of the network's {count} tensors are its weights; not head.weight"
    assert report in out
    trained = read_checkpoint(folder / "masks" / "checkpoints" / "last.ckpt")["state_dict"]
    assert torch.equal(trained["model.unet.stem.weight"], theirs["stem.weight"])  # not only the average


def test_another_network_is_refused_in_a_line(folder):
    status, _, err = in_process(train, *WORDS, f"pretrained={CHECKPOINT}", "backbone.channels=16", cwd=folder)
    assert (status, len(err.strip().splitlines())) == (2, 1), err
    assert "its model is a DiffusionModel, and model=… a Segmentation whose network has other weights" in err
