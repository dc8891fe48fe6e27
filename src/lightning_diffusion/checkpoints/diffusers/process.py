"""Converts between diffusers' schedulers and this project's schedules and parameterizations.

A scheduler has two kinds of settings. Those that define the meaning of the network's output are read or refused here.
Those of how diffusers would sample are ignored; sampler=… and time_grid=… take their place.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from lightning_diffusion.checkpoints.diffusers.settings import Part, Settings
from lightning_diffusion.diffusion import beta, continuous
from lightning_diffusion.diffusion.denoiser import NetworkDenoiser
from lightning_diffusion.diffusion.discrete import DiscreteSchedule
from lightning_diffusion.diffusion.parameterization import EDM, X0, Eps, Flow, V

STEPS = 1000  # diffusers' clock; a network gets 0 … 999 on chains, and 1000 t with flow matching
PREDICTIONS: dict[str, Callable[..., Any]] = {"epsilon": Eps, "sample": X0, "v_prediction": V}
BETAS = {"linear": beta.linear, "scaled_linear": beta.quadratic, "sigmoid": beta.sigmoid}
FIXED = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")  # a sampler's choice, not learned

CHAIN: dict[str, Any] = {
    "num_train_timesteps": STEPS, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "rescale_betas_zero_snr": False, "prediction_type": "epsilon", "variance_type": None,
    "use_flow_sigmas": False,
}  # fmt: skip
LATENT = CHAIN | {"beta_start": 8.5e-4, "beta_end": 0.012}
FLOW: dict[str, Any] = {"num_train_timesteps": STEPS}
SIGMAS: dict[str, Any] = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"}

SCHEDULERS: dict[str, dict[str, Any]] = {  # settings that define the network's output, with each class's defaults
    "DDIMInverseScheduler": CHAIN, "DDIMParallelScheduler": CHAIN, "DDIMScheduler": CHAIN,
    "DDPMParallelScheduler": CHAIN, "DDPMScheduler": CHAIN, "DEISMultistepScheduler": CHAIN,
    "DPMSolverMultistepInverseScheduler": CHAIN, "DPMSolverMultistepScheduler": CHAIN, "DPMSolverSDEScheduler": LATENT,
    "DPMSolverSinglestepScheduler": CHAIN, "EulerAncestralDiscreteScheduler": CHAIN, "EulerDiscreteScheduler": CHAIN,
    "HeunDiscreteScheduler": LATENT, "KDPM2AncestralDiscreteScheduler": LATENT, "KDPM2DiscreteScheduler": LATENT,
    "LMSDiscreteScheduler": CHAIN, "PNDMScheduler": CHAIN, "RePaintScheduler": CHAIN, "SASolverScheduler": CHAIN,
    "UniPCMultistepScheduler": CHAIN,
    "FlowMatchEulerDiscreteScheduler": FLOW, "FlowMatchHeunDiscreteScheduler": FLOW,
    "EDMDPMSolverMultistepScheduler": SIGMAS, "EDMEulerScheduler": SIGMAS,
}  # fmt: skip
ONLY: dict[str, Any] = {  # settings that define the network's output, with the only value that can be expressed
    "timestep_type": "discrete",  # continuous gives the network ¼ ln σ of a chain
    "invert_sigmas": False,  # true swaps data and noise
    "predict_epsilon": True,  # in files from before 2023
}
SAMPLING = {  # settings of how diffusers would sample, in classes whose entry in SCHEDULERS does not read them
    "clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value",  # of x̂_0
    "timestep_spacing", "steps_offset", "set_alpha_to_one", "interpolation_type", "timestep_values",  # the times
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "lambda_min_clipped",
    "final_sigmas_type", "sigma_schedule", "rho", "shift", "shift_terminal", "use_dynamic_shifting", "base_shift",
    "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type", "flow_shift",
    "solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final", "predict_x0",  # the steps
    "disable_corrector", "solver_p", "predictor_order", "corrector_order", "tau_func", "skip_prk_steps", "eta",
    "stochastic_sampling", "noise_sampler_seed", "tensor_format", "sigma_min", "sigma_max", "num_train_timesteps",
}  # fmt: skip
PIPELINES = {  # for unconditional networks; DDPMPipeline neither scales its input nor starts at σ_max
    "DDPMScheduler": "DDPMPipeline",
    "FlowMatchEulerDiscreteScheduler": "DDPMPipeline",
    "EDMEulerScheduler": "ConsistencyModelPipeline",
}


class Process(NamedTuple):
    """The meaning of a network's output, by its scheduler."""

    schedule: Part
    parameterization: Part
    learns_variance: bool = False
    sign: int = 1  # of the network's output under this project's parameterization


def read_process(config: Settings) -> Process:
    """The process that scheduler_config.json describes.

    Raises:
        ValueError: a scheduler that this project cannot express, naming the setting; or no class. The same keys, and
            their absence, have different meanings in different classes.
    """
    kind = config["_class_name"]
    known = isinstance(kind, str) and kind in SCHEDULERS
    config.need(known, "_class_name", "expected a scheduler of β_t chains, of flow matching or of EDM")
    config.among({*CHAIN, *SIGMAS, *ONLY, *SAMPLING})
    config = config.with_defaults(ONLY | SCHEDULERS[kind])
    for key, value in ONLY.items():
        config.only(key, value)
    if SCHEDULERS[kind] is SIGMAS:
        return _read_edm(config)
    config.only("num_train_timesteps", STEPS)
    if SCHEDULERS[kind] is FLOW or config.flag("use_flow_sigmas"):
        return _read_flow(config.with_defaults({"prediction_type": "flow_prediction"}))
    return _read_chain(config)


