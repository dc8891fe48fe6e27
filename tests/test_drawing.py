"""A model is drawn, measured and edited with as its own run does, where the command line chooses nothing else."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_diffusion.app.drawing import option_of
from lightning_diffusion.checkpoints.loading import load
from lightning_diffusion.configuration.arguments import Node
from lightning_diffusion.configuration.trusted_targets import Targets
from lightning_diffusion.diffusion.beta import cosine
from lightning_diffusion.diffusion.guidance import Clip, DynamicThreshold, Unguided
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.samplers.dpm_solver import DPMSolverMultistep
from lightning_diffusion.diffusion.samplers.unipc import UniPC
from lightning_diffusion.diffusion.time_grid import Karras, LogSNR, Quadratic, Trailing
from lightning_diffusion.training.durable import DurableCheckpointIO
from src.evaluate import main as evaluate
from src.export import main as export
from src.sample import main as sample
from src.train import main as train
from tests.command import in_process
from tests.runs import TINY
from tests.test_mistakes import check_one_line

OWN = [
    "schedule=flow", "parameterization=flow", "time_grid=logsnr", "sampler=dpm_multistep", "sampler.num_steps=5",
    "guidance=dynamic_threshold", "trainer.max_steps=2", "trainer.val_check_interval=2", "hydra.run.dir=run",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose sampler, time grid and guidance are not the programs' defaults."""
    folder = tmp_path_factory.mktemp("drawn")
    status, _, err = in_process(train, *TINY, *OWN, cwd=folder)
    assert status == 0, err
    path = folder / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    parts = {key: content[key] for key in ("state_dict", "hyper_parameters", "global_step", "format_version")}
    return SimpleNamespace(folder=folder / "run", path=path, content=parts, model=load(path).model)


def rewritten(run, folder, change):
    """The run's checkpoint with another configuration."""
    content = copy.deepcopy(run.content)
    change(content["hyper_parameters"])
    DurableCheckpointIO().save_checkpoint(content, folder / "other.ckpt")
    return folder / "other.ckpt"


def drawn(folder, *words):
    """Ten samples and the output."""
    status, out, err = in_process(sample, "num_samples=10", "output_dir=out", *words, cwd=folder)
    assert status == 0, err
    return np.load(folder / "out" / "samples.npz")["images"], out


def made(run, sampler, guidance):
    """The same by hand."""
    model = run.model.with_parts(sampler=sampler, guidance=guidance)
    images = model.draw(range(10), model.conditions_in_turn(range(10)), seed=0).images
    return images.permute(0, 2, 3, 1).numpy()


def test_without_words_the_samples_are_those_of_the_runs_final_grid(run, tmp_path):
    images, out = drawn(tmp_path, f"ckpt_path={run.path}")
    ours, theirs = (np.asarray(Image.open(p)) for p in (tmp_path / "out/grid.png", run.folder / "samples/final.png"))
    assert (ours == theirs).all()
    assert (images == made(run, DPMSolverMultistep(LogSNR(), 5), DynamicThreshold)).all()
    assert "10 samples by dpm_multistep, 5 steps, guidance dynamic_threshold: out/grid.png" in out


