"""Conversion between diffusers' schedulers and this project's processes, compared with diffusers itself."""

import ast
import inspect
from pathlib import Path

import diffusers
import pytest
import torch

from lightning_diffusion.checkpoints.diffusers import folder, process
from lightning_diffusion.checkpoints.diffusers.settings import Settings
from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion import continuous
from lightning_diffusion.diffusion.parameterization import EDM, X0, Eps, Flow, V
from lightning_diffusion.diffusion.samplers.euler import Euler
from lightning_diffusion.diffusion.time_grid import Karras, Linear
from lightning_diffusion.models.diffusion.model import DiffusionModel
from tests.exchange.pipelines import SMALL, edit, load_pretrained, ours, pipeline

SHAPE = (2, 1, 8, 8)


def signature(name):
    """The settings of a scheduler and their defaults, from the source if the class needs a missing library."""
    if name == "DPMSolverSDEScheduler":
        tree = ast.parse((Path(diffusers.__file__).parent / "schedulers" / "scheduling_dpmsolver_sde.py").read_text())
        node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        init = next(node for node in node.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
        names = [argument.arg for argument in init.args.args[1:]]
        return dict(zip(names, map(ast.literal_eval, init.args.defaults), strict=True))
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: p.default for key, p in parameters.items() if key != "self" and p.kind is not p.VAR_KEYWORD}


def node(config):
    """The node that a scheduler's configuration is read as."""
    read = process.read_process(Settings(Path("scheduler_config.json"), config))
    return read.schedule.node, read.parameterization.node, read.learns_variance, read.sign


@pytest.mark.parametrize("name", process.SCHEDULERS)
def test_every_setting_is_decided_and_its_default_is_the_classs_own(name):
    theirs, read = signature(name), process.SCHEDULERS[name]
    assert set(theirs) <= {*read, *process.ONLY, *process.SAMPLING}
    for key in theirs.keys() & (read.keys() | process.ONLY.keys()):
        if key != "variance_type":
            assert {**read, **process.ONLY}[key] == theirs[key], key
    assert theirs.get("variance_type") in process.FIXED


@pytest.mark.parametrize("name", process.SCHEDULERS)
def test_how_diffusers_would_sample_changes_nothing(name):
    theirs = signature(name)
    expected = node({"_class_name": name})
    for key in (theirs.keys() & process.SAMPLING) - process.SCHEDULERS[name].keys():
        assert node({"_class_name": name, key: 0.5}) == expected, key


@pytest.mark.parametrize("name", [n for n in dir(diffusers) if n.endswith("Scheduler") and n not in process.SCHEDULERS])
def test_every_other_scheduler_is_refused(name):
    with pytest.raises(ValueError, match=f"_class_name='{name}'"):
        node({"_class_name": name})


