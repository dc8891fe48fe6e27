"""The Python API: the numbers of the programs, their messages as exceptions, and nothing left behind."""

import builtins
import copy
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from PIL import Image
from torch import nn

import lightning_diffusion as ld
from lightning_diffusion.checkpoints.loading import TrainedModel
from lightning_diffusion.diffusion.guidance import DynamicThreshold
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.samplers.dpm_solver import DPMSolverMultistep
from lightning_diffusion.diffusion.time_grid import Karras, Trailing
from lightning_diffusion.models.contracts import Model
from lightning_diffusion.runs import attended
from lightning_diffusion.training.durable import DurableCheckpointIO
from src.evaluate import main as evaluate
from src.export import main as export
from src.sample import main as sample
from tests.command import in_process
from tests.runs import TINY, digits


@pytest.fixture(scope="module")
def run(finished):
    folder, _ = finished
    path = folder / "checkpoints" / "last.ckpt"
    return SimpleNamespace(folder=folder, path=path, model=ld.load(folder))


def sampled(folder, *words):
    """What src.sample writes."""
    status, _, err = in_process(sample, "output_dir=out", *words, cwd=folder)
    assert status == 0, err
    return dict(np.load(folder / "out" / "samples.npz"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ""),
        ({"label": 3, "sampler": "dpm_multistep", "num_steps": 3}, "label=3 sampler=dpm_multistep sampler.num_steps=3"),
        ({"num_steps": 3, "eta": 0.5}, "sampler.num_steps=3 sampler.eta=0.5"),
        (
            {"time_grid": "karras", "sigma_max": 9, "guidance": "dynamic_threshold", "percentile": 0.5},
            "time_grid=karras time_grid.sigma_max=9 guidance=dynamic_threshold guidance.percentile=0.5",
        ),
    ],
)
def test_samples_are_the_programs(run, tmp_path, options, words):
    theirs = sampled(tmp_path, f"ckpt_path={run.path}", "num_samples=6", "seed=1", "batch_size=4", *words.split())
    ours = run.model.draw(6, seed=1, batch_size=4, **options)
    assert ours.dtype == np.uint8
    assert ours.shape == (6, 8, 8, 1)
    assert (ours == theirs["images"]).all()
    assert not options or (ours != run.model.draw(6, seed=1, batch_size=4)).any()


def test_reduced_precision_draws_as_the_program_does(run, tmp_path):
    words = (f"ckpt_path={run.path}", "num_samples=2", "precision=bf16-mixed", "sampler.num_steps=2")
    reduced = ld.load(run.folder, precision="bf16-mixed").draw(2, num_steps=2)
    assert (reduced == sampled(tmp_path, *words)["images"]).all()


def test_objects_draw_as_the_options_of_their_names(run):
    named = run.model.draw(
        4, sampler="dpm_multistep", num_steps=3, time_grid="karras", sigma_max=9, guidance="dynamic_threshold"
    )
    grid, guidance = Karras(sigma_max=9), DynamicThreshold
    assert (run.model.draw(4, sampler=DPMSolverMultistep(grid, 3), guidance=guidance) == named).all()
    assert (run.model.draw(4, sampler="dpm_multistep", num_steps=3, time_grid=grid, guidance=guidance) == named).all()


def test_classes_are_one_for_all_or_one_for_each(run):
    each = run.model.draw(4, label=np.array([3, 3, 5, 5]))
    assert (each[:2] == run.model.draw(2, label=3)).all()
    assert (each[2:] == run.model.draw(4, label=5)[2:]).all()
    assert (run.model.draw(3) == run.model.draw(3, label=[0, 1, 2])).all()


def test_a_trajectory_ends_in_the_samples(run):
    states = run.model.trajectory(3, seed=2, batch_size=2, num_steps=5)
    assert states.shape == (6, 3, 8, 8, 1)
    assert states.dtype == np.uint8
    assert (states[-1] == run.model.draw(3, seed=2, batch_size=2, num_steps=5)).all()
    assert (states[0] != states[-1]).any()


