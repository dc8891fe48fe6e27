"""The programs with models in files of diffusers or of this project."""

import json

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_diffusion.checkpoints.seal import seal
from src.evaluate import main as evaluate
from src.export import main as export
from src.sample import main as sample
from src.train import main as train
from tests.command import in_process
from tests.exchange.pipelines import SMALL, load_pretrained, pipeline
from tests.runs import TINY
from tests.test_mistakes import check_one_line


@pytest.fixture(scope="module")
def checkpoint(finished, tmp_path_factory):
    """The finished run's checkpoint, on diffusers' clock of 1000 steps."""
    content = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    content["hyper_parameters"]["model"]["denoiser"]["schedule"]["T"] = 1000
    path = tmp_path_factory.mktemp("exchange") / "a.ckpt"
    torch.save(content, path)
    seal(path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint):
    for kind in ("diffusers", "safetensors"):
        output_dir = checkpoint.parent / kind
        options = [f"ckpt_path={checkpoint}", f"format={kind}", f"output_dir={output_dir}"]
        status, out, err = in_process(export, *options, cwd=checkpoint.parent)
        assert status == 0, err
        assert str(output_dir) in out
    home = checkpoint.parent
    return {"diffusers": home / "diffusers", "file": home / "safetensors" / "denoiser.safetensors"}


def test_exported_models_sample_as_the_checkpoint_does(checkpoint, exported, tmp_path):
    images = []
    for i, source in enumerate([f"ckpt_path={checkpoint}", *(f"pretrained={path}" for path in exported.values())]):
        options = [source, "num_samples=4", "sampler.num_steps=3", f"output_dir=out{i}"]
        status, _, err = in_process(sample, *options, cwd=tmp_path)
        assert status == 0, err
        images.append(np.load(tmp_path / f"out{i}" / "samples.npz")["images"])
    assert (images[0] == images[1]).all()
    assert (images[0] == images[2]).all()


