"""Checkpoints and exported files of format version 1, from before the package: they load, draw and resume as they did.

tests/former/NAME holds a run of twenty steps as it was after ten, and, of its last step, the exported weights and four
samples by ddim at four evaluations. The random numbers were others then: the tests take them from benchmarks.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.former_noise import former_noise
from lightning_diffusion.app.export import main as export
from lightning_diffusion.app.sample import main as sample
from lightning_diffusion.app.train import main as train
from lightning_diffusion.checkpoints.content import check_resumable
from lightning_diffusion.checkpoints.folder import read_checkpoint
from lightning_diffusion.checkpoints.format import KEY, VERSION, check_version, upgrade
from tests.command import in_process

FORMER = Path(__file__).parent / "former"
NAMES = sorted(path.name for path in FORMER.iterdir())
DDIM = ["num_samples=4", "sampler=ddim", "sampler.num_steps=4", "time_grid=trailing", "guidance=clip", "device=cpu"]


def drawn(tmp_path, *words):
    status, _, err = in_process(sample, *words, *DDIM, f"output_dir={tmp_path}/drawn", cwd=tmp_path)
    assert status == 0, err
    return np.load(tmp_path / "drawn" / "samples.npz")["images"].astype(int)


@pytest.fixture
def formerly():
    with former_noise():
        yield


@pytest.mark.usefixtures("formerly")
@pytest.mark.parametrize("name", NAMES)
def test_an_exported_file_draws_what_it_drew(name, tmp_path):
    expected = np.load(FORMER / name / "step_20.npz")["images"].astype(int)
    assert np.abs(drawn(tmp_path, f"pretrained={FORMER / name / 'step_20.safetensors'}") - expected).max() <= 1


@pytest.mark.usefixtures("formerly")
@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_resumed_and_ends_with_the_weights_that_it_had(name, tmp_path):
    shutil.copytree(FORMER / name, tmp_path / "run")
    status, _, err = in_process(train, "resume=run", cwd=tmp_path)
    assert status == 0, err
    content = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert (content["global_step"], content[KEY]) == (20, VERSION)
    words = ["ckpt_path=run/checkpoints/last.ckpt", "format=safetensors", "output_dir=out"]
    assert in_process(export, *words, cwd=tmp_path)[0] == 0
    weights, expected = (
        load_file(path) for path in (tmp_path / "out" / "denoiser.safetensors", FORMER / name / "step_20.safetensors")
    )
    assert weights.keys() == {f"denoiser.{key}" for key in expected}
    for key, value in expected.items():
        torch.testing.assert_close(weights[f"denoiser.{key}"], value, rtol=1e-4, atol=1e-5, msg=key)


def test_a_checkpoint_from_another_version_of_torch_is_resumable():
    """Torch 2.6 saves one option of AdamW less. Any other difference is another optimizer."""
    module = nn.ModuleDict({"ema": nn.ModuleDict({"model": nn.Linear(1, 1)})})
    optimizer = torch.optim.AdamW(module.parameters())
    saved = {"state_dict": module.state_dict(), "lr_schedulers": [{"": 0}], "loops": {"": 0}}
    group = optimizer.state_dict()["param_groups"][0] | {"decoupled_weight_decay": True}
    former = {key: value for key, value in group.items() if key != "decoupled_weight_decay"}
    for one in (group, former):
        check_resumable(saved | {"optimizer_states": [{"param_groups": [one]}]}, module, optimizer, "x")
    del former["betas"]
    with pytest.raises(ValueError, match="^x: it was saved with another optimizer"):
        check_resumable(saved | {"optimizer_states": [{"param_groups": [former]}]}, module, optimizer, "x")


@pytest.mark.parametrize("version", [0, VERSION + 1, True, "2", None, 10**30])
def test_a_later_version_is_refused(version):
    with pytest.raises(ValueError, match=r"^x: its format_version is .*reads 1 to \d+; install a newer"):
        check_version(version, "x")


def test_only_names_of_classes_change():
    node = {
        "_target_": "src.backbones.unet.UNet",
        "root": "src.data.mnist",
        "deep": [{"_target_": "src.data.mnist.MNIST"}],
    }
    node["itself"] = node
    known = upgrade(node, 1)
    assert known["_target_"] == "lightning_diffusion.networks.unet.UNet"
    assert known["root"] == "src.data.mnist"
    assert known["deep"] == [{"_target_": "lightning_diffusion.data.mnist.MNIST"}]
    assert upgrade({"_target_": "src.app.cli.os.system"}, 1) == {"_target_": "src.app.cli.os.system"}
    assert upgrade({"_target_": "src.data.mnist.MNIST"}, 2) == {"_target_": "src.data.mnist.MNIST"}