def test_bits_per_dimension_are_those_of_the_runs_validation(run):
    data = digits()
    data.setup()
    images, labels = data.splits["val"][torch.arange(32)]  # what TINY validates
    pictures = images.permute(0, 2, 3, 1).numpy()
    bits = run.model.bits_per_dim(pictures, label=labels, batch_size=16)
    assert bits.shape == (32,)
    validated = json.loads((run.folder / "metrics.json").read_text())["val/bits_per_dim"]
    assert math.isclose(bits.mean(), validated, rel_tol=1e-5)
    noise = np.random.default_rng(0).integers(0, 256, pictures.shape, dtype=np.uint8)
    assert run.model.bits_per_dim(noise, label=labels).mean() > bits.mean()


@pytest.mark.parametrize(
    ("edit", "options", "words"),
    [
        ("inpaint", {"mask": "left", "num_steps": 4, "resamples": 1}, "mask=left edit.num_steps=4 edit.resamples=1"),
        ("image_to_image", {"strength": 0.5, "num_steps": 4}, "edit.strength=0.5 sampler.num_steps=4"),
    ],
)
def test_edits_are_the_programs(run, tmp_path, edit, options, words):
    pictures = run.model.draw(2, label=3)
    for name, picture in zip("ab", pictures, strict=True):
        Image.fromarray(picture[..., 0]).save(tmp_path / f"{name}.png")
    given = (f"ckpt_path={run.path}", f"edit={edit}", "images=[a.png,b.png]", "label=3", "edit.num_variants=2")
    theirs = sampled(tmp_path, *given, *words.split())["images"]
    columns = run.model.edit(edit, pictures, label=3, num_variants=2, **options)
    (result,) = (name for name in columns if len(columns[name]) == 4)
    assert (columns["picture"] == pictures).all()
    assert (columns[result] == theirs).all()
    once = run.model.edit(edit, pictures, label=[3, 3], **options)
    assert {column.shape for column in once.values()} == {(2, 8, 8, 1)}
    if edit == "inpaint":
        mask = np.arange(8)[None, :].repeat(8, axis=0) < 4
        again = run.model.edit(edit, pictures, label=3, **options | {"mask": mask})
        assert all((again[name] == once[name]).all() for name in once)
        assert (again[result][:, :, 4:] == pictures[:, :, 4:]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"num_samples": 20, "metrics": "classifier", "steps": 10, "num_steps": 2},
            "num_samples=20 metrics.steps=10 sampler.num_steps=2",
        ),
        (
            {"metrics": "likelihood", "num_images": 2, "tolerance": 0.1},
            "metrics=likelihood num_images=2 metrics.tolerance=0.1",
        ),
    ],
)  # fmt: skip
def test_scores_are_the_programs(run, tmp_path, options, words):
    status, _, err = in_process(evaluate, f"ckpt_path={run.path}", "output_dir=out", *words.split(), cwd=tmp_path)
    assert status == 0, err
    theirs, ours = json.loads((tmp_path / "out" / "metrics.json").read_text()), run.model.evaluate(**options)
    for results in (ours, theirs):
        assert results["how"].pop("seconds") > 0
        if "num_samples" in options:
            assert results["how"].pop("seconds_per_1000_samples") > 0
    assert json.loads(json.dumps(ours)) == theirs
    if "num_samples" in options:
        assert ours["fd_classifier"]["value"] > ours["fd_classifier"]["floor"]["value"] > 0