@pytest.mark.parametrize(
    ("scheduler", "weighting"),
    [(diffusers.FlowMatchEulerDiscreteScheduler(), "simple"), (diffusers.EDMEulerScheduler(), "edm")],
    ids=["flow", "edm"],
)
def test_a_model_without_a_chain_is_sampled_trained_and_exported(tmp_path, scheduler, weighting):
    pipeline(tmp_path / "theirs", SMALL, scheduler)
    tiny = [option for option in TINY if not option.startswith("backbone")]
    options = ["pretrained=theirs", "data.num_classes=null", "trainer.max_steps=1", "hydra.run.dir=run"]
    status, _, err = in_process(train, *tiny, *options, f"weighting={weighting}", "optimizer.lr=1e-9", cwd=tmp_path)
    assert status == 0, err
    status, _, err = in_process(export, "ckpt_path=run/checkpoints/last.ckpt", "output_dir=ours", cwd=tmp_path)
    assert status == 0, err
    images = []
    for source in ("theirs", "ours"):
        few = ["num_samples=2", "sampler=euler", "sampler.num_steps=3", f"output_dir=of_{source}"]
        status, _, err = in_process(sample, f"pretrained={source}", *few, cwd=tmp_path)
        assert status == 0, err
        images.append(np.load(tmp_path / f"of_{source}" / "samples.npz")["images"].astype(int))
    assert abs(images[0] - images[1]).max() <= 1  # they differ only by the step of 1e-9
    index = json.loads((tmp_path / "ours" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", type(scheduler).__name__]


SCORES = (["num_samples=10", "sampler.num_steps=2", "metrics.steps=10"], "fd_classifier")
LIKELIHOOD = (["metrics=likelihood", "num_images=1", "metrics.tolerance=1e-2"], "bits/dim")  # of a thousand steps


@pytest.mark.parametrize(
    ("measure", "heading"), [SCORES, pytest.param(*LIKELIHOOD, marks=pytest.mark.slow)], ids=["scores", "likelihood"]
)
def test_an_imported_model_is_fine_tuned_and_evaluated(exported, tmp_path, measure, heading):
    source = f"pretrained={exported['diffusers']}"
    tiny = [option for option in TINY if not option.startswith("backbone")]
    options = ["trainer.max_steps=1", "optimizer.lr=1e-9", "hydra.run.dir=run", "schedule=linear"]
    status, _, err = in_process(train, *tiny, source, *options, cwd=tmp_path)
    assert status == 0, err
    before = load_pretrained(str(exported["diffusers"]))
    after = load_pretrained(str(tmp_path / "run" / "checkpoints" / "last.ckpt"))
    assert after[1]["schedule"]["_target_"] == before[1]["schedule"]["_target_"]
    for name, value in before[0].state_dict().items():
        torch.testing.assert_close(after[0].state_dict()[name], value, rtol=0, atol=1e-6)
    status, _, err = in_process(train, "resume=run", "trainer.max_steps=2", cwd=tmp_path)
    assert status == 0, err
    status, out, err = in_process(evaluate, source, "data=digits", *measure, "output_dir=out", cwd=tmp_path)
    assert status == 0, err
    assert heading in out


@pytest.mark.parametrize(
    ("program", "options", "reason"),
    [
        (sample, "", "ckpt_path: missing; give ckpt_path=… or pretrained=…"),
        (sample, "pretrained=nowhere", "pretrained=nowhere: no such file"),
        (sample, "pretrained=nowhere.safetensors", "pretrained=nowhere.safetensors: no such file"),
        (sample, "pretrained=EMPTY", "config.json: cannot be read (No such file or directory)"),
        (sample, "pretrained=CONSISTENCY", "scheduler_config.json: _class_name='LCMScheduler': expected a scheduler"),
        (train, "pretrained=CONSISTENCY", "scheduler_config.json: _class_name='LCMScheduler': expected a scheduler"),
        (train, "pretrained=FOLDER data.num_classes=null", "data.num_classes=None: this model was made for 10"),
        (evaluate, "pretrained=FOLDER", "data: missing; a pretrained model does not record"),
        (evaluate, "pretrained=FOLDER data=mnist", "data.image_size=28: this model was made for 8"),
        (export, "ckpt_path=FINISHED output_dir=new", "format=diffusers: diffusers' clock has steps 0 … 999"),
        (export, "ckpt_path=CHECKPOINT output_dir=FOLDER", "not empty; give a new folder"),
        (export, "ckpt_path=CHECKPOINT format=onnx", "format=onnx: choose diffusers or safetensors"),
        (export, "ckpt_path=CHECKPOINT label=10", "label=10: choose a whole number from 0 to 9"),
        (export, "ckpt_path=CHECKPOINT label=1 format=safetensors", "label=1: only format=diffusers can fix a class"),
    ],
)
def test_mistakes(finished, checkpoint, exported, tmp_path, program, options, reason):
    empty = checkpoint.parent / "empty"
    empty.mkdir(exist_ok=True)
    consistency = checkpoint.parent / "consistency"
    pipeline(consistency, SMALL, diffusers.LCMScheduler())
    for word, path in (
        ("FOLDER", exported["diffusers"]),
        ("EMPTY", empty),
        ("CONSISTENCY", consistency),
        ("FINISHED", finished[0] / "checkpoints" / "last.ckpt"),
        ("CHECKPOINT", checkpoint),
    ):
        options = options.replace(word, str(path))
    status, _, err = in_process(program, *options.split(), cwd=tmp_path)
    check_one_line(status, err, reason, tmp_path)


def test_a_file_that_calls_foreign_code_is_refused(exported, tmp_path):
    node = {
        "_target_": "lightning_diffusion.diffusion.denoiser.NetworkDenoiser",
        "backbone": {"_target_": "os.mkdir", "path": "made"},
    }
    save_file(load_file(exported["file"]), tmp_path / "a.safetensors", metadata={"denoiser": json.dumps(node)})
    with pytest.raises(ValueError, match="calls os.mkdir, which is not part of this project"):
        load_pretrained(str(tmp_path / "a.safetensors"))
    assert not (tmp_path / "made").exists()