@pytest.mark.parametrize(
    ("words", "sampler", "guidance", "message"),
    [
        ("sampler.num_steps=3", DPMSolverMultistep(LogSNR(), 3), DynamicThreshold, "dpm_multistep, 3 steps"),
        ("sampler.order=3", DPMSolverMultistep(LogSNR(), 5, order=3), DynamicThreshold, "dpm_multistep, 5 steps"),
        ("sampler=unipc", UniPC(LogSNR(), 10), DynamicThreshold, "unipc, 10 steps, guidance dynamic_threshold"),
        ("time_grid=karras time_grid.sigma_max=9", DPMSolverMultistep(Karras(sigma_max=9), 5), DynamicThreshold, ""),
        ("guidance=none", DPMSolverMultistep(LogSNR(), 5), Unguided, "dpm_multistep, 5 steps, guidance none"),
        (
            "guidance.percentile=0.5",
            DPMSolverMultistep(LogSNR(), 5),
            lambda inner: DynamicThreshold(inner, 0.5),
            "guidance dynamic_threshold",
        ),
    ],
)
def test_a_word_changes_what_it_names_and_nothing_else(run, tmp_path, words, sampler, guidance, message):
    images, out = drawn(tmp_path, f"ckpt_path={run.path}", *words.split())
    assert (images == made(run, sampler, guidance)).all()
    assert (images != made(run, DPMSolverMultistep(LogSNR(), 5), DynamicThreshold)).any()
    assert message in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sampler.eta=0.5", "sampler.eta: no such key; choose among num_steps, order, time_grid"),
        ("sampler.oder=3", "sampler.oder: no such key"),
        ("sampler=ddim sampler.order=3", "sampler.order: no such key"),
    ],
)
def test_a_key_that_the_runs_own_option_lacks_is_one_line(run, tmp_path, words, message):
    status, _, err = in_process(sample, f"ckpt_path={run.path}", *words.split(), cwd=tmp_path)
    check_one_line(status, err, message, tmp_path)


def test_other_keys_may_refer_to_the_runs_own(run, tmp_path):
    words = ("output_dir=of_${sampler.num_steps}", "num_samples=10")
    status, _, err = in_process(sample, f"ckpt_path={run.path}", *words, cwd=tmp_path)
    assert status == 0, err
    assert (tmp_path / "of_5" / "grid.png").exists()
    how, _ = measured(run, tmp_path, "batch_size=3", "sampler.num_steps=${batch_size}")
    assert how["nfe"] == 3


def test_a_model_that_names_no_sampler_is_drawn_by_the_programs_defaults(run, tmp_path):
    def forget(config):
        for key in ("sampler", "time_grid", "guidance"):
            del config[key]

    images, out = drawn(tmp_path, f"ckpt_path={rewritten(run, tmp_path, forget)}", "sampler.num_steps=4")
    assert (images == made(run, DDIM(Trailing(), 4), Clip)).all()
    assert "by ddim, 4 steps, guidance clip" in out


def test_an_exported_file_draws_as_its_run(run, tmp_path):
    words = ("format=safetensors", "output_dir=new")
    assert in_process(export, f"ckpt_path={run.path}", *words, cwd=tmp_path)[0] == 0
    images, _ = drawn(tmp_path, "pretrained=new/denoiser.safetensors")
    assert (images == made(run, DPMSolverMultistep(LogSNR(), 5), DynamicThreshold)).all()


def test_a_sampler_with_a_time_grid_of_its_own_keeps_it_until_told_otherwise(run, tmp_path):
    def part(config):
        config["time_grid"] = {"_target_": "lightning_diffusion.diffusion.time_grid.Trailing"}

    path = f"ckpt_path={rewritten(run, tmp_path, part)}"
    for words, grid in ((), LogSNR()), (("time_grid=linear",), None):
        images, _ = drawn(tmp_path, path, *words)
        assert (images == made(run, DPMSolverMultistep(LogSNR(), 5), DynamicThreshold)).all() == (grid is not None)


def measured(run, folder, *words):
    words = ("num_samples=10", "metrics.steps=10", "output_dir=out", *words)
    status, out, err = in_process(evaluate, f"ckpt_path={run.path}", *words, cwd=folder)
    assert status == 0, err
    return json.loads((folder / "out" / "metrics.json").read_text())["how"], out


def test_scores_are_of_what_the_run_draws(run, tmp_path):
    own = run.content["hyper_parameters"]
    how, out = measured(run, tmp_path)
    assert (how["sampler"], how["guidance"], how["nfe"]) == (own["sampler"], own["guidance"], 5)
    assert "10 samples by dpm_multistep, 5 steps, guidance dynamic_threshold: out/metrics.json" in out
    how, _ = measured(run, tmp_path, "num_steps=3", "guidance=clip")
    assert (how["sampler"], how["nfe"]) == (own["sampler"] | {"num_steps": 3}, 3)
    assert option_of(Node("guidance", how["guidance"], Targets())) == "clip"
    how, _ = measured(run, tmp_path, "samplers=[ddim]", "num_steps=2")
    assert how["sampler"]["time_grid"] == own["time_grid"]
    assert option_of(Node("sampler", how["sampler"], Targets())) == "ddim"
    how, _ = measured(run, tmp_path, "samplers=[ddim]", "num_steps=2", "time_grid=trailing")
    assert how["sampler"]["time_grid"] == {"_target_": "lightning_diffusion.diffusion.time_grid.Trailing"}


