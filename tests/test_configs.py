"""Every yaml composes, agrees with the signatures that it calls, and builds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf, open_dict

from lightning_diffusion.app import assembly, evaluation_inputs, sampling
from lightning_diffusion.app.cli import CONF
from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.configuration.arguments import Record, parse
from lightning_diffusion.configuration.calls import make
from lightning_diffusion.configuration.trusted_targets import Targets

GROUPS = [path.name for path in CONF.iterdir() if path.is_dir()]
OPTIONS = [path.relative_to(CONF).with_suffix("") for path in sorted(CONF.glob("*/*.yaml"))]
SAMPLE, EVALUATE = ("sample", sampling.Arguments), ("evaluate", evaluation_inputs.Arguments)
OTHER_PROGRAMS = {"edit": SAMPLE, "metrics": EVALUATE, "sweep/samplers": EVALUATE}  # that training has no use for
REQUIRED = {
    "image_folder": ["data.root=nowhere", "data.num_classes=null"],
    "image_folder_quick": ["data.root=nowhere", "data.num_classes=null"],
    "recipe/fashion_mnist": ["data.image_size=28"],
    "recipe/fashion_mnist_quick": ["data.image_size=28"],
    "recipe/image_folder": ["data.image_size=64"],
    "recipe/image_folder_quick": ["data.image_size=32"],
    "recipe/cifar10": ["data.image_size=32"],
    "data/paired_folder": ["data.root=nowhere", "data.mask_classes=3"],
    "data/npz": ["data.root=nowhere", "data.channels=2", "data.image_size=[16,24]"],
    "custom": ["schedule.betas=[0.1,0.2]"],
    "autoguidance": ["guidance.weak.ckpt_path=CHECKPOINT"],
    "unet_28": ["data.image_size=28"],
    "unet_28_narrow": ["data.image_size=28"],
    "unet_32_narrow": ["data.image_size=32"],
    "unet_64": ["data.image_size=64"],
    "unet_64_narrow": ["data.image_size=64"],
    "unet_cifar10": ["data.image_size=32"],
    "model/segmentation": ["data=scenes"],
    "recipe/scenes": ["data.image_size=32"],
    "recipe/mask_to_image": ["data=scenes"],
    "recipe/image_to_mask": ["data=scenes"],
    "recipe/colorize": ["data.image_size=32", "data.channels=3"],
    "colorize": ["data.root=nowhere", "data.num_classes=null"],
    "recipe/captions": ["data=scenes"],
    "condition/caption": ["data=scenes", "data.num_items=[2,2]"],
    "condition/attributes": ["data=scenes"],
    "condition/mask": ["data=scenes"],
    "condition/picture": ["data=scenes"],
    "metrics/module": ["metrics.network._target_=torch.nn.Flatten", "metrics.name=pixels", "trust=[torch]"],
    "guidance/classifier": ["guidance.classifier._target_=torch.nn.Identity", "trust=[torch]"],
}


def compose(*overrides, program="train"):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(program, overrides=list(overrides), return_hydra_config=True)
    with open_dict(config):
        hydra_config = config.pop("hydra")
        if program == "train":
            config.name, config.run_dir = hydra_config.runtime.choices.data, "nowhere"
    return config


def build(node):
    """Instantiates a checked node, or its partial."""
    return make(node, Targets(trust=["torch"]))


def required_for(option):
    return REQUIRED.get(option.as_posix(), REQUIRED.get(option.name, []))


def family_of(group):
    """The choice of the family that reads a group, if the default does not."""
    files = {
        path.stem: [path, *(CONF / "recipe" / path.stem).glob("*.yaml")] for path in (CONF / "model").glob("*.yaml")
    }
    readers = [name for name, paths in files.items() if any(f"  - /{group}: " in path.read_text() for path in paths)]
    return [] if not readers or "diffusion" in readers else [f"model={readers[0]}"]


BUILT = set[str]()  # the nodes that were built once in this process


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_option_composes_and_builds(option, finished):
    group, name = option.parts
    checkpoint = str(finished[0] / "checkpoints" / "last.ckpt")
    required = [override.replace("CHECKPOINT", checkpoint) for override in required_for(option)]
    if other := OTHER_PROGRAMS.get(group) or OTHER_PROGRAMS.get(option.as_posix()):
        program, keys = other
        arguments = parse(compose("ckpt_path=x", f"{group}={name}", *required, program=program), keys)
        assert not hasattr(arguments, group) or getattr(arguments, group).make() is not None
        return
    arguments = parse(compose(*family_of(group), f"{group}={name}", *required), assembly.Arguments, GROUPS)
    for key in {"data", "module", "sampler", "callbacks", "logger"} & set(arguments.nodes):
        if (as_text := f"{key}: {arguments.nodes[key].node}") not in BUILT:  # most options change one of them
            assert arguments.nodes[key].make() is not None
            BUILT.add(as_text)
    if (as_text := f"trainer: {arguments.trainer.node}") not in BUILT:
        arguments.trainer.make(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        BUILT.add(as_text)


EXPERIMENTS = [option.name for option in OPTIONS if option.parts[0] == "experiment"]
DIFFUSION = ["model=diffusion"]  # also where an experiment chooses another family
BACKBONES = ["adm", "dit", "uvit", "unet_lecture"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_takes_a_training_and_a_sampling_step(name):
    """With its own network, on noise of its own shape: sizes, classes, schedule and prediction fit together."""
    arguments = parse(compose(*DIFFUSION, f"experiment={name}", *REQUIRED.get(name, [])), assembly.Arguments, GROUPS)
    data, module, sampler, guidance = (arguments.nodes[key].make() for key in ("data", "module", "sampler", "guidance"))
    K = data.num_classes
    condition = by_label(None if K is None else torch.arange(2) % K)
    shape = module.model.shape
    x_0 = torch.rand(2, *shape) * 2 - 1
    loss = module.objective(module.model.denoiser, x_0, condition)
    loss.backward()
    assert torch.isfinite(loss)
    sampler.num_steps = 2
    x = sampler.sample(guidance(module.model.denoiser), range(2), shape, seed=0, condition=condition)
    assert torch.isfinite(x).all()


def test_programs_compose():
    for program in CONF.glob("*.yaml"):
        overrides = {"train": [], "report": ["runs=x"], "predict": ["ckpt_path=x", "images=x"]}.get(
            program.stem, ["ckpt_path=x"]
        )
        assert OmegaConf.to_container(compose(*overrides, program=program.stem), resolve=True)


def leaves(node, path=""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        elif key != "defaults":
            yield f"{path}{key}", value


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if option.parts[0] in ("experiment", "debug")], ids=str
)
def test_a_preset_s_own_values_are_those_of_the_run(option):
    """train.yaml overrides none of them."""
    group, name = option.parts
    config = compose(f"{group}={name}", *required_for(option))
    said = OmegaConf.to_container(OmegaConf.load((CONF / option).with_suffix(".yaml")), resolve=False)
    wanted = {key: value for key, value in leaves(said) if value != "???" and "${" not in str(value)}
    assert {key: OmegaConf.select(config, key) for key in wanted} == wanted


def test_every_option_is_one_short_file():
    for path in CONF.glob("*/**/*.yaml"):
        assert len(path.read_text().splitlines()) <= 40
    assert Path(CONF / "train.yaml").is_file()


@pytest.mark.parametrize(
    ("name", "backbone"),
    [  # each of either by default
        pytest.param(name, backbone, marks=[] if i % len(BACKBONES) == j else [pytest.mark.slow])
        for i, name in enumerate(EXPERIMENTS)
        for j, backbone in enumerate(BACKBONES)
    ],
)
def test_every_experiment_takes_every_backbone(name, backbone):
    """An experiment names its network as an option, so that another option leaves no key of the first behind."""
    parse(
        compose(*DIFFUSION, f"experiment={name}", f"backbone={backbone}", *REQUIRED.get(name, [])), assembly.Arguments
    )


@dataclass(frozen=True)
class Anything:
    x: Any
    trust: Any
    record: Record


def test_what_is_not_annotated_takes_any_value():
    fault = {"_target_": "tests.training.faults.Fault", "kind": "kill", "step": 3}
    config = {"x": fault, "trust": ["tests"]}
    assert parse(OmegaConf.create(config), Anything).record == config