CHAINS = [name for name, read in process.SCHEDULERS.items() if "beta_start" in read and name != "DPMSolverSDEScheduler"]


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("options", [{}, {"beta_schedule": "squaredcos_cap_v2"}, {"beta_end": 0.015}])
def test_a_class_that_shares_ddpms_betas_is_the_same_chain(tmp_path, name, options):
    scheduler = getattr(diffusers, name)(**options)
    scheduler.save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    edit(path, without=set(signature(name)) - set(options))  # the class's defaults for all other settings
    read = process.read_process(Settings.read(path))
    schedule = read.schedule.build(path)
    alpha_bar = schedule.alpha(torch.arange(1, 1001, dtype=torch.float64)) ** 2
    torch.testing.assert_close(alpha_bar, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)
    assert read.parameterization.make is Eps


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({}, schedules.linear),
        ({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}, schedules.cosine),
        ({"beta_schedule": "sigmoid"}, schedules.sigmoid),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.01}, schedules.quadratic),
        ({"trained_betas": [0.001 + i * 1e-5 for i in range(1000)]}, None),
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, schedules.linear),
        (
            {"trained_betas": [0.01] * 1000, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
            None,
        ),
    ],
)
def test_schedules_are_diffusers(tmp_path, options, make):
    scheduler = diffusers.DDPMScheduler(**options)
    pipeline(tmp_path, SMALL, scheduler)
    denoiser, known = load_pretrained(str(tmp_path))
    assert known["schedule"]["_target_"].endswith(make.__name__ if make else "custom")
    alpha_bar = denoiser.schedule.alpha(torch.arange(1, 1001, dtype=torch.float64)) ** 2
    torch.testing.assert_close(alpha_bar, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize(("prediction", "kind"), [("epsilon", Eps), ("sample", X0), ("v_prediction", V)])
def test_predictions_are_diffusers(tmp_path, prediction, kind):
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False)
    theirs = pipeline(tmp_path, SMALL, scheduler)
    denoiser, _ = load_pretrained(str(tmp_path))
    assert type(denoiser.parameterization) is kind
    scheduler.set_timesteps(1000)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for t in (20, 500, 900):
        expected = scheduler.step(theirs(x, t).sample, t, x).pred_original_sample
        torch.testing.assert_close(denoiser(x, torch.tensor(t + 1.0)), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_scheduler_that_steps_in_sigma_means_the_same_network(tmp_path):
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="trailing", prediction_type="v_prediction")
    theirs = pipeline(tmp_path, SMALL, scheduler)
    denoiser, _ = load_pretrained(str(tmp_path))
    scheduler.set_timesteps(4)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        scaled = scheduler.scale_model_input(x * sigma, t)
        expected = scheduler.step(theirs(scaled, t).sample, t, x * sigma).pred_original_sample
        torch.testing.assert_close(denoiser(scaled, t + 1), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_draws_what_diffusers_draws(tmp_path, shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs = pipeline(tmp_path, SMALL, scheduler)
    denoiser, known = load_pretrained(str(tmp_path))
    assert type(denoiser.schedule) is continuous.RectifiedFlow
    assert type(denoiser.parameterization) is Flow
    assert known["schedule"] == {"_target_": "lightning_diffusion.diffusion.continuous.RectifiedFlow"}
    scheduler.set_timesteps(10)
    x_T = x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for t in scheduler.timesteps:
        x = scheduler.step(theirs(x, t).sample, t, x).prev_sample
    times = scheduler.sigmas.double()
    if shift == 1:
        torch.testing.assert_close(Linear()(denoiser.schedule, 10), times)
    *_, drawn = Euler(Linear(), 10).walk(denoiser, lambda: x_T, times=times)
    torch.testing.assert_close(drawn, x, rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_heuns_flow_matching_and_a_solver_with_flow_sigmas_mean_the_same_network(tmp_path):
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.0}
    solver = diffusers.UniPCMultistepScheduler(**options)
    theirs = pipeline(tmp_path / "a", SMALL, solver)
    pipeline(tmp_path / "b", SMALL, diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0))
    denoiser, known = load_pretrained(str(tmp_path / "a"))
    assert load_pretrained(str(tmp_path / "b"))[1] == known
    solver.set_timesteps(5)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for i in range(5):
        solver._step_index = i
        sigma = solver.sigmas[i]
        output = theirs(x, sigma * 1000).sample
        torch.testing.assert_close(
            denoiser(x, sigma), solver.convert_model_output(output, sample=x), rtol=1e-5, atol=2e-5
        )


@torch.no_grad()
@pytest.mark.parametrize("make", [diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_estimates_what_diffusers_estimates(tmp_path, make, prediction):
    scheduler = make(sigma_min=0.01, sigma_max=50.0, sigma_data=0.7, prediction_type=prediction)
    theirs = pipeline(tmp_path, SMALL, scheduler)
    denoiser, known = load_pretrained(str(tmp_path))
    assert known["schedule"] == {
        "_target_": "lightning_diffusion.diffusion.continuous.EDM",
        "sigma_min": 0.01, "sigma_max": 50.0, "time_scale": 1.0,
    }  # fmt: skip
    scheduler.set_timesteps(6)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = noise * sigma
        output = theirs(scheduler.precondition_inputs(x, sigma), t).sample
        expected = scheduler.precondition_outputs(x, output, sigma)
        torch.testing.assert_close(denoiser(x, sigma), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("DDPMScheduler", {"_class_name": None}, "_class_name=None: expected a scheduler of"),
        ("DDPMScheduler", {"variance_type": "learned"}, "variance_type='learned': expected learned_range"),
        ("DDPMScheduler", {"trained_betas": [0.01] * 999}, "trained_betas=.*: expected 1000 numbers"),
        ("DDPMScheduler", {"trained_betas": [0.01] * 999 + [float("nan")]}, "trained_betas="),
        ("DDPMScheduler", {"num_train_timesteps": 999}, "num_train_timesteps=999"),
        ("DDPMScheduler", {"beta_schedule": "laplace"}, "beta_schedule='laplace': expected"),
        ("DDPMScheduler", {"beta_start": 0.03}, "beta_end=0.02: expected no less"),
        ("DDPMScheduler", {"predict_epsilon": False}, "predict_epsilon=False"),
        ("DDPMScheduler", {"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ("DDPMScheduler", {"snr_shift_scale": 3.0}, "'snr_shift_scale': unknown setting"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type='continuous'"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "prediction_type='epsilon'"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas=True"),
        ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 500}, "num_train_timesteps=500"),
        ("EDMEulerScheduler", {"prediction_type": "sample"}, "prediction_type='sample'"),
        ("EDMEulerScheduler", {"sigma_data": 0}, "sigma_data=0: expected a number"),
        ("EDMEulerScheduler", {"sigma_data": "${oc.env:HOME}"}, r"sigma_data='\$\{oc.env:HOME\}'"),
    ],
)
def test_a_scheduler_that_cannot_be_expressed_is_named(name, changes, reason):
    with pytest.raises(ValueError, match=f"scheduler_config.json: {reason}"):
        node({"_class_name": name} | changes)


def test_variance_and_channels_agree_or_are_refused(tmp_path):
    for channels, variance in ((1, "learned_range"), (2, "fixed_large")):
        path = tmp_path / variance
        pipeline(path, SMALL | {"out_channels": channels}, diffusers.DDPMScheduler(variance_type=variance))
        with pytest.raises(ValueError, match=f"variance_type='{variance}': config.json has"):
            load_pretrained(str(path))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True: its last step has no signal"),
        ({"trained_betas": [0.01] * 999 + [1.0]}, "parameterization=eps and schedule"),
    ],
)
def test_a_singular_prediction_is_refused_with_its_file(tmp_path, options, reason):
    pipeline(tmp_path, SMALL, diffusers.DDPMScheduler(**options))
    with pytest.raises(ValueError, match=f"scheduler_config.json: {reason}"):
        load_pretrained(str(tmp_path))