def scheduler_config(denoiser: NetworkDenoiser) -> dict[str, Any]:
    """The content of scheduler_config.json, with β as numbers.

    Raises:
        ValueError: a schedule or prediction that no diffusers pipeline can sample.
    """
    schedule, parameterization = denoiser.schedule, denoiser.parameterization
    if isinstance(schedule, continuous.RectifiedFlow) and isinstance(parameterization, Flow):
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": STEPS, "shift": 1.0}
    if isinstance(schedule, continuous.EDM) and isinstance(parameterization, EDM):
        return _edm_config(schedule, parameterization)
    kinds = {ours: kind for kind, ours in PREDICTIONS.items()}
    if not isinstance(schedule, DiscreteSchedule) or schedule.T != STEPS:
        raise ValueError(
            "format=diffusers: diffusers' clock has steps 0 … 999; only schedules with T = 1000 fit it, or "
            "schedule=flow with parameterization=flow, or schedule=edm with parameterization=edm; choose "
            "format=safetensors"
        )
    if type(parameterization) not in kinds:
        name = type(parameterization).__name__
        raise ValueError(
            f"format=diffusers: on a chain diffusers has no prediction like {name}; eps, x0 and v can be exported; "
            "choose format=safetensors"
        )
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": STEPS,
        "trained_betas": schedule.betas.tolist(),
        "prediction_type": kinds[type(parameterization)],
        "variance_type": "learned_range" if denoiser.learns_variance else "fixed_small",
        "clip_sample": True,
        "timestep_spacing": "trailing",
    }


def _edm_config(schedule: continuous.EDM, parameterization: EDM) -> dict[str, Any]:
    if schedule.time_scale != 1:
        raise ValueError(
            f"format=diffusers: its EDM networks get ¼ ln σ as the time, this one {schedule.time_scale:g} times that; "
            "train with schedule.time_scale=1, or choose format=safetensors"
        )
    return {
        "_class_name": "EDMEulerScheduler",
        "sigma_min": schedule.sigma_min,
        "sigma_max": schedule.sigma_max,
        "sigma_data": parameterization.sigma_data,
        "prediction_type": "epsilon",
    }


def _read_chain(config: Settings) -> Process:
    """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε; also for schedulers such as Euler's, which step in x_t/√ᾱ_t."""
    prediction = PREDICTIONS[config.word("prediction_type", PREDICTIONS)]
    if config["variance_type"] == "learned":
        config.refuse("variance_type", "expected learned_range, a share between the two bounds, or a fixed variance")
    learns = config.word("variance_type", (*FIXED, "learned_range")) == "learned_range"
    zero_snr = {"zero_terminal_snr": config.flag("rescale_betas_zero_snr")}
    if zero_snr["zero_terminal_snr"] and prediction is Eps:
        config.refuse(
            "rescale_betas_zero_snr", "its last step has no signal, so prediction_type='epsilon' has no x_0 there"
        )
    if config["trained_betas"] is not None:
        schedule = Part(beta.custom, {"betas": config.numbers("trained_betas", 1e-9, 1, STEPS), **zero_snr})
    elif config.word("beta_schedule", (*BETAS, "squaredcos_cap_v2")) == "squaredcos_cap_v2":
        schedule = Part(beta.cosine, {"T": STEPS, **zero_snr})
    else:
        start, end = (config.number(key, 1e-9, beta.MAX_BETA) for key in ("beta_start", "beta_end"))
        config.need(start <= end, "beta_end", f"expected no less than beta_start={start:g}")
        ends = {"beta_1": start, "beta_T": end}
        schedule = Part(BETAS[config["beta_schedule"]], {"T": STEPS, **ends, **zero_snr})
    return Process(schedule, Part(prediction, {}), learns)


def _read_flow(config: Settings) -> Process:
    """x = (1 − σ) x_0 + σ ε. The network gets 1000 σ and predicts ε − x_0; a shift moves the times, not σ(t)."""
    config.only("prediction_type", "flow_prediction")
    return Process(Part(continuous.RectifiedFlow, {}), Part(Flow, {}))


def _read_edm(config: Settings) -> Process:
    """x = x_0 + σ ε. The network gets ¼ ln σ and predicts F, or −F with diffusers' v_prediction."""
    sigmas = {key: config.number(key, 1e-6, 1e6) for key in ("sigma_min", "sigma_max")}
    sign = {"epsilon": 1, "v_prediction": -1}[config.word("prediction_type", ("epsilon", "v_prediction"))]
    schedule = Part(continuous.EDM, {**sigmas, "time_scale": 1.0})
    return Process(schedule, Part(EDM, {"sigma_data": config.number("sigma_data", 1e-6, 1e6)}), sign=sign)