def test_scores_of_an_object_name_it(run):
    how = run.model.evaluate(10, steps=10, sampler=DDIM(Trailing(), 2), guidance=DynamicThreshold)["how"]
    assert how["nfe"] == 2
    assert how["sampler"] == "DDIM"
    assert how["guidance"]["_target_"].endswith(".DynamicThreshold")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "dpm_multstep"}, "sampler=dpm_multstep: no such option; did you mean dpm_multistep?"),
        ({"num_step": 3}, "num_step: no such option; did you mean num_steps?"),
        ({"sampler": "ddim", "order": 3}, "order: no such option"),
        ({"num_steps": "three"}, "sampler.num_steps='three': expected"),
        ({"num_steps": [1, torch.ones(2)]}, "sampler.num_steps: a Tensor is not plain data"),
        ({"sampler": DDIM}, "sampler: give the name of an option or a Sampler, not ABCMeta"),
        ({"guidance": 3}, "guidance: give the name of an option or a callable of a denoiser, not int"),
        ({"sampler": DDIM(Trailing(), 2), "time_grid": "karras"}, "time_grid: the given sampler already has one"),
        ({"sampler": DDIM(Trailing(), 2), "num_steps": 3}, "num_steps: no such option"),
        ({"label": 10}, "label=10: choose a whole number from 0 to 9"),
        ({"label": [1, 2]}, "label: expected a whole number or 4 of them"),
        ({"label": "three"}, "label='three': expected a whole number or 4 of them"),
        ({"batch_size": 0}, "batch_size=0: choose a whole number of at least 1"),
        ({"seed": 0.5}, "seed=0.5: expected a whole number"),
        ({"guidance": "autoguidance"}, "guidance.weak.ckpt_path: missing"),
    ],
)  # fmt: skip
def test_a_mistake_is_an_exception_of_one_line(run, options, message):
    with pytest.raises(ld.ConfigError) as caught:
        run.model.draw(4, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_pictures_of_another_kind_are_refused(run):
    for images, message in (
        (np.zeros((2, 8, 8), np.uint8), r"images: expected uint8 \(N, 8, 8, 1\), got uint8 \(2, 8, 8\)"),
        (np.zeros((2, 8, 8, 1)), r"float64 \(2, 8, 8, 1\)"),
        (torch.zeros(0, 8, 8, 1, dtype=torch.uint8), r"\(0, 8, 8, 1\)"),
    ):
        for ask in (run.model.bits_per_dim, lambda images: run.model.edit("invert", images, label=1)):
            with pytest.raises(ld.ConfigError, match=message):
                ask(images)
    pictures = run.model.draw(1)
    for ask, message in (
        (lambda: run.model.bits_per_dim(pictures), "label: missing; this model needs the class of each image"),
        (lambda: run.model.edit("inpaint", pictures), "label: missing; this model needs"),
        (lambda: run.model.edit("inpaint", pictures, label=1), "mask: missing"),
        (lambda: run.model.edit("inpaint", pictures, label=1, mask=np.ones((4, 4))), "mask: expected 8×8"),
        (lambda: run.model.edit("inpant", pictures, label=1), "edit=inpant: no such option; did you mean inpaint?"),
        (lambda: run.model.edit(None, pictures, label=1), "edit: missing"),
        (lambda: run.model.evaluate(20, "likelihood"), "num_samples: not used with metrics=likelihood; give num_im"),
    ):
        with pytest.raises(ld.ConfigError, match=message):
            ask()


class Reader(Model):
    """A family that neither draws nor edits nor measures likelihoods."""

    shape, num_classes = (1, 8, 8), None

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    @property
    def network(self):
        return self.net


def test_what_a_family_cannot_do_is_one_line(run):
    trained = run.model._trained
    reader = ld.LoadedModel(TrainedModel(Reader(), trained.file), run.path, torch.device("cpu"), "32-true", [])
    pictures = np.zeros((1, 8, 8, 1), np.uint8)
    for ask, message in (
        (reader.draw, "model: a Reader draws no samples"),
        (reader.trajectory, "model: a Reader draws no samples"),
        (lambda: reader.draw(num_steps=3), "num_steps: no such option"),
        (lambda: reader.bits_per_dim(pictures), "this model has no likelihood"),
        (lambda: reader.edit("invert", pictures), "edit: a Reader cannot edit"),
        (lambda: reader.evaluate(20, steps=10), "a Reader draws no samples"),
        (lambda: reader.evaluate(20, steps=10, sampler="ddim"), "sampler: a Reader has no sampler"),
    ):
        with pytest.raises(ld.ConfigError, match=message):
            ask()


def test_a_model_is_loaded_from_a_checkpoint_and_from_an_export(run, tmp_path):
    words = (f"ckpt_path={run.path}", "format=safetensors", "output_dir=new")
    assert in_process(export, *words, cwd=tmp_path)[0] == 0
    for path in (str(run.path), tmp_path / "new" / "denoiser.safetensors"):
        assert (ld.load(path).draw(2) == run.model.draw(2)).all()


def test_what_is_no_model_is_one_line(run, tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    content = copy.copy(torch.load(run.path, weights_only=True))
    content["hyper_parameters"]["model"]["denoiser"] = {"_target_": "os.system", "command": "touch hacked"}
    DurableCheckpointIO().save_checkpoint(content, tmp_path / "hostile.ckpt")
    for ask, message in (
        (lambda: ld.load(tmp_path), r"path=.*checkpoints/last.ckpt: no such file"),
        (lambda: ld.load(tmp_path / "none"), "path=.*none: no such file"),
        (lambda: ld.load(tmp_path / "hostile.ckpt"), "calls os.system, which is not part of this project"),
        (lambda: ld.load(run.folder, device="tpu9"), "device=tpu9: not usable here"),
        (lambda: ld.load(run.folder, precision="16"), "precision=16: choose 32-true or bf16-mixed"),
        (lambda: ld.load(run.folder, trust="os"), "trust=os: not a list of packages; give"),
    ):
        with pytest.raises(ld.ConfigError, match=message):
            ask()


def test_nothing_of_hydra_is_left_behind(run):
    before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    run.model.draw(1, num_steps=1)
    with pytest.raises(ld.ConfigError):
        run.model.draw(1, sampler="none")
    assert (GlobalHydra.instance().hydra, HydraConfig.instance().cfg) == before


def test_the_package_imports_nothing_heavy_until_it_is_used():
    heavy = "{'torch', 'hydra', 'numpy'} & set(sys.modules)"
    code = f"import sys, lightning_diffusion as ld; print('load' in dir(ld), {heavy})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer == "True set()\n"
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        ld.lod  # noqa: B018


@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.slow)])  # the slow one: imports too
def test_a_run_is_trained_shown_and_loaded(tmp_path, monkeypatch, capsys, request, forked):
    if forked:
        request.getfixturevalue("forked_jobs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ld.ConfigError, match="trainer.max_step: no such key; did you mean trainer.max_steps?"):
        ld.train("trainer.max_step=2")
    assert not [*tmp_path.iterdir()]
    run = ld.train(*TINY, "trainer.max_steps=2", "trainer.val_check_interval=2")
    assert run.folder.parent == tmp_path / "runs" / "digits"
    assert run.metrics["val/bits_per_dim"] > 0
    assert run.metrics["steps"] == 2
    assert run.curves["val/loss"][0][-1] == 2
    assert f"run       {run.folder.relative_to(tmp_path)}" in capsys.readouterr().out
    samples = run.model().draw(2)
    assert samples.shape == (2, 8, 8, 1)
    words = (f"ckpt_path={run.folder}/checkpoints/last.ckpt", "output_dir=new")
    assert in_process(export, *words, cwd=tmp_path)[0] == 0
    foreign = ld.load(tmp_path / "new")  # a folder of diffusers
    assert repr(foreign) == f"<DiffusionModel of 8×8×1 images, 10 classes, {tmp_path}/new, {foreign.device}>"
    assert np.abs(foreign.draw(2, num_steps=4).astype(int) - samples).max() <= 1


def test_an_interrupted_run_ends_by_itself_first(monkeypatch, capsys):
    """The process is a stand-in: what it does with the signal is the programs' own affair."""
    code = """import signal, sys, time
def leave(*_):
    print("saved")
    sys.exit(130)
signal.signal(signal.SIGINT, leave)
print("begun")
time.sleep(60)"""
    child = [sys.executable, "-u", "-c", code]
    pipe = {"stdout": subprocess.PIPE, "text": True}
    monkeypatch.setattr(attended, "started", lambda *_, **__: subprocess.Popen(child, **pipe))
    shown = builtins.print

    def interrupted(text, **options):
        shown(text, **options)
        if text == "begun\n":
            raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "print", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ld.train()
    assert capsys.readouterr().out == "begun\nsaved\n"


def test_only_one_run_at_a_time():
    with pytest.raises(ld.ConfigError, match="-m: a sweep has many runs"):
        ld.train("-m", "schedule=linear,cosine")