def test_the_index_may_name_the_class_but_not_another(tmp_path):
    pipeline(tmp_path, SMALL, diffusers.FlowMatchEulerDiscreteScheduler())
    path = tmp_path / "scheduler" / "scheduler_config.json"
    edit(path, without={"_class_name"})
    assert type(load_pretrained(str(tmp_path))[0].parameterization) is Flow
    edit(path, {"_class_name": "DDPMScheduler"})
    with pytest.raises(ValueError, match="_class_name='DDPMScheduler': model_index.json has 'FlowMatchEuler"):
        load_pretrained(str(tmp_path))


def drawn_by_diffusers(path, name):
    """(two images in [0, 1], their initial noise) from the pipeline that the folder names."""
    loaded = diffusers.DiffusionPipeline.from_pretrained(path)
    assert type(loaded).__name__ == name
    loaded.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = loaded(batch_size=2, num_inference_steps=5, output_type="np", generator=generator).images
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_an_exported_flow_model_is_drawn_by_diffusers(tmp_path):
    denoiser = ours(continuous.RectifiedFlow(), Flow())
    name = folder.write(tmp_path, DiffusionModel(denoiser, 1, 8))
    images, x_T = drawn_by_diffusers(tmp_path, name)
    *_, drawn = Euler(Linear(), 5).walk(denoiser, lambda: x_T)
    torch.testing.assert_close((drawn / 2 + 0.5).clamp(0, 1), images, rtol=1e-4, atol=1e-4)
    back, _ = load_pretrained(str(tmp_path))
    assert torch.equal(back(x_T, torch.tensor(0.3)), denoiser(x_T, torch.tensor(0.3)))


@torch.no_grad()
def test_an_exported_edm_model_is_drawn_by_diffusers(tmp_path):
    denoiser = ours(continuous.EDM(sigma_max=40.0, time_scale=1.0), EDM(0.6))
    name = folder.write(tmp_path, DiffusionModel(denoiser, 1, 8))
    images, noise = drawn_by_diffusers(tmp_path, name)
    start = noise * (40.0**2 + 1) ** 0.5
    *_, drawn = Euler(Karras(), 5).walk(denoiser, lambda: noise, start=start)
    torch.testing.assert_close((drawn / 2 + 0.5).clamp(0, 1), images, rtol=1e-4, atol=1e-4)
    back, _ = load_pretrained(str(tmp_path))
    assert torch.equal(back(start, torch.tensor(40.0)), denoiser(start, torch.tensor(40.0)))


def test_a_networks_time_is_scaled_by_more_than_nothing():
    sigma = torch.tensor([0.1, 3.0])
    torch.testing.assert_close(continuous.EDM(time_scale=1.0).network_time(sigma), sigma.log() / 4)
    with pytest.raises(ValueError, match="schedule.time_scale=0: choose"):
        continuous.EDM(time_scale=0)


def test_a_schedule_that_no_pipeline_draws_is_not_exported(tmp_path):
    for schedule, parameterization, reason in (
        (continuous.EDM(), EDM(), "train with schedule.time_scale=1"),
        (continuous.RectifiedFlow(), V(), "or schedule=flow with parameterization=flow"),
        (continuous.VE(), EDM(), "only schedules with T = 1000"),
    ):
        denoiser = ours()
        denoiser.schedule, denoiser.parameterization = schedule, parameterization
        with pytest.raises(ValueError, match=reason):
            folder.write(tmp_path / "out", DiffusionModel(denoiser, 1, 8))
    assert not (tmp_path / "out").exists()