def test_an_edit_that_needs_latents_leaves_a_stochastic_sampler(run, tmp_path):
    def noisy(config):
        config["sampler"] = {
            **config["sampler"],
            "_target_": "lightning_diffusion.diffusion.samplers.dpm_solver.DPMSolverSDE",
        }
        del config["sampler"]["order"]

    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3).save(tmp_path / "a.png")
    path, strips = f"ckpt_path={rewritten(run, tmp_path, noisy)}", []
    edit = ("images=[a.png]", "label=3", "sampler.num_steps=4")
    for words, message in (
        (
            "edit=invert",
            "sampler=ddim: this edit needs a deterministic sampler, and the run's own, dpm_sde, is stochastic",
        ),
        ("edit=invert sampler=ddim", "by ddim, 4 steps"),
        ("edit=image_to_image", "by dpm_sde, 4 steps"),
    ):
        images, out = drawn(tmp_path, path, *edit, *words.split())
        strips.append(images)
        assert message in out
    assert (strips[0] == strips[1]).all()


@pytest.mark.parametrize("in_a_chain", [False, True])
def test_another_checkpoint_that_the_runs_guidance_needs_is_not_opened_unasked(run, tmp_path, in_a_chain):
    def guided(config):
        loading = "lightning_diffusion.checkpoints.weak_model"
        weak = {"_target_": f"{loading}.load_weak_model", "ckpt_path": str(run.path), "trust": []}
        auto = {"_target_": f"{loading}.autoguidance", "_partial_": True, "scale": 2.0, "weak": weak}
        chain = {"_target_": "lightning_diffusion.diffusion.guidance.chain", "_partial_": True, "auto": auto}
        config["guidance"] = chain if in_a_chain else auto

    path = rewritten(run, tmp_path, guided)
    (tmp_path / "cwd").mkdir()
    status, _, err = in_process(sample, f"ckpt_path={path}", cwd=tmp_path / "cwd")
    check_one_line(status, err, "give guidance=autoguidance guidance.weak.ckpt_path=…, or", tmp_path / "cwd")
    drawn(tmp_path, f"ckpt_path={path}", "guidance=clip")
    drawn(tmp_path, f"ckpt_path={path}", "guidance=autoguidance", f"guidance.weak.ckpt_path={run.path}")


def test_a_file_asks_for_no_walk_without_end(run, tmp_path):
    path = rewritten(run, tmp_path, lambda config: config["sampler"].update(num_steps=10**12))
    (tmp_path / "cwd").mkdir()
    status, _, err = in_process(sample, f"ckpt_path={path}", cwd=tmp_path / "cwd")
    message = "sampler.num_steps=1000000000000: more than 100,000; or choose another sampler=…"
    check_one_line(status, err, message, tmp_path / "cwd")


def test_every_step_of_the_chain_is_walked_on_any_grid():
    chain = cosine(T=1000)
    for grid in (Trailing(), LogSNR(), Quadratic(), Karras(sigma_max=80)):
        assert grid(chain, None).tolist() == [*range(1000, -1, -1)]


@pytest.mark.parametrize("node", ["x", 5, None, [], {"num_steps": 5}], ids=str)
def test_a_file_whose_sampler_is_no_call_is_refused(run, tmp_path, node):
    path = rewritten(run, tmp_path, lambda config: config.update(sampler=node))
    for words in ([], ["sampler.num_steps=5"], ["time_grid=quadratic"]):
        status, _, err = in_process(sample, f"ckpt_path={path}", "num_samples=10", *words, cwd=tmp_path)
        assert status == 2
        assert "sampler: expected an option of its group" in err
        assert len(err.splitlines()) == 1
