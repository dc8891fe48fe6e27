"""Experiments and families of models: each pair composes, fits together, and has the values of its recipe."""

from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import OmegaConf, open_dict
from torch import nn

from lightning_diffusion.app.assembly import Arguments
from lightning_diffusion.app.sweep import Sweep
from lightning_diffusion.app.train import main as train
from lightning_diffusion.configuration.arguments import parse
from lightning_diffusion.configuration.defaults_lists import groups_in, overrides_in
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.configuration.trusted_targets import CONF, DRAWING, family_groups
from lightning_diffusion.models.contracts import Generator, Predictor
from tests.command import in_process
from tests.models.test_programs import class_of

TOY = Path(__file__).parent / "toy_family"
FAMILIES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
RECIPES = [path.relative_to(CONF / "recipe").with_suffix("") for path in sorted((CONF / "recipe").rglob("*.yaml"))]
GROUPS = [path.name for path in CONF.iterdir() if path.is_dir()]
PICTURES = ["data.root=nowhere", "data.num_classes=null"]  # for experiments on a folder of images


def compose(*words, folder=None, program="train"):
    added = [] if folder is None else [f"hydra.searchpath=['file://{folder}']"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(program, [*added, *words], return_hydra_config=True)
    with open_dict(config):
        settings = config.pop("hydra")
        config.name, config.run_dir = settings.runtime.choices.data, "nowhere"
    return config, settings


def required(experiment):
    return PICTURES if experiment.startswith(("image_folder", "colorize")) else []


def leaves(node, path=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


@pytest.mark.parametrize(
    ("experiment", "family"),
    [  # two families of each experiment by default
        pytest.param(experiment, family, marks=[] if (i - j) % len(FAMILIES) < 2 else [pytest.mark.slow])
        for i, experiment in enumerate(EXPERIMENTS)
        for j, family in enumerate(FAMILIES)
    ],
)
def test_every_experiment_trains_every_family(experiment, family, monkeypatch):
    """The run has the values of both recipes, and its network and objective fit the images and each other."""
    config, settings = compose(f"model={family}", f"experiment={experiment}", *required(experiment))
    name = settings.runtime.choices.recipe
    for path in (CONF / "recipe" / f"{name}.yaml", CONF / "recipe" / family / f"{name}.yaml"):
        if path.is_file():
            check_values(config, settings.runtime.choices, path)
    arguments = parse(config, Arguments, GROUPS)
    if issubclass(class_of(family), Predictor) and "mask_classes" not in arguments.data.node:
        with pytest.raises(ConfigError, match="these data have no masks; choose experiment="):
            arguments.model.make()
        return
    with monkeypatch.context() as patch:
        for kind in (nn.Linear, nn.modules.conv._ConvNd):  # most of the time is spent on random numbers
            patch.setattr(kind, "reset_parameters", lambda self: None)
        model, objective = arguments.model.make(), arguments.objective.make()
    model.check()
    objective.check(model)
    data = arguments.data.node
    channels = getattr(model.condition_source, "mask_classes", data["channels"])  # if masks are drawn
    assert model.shape == (channels, data["image_size"], data["image_size"])
    assert sum(parameter.numel() for parameter in model.network.parameters()) > 1000


def check_values(config, chosen, path):
    """The configuration has every choice and value of a recipe's file; conf/train.yaml and conf/model give others."""
    assert dict(groups_in(path)).items() <= chosen.items()
    own = OmegaConf.to_container(OmegaConf.load(path))
    values = {key: value for key, value in leaves(own) if key != "defaults"}
    assert {key: OmegaConf.select(config, key) for key in values} == values


def test_each_recipe_is_used_by_an_experiment():
    used = [overrides_in(CONF / "experiment" / f"{name}.yaml").get("recipe") for name in EXPERIMENTS]
    assert {recipe.name for recipe in RECIPES} == {"default", *filter(None, used)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_line_beats_the_recipe(family):
    words = ["experiment=fashion_mnist", f"model={family}", "trainer.max_steps=7", "module.ema_decay=0.5"]
    config, _ = compose(*words)
    assert (config.trainer.max_steps, config.module.ema_decay) == (7, 0.5)


def test_a_part_on_the_command_line_replaces_only_that_of_the_recipe():
    _, settings = compose("experiment=fashion_mnist", "schedule=linear", "backbone=dit")
    chosen = settings.runtime.choices
    assert (chosen.schedule, chosen.backbone, chosen.parameterization, chosen.time_grid) == (
        "linear", "dit", "flow", "karras_brief",
    )  # fmt: skip


def test_the_groups_of_the_families_are_found_behind_their_recipes():
    diffusion = {"schedule", "parameterization", "time_sampler", "weighting", "distance", "backbone", "condition"}
    assert family_groups() == {"model", "game"} | diffusion
    assert not family_groups() & set(DRAWING)


MINE = {
    "experiment/mine": {
        "defaults": ["fashion_mnist", {"override /schedule": "linear"}, {"override /backbone": "dit"}],
        "trainer": {"max_steps": 11},
    },
    "experiment/plain": {"defaults": [{"override /data": "shapes"}]},
    "experiment/own": {"defaults": [{"override /data": "shapes"}, {"override /recipe": "own"}]},
    "recipe/own": {"data": {"batch_size": 3}},
    "recipe/bare": {"data": {"batch_size": 4}},
    "recipe/diffusion/own": {"defaults": ["default", "_self_"], "trainer": {"max_steps": 12}},
    "recipe/gaussian/digits": {"trainer": {"max_steps": 13}},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder for --config-dir: the families of tests/toy_family, experiments and recipes."""
    folder = tmp_path_factory.mktemp("project")
    files = {f"model/{path.name}": path.read_text() for path in (TOY / "conf" / "model").glob("*.yaml")}
    files |= {f"{name}.yaml": f"# @package _global_\n{yaml.safe_dump(node)}" for name, node in MINE.items()}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("words", "steps", "schedule", "backbone"),
    [
        (["experiment=mine"], 11, "linear", "dit"),
        (["experiment=mine", "schedule=vp"], 11, "vp", "dit"),
        (["experiment=plain"], 1000, "cosine", "unet"),
        (["experiment=own"], 12, "cosine", "unet"),
        (["experiment=own", "model=gan"], 1000, None, None),
        (["model=gaussian"], 13, None, None),
        (["model=gaussian", "experiment=fashion_mnist"], 1000, None, None),
        (["model=masks"], 1000, None, None),
    ],
    ids=str,
)
def test_a_users_project_composes(project, words, steps, schedule, backbone):
    config, settings = compose(*words, folder=project)
    chosen = settings.runtime.choices
    assert (config.trainer.max_steps, chosen.get("schedule"), chosen.get("backbone")) == (steps, schedule, backbone)
    if chosen.recipe == "own":
        assert config.data.batch_size == 3


def test_a_recipe_that_diffusion_models_lack_is_refused_in_a_line(project, tmp_path):
    status, out, err = in_process(train, f"--config-dir={project}", "recipe=bare", cwd=tmp_path)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("error: recipe/diffusion=bare: no such option")


def test_help_of_recipes_shows_each_with_those_of_the_families(tmp_path):
    _, out, _ = in_process(train, "--help", "recipe", cwd=tmp_path)
    headings = [line for line in out.splitlines() if line.startswith("recipe")]
    assert {heading.removeprefix("recipe").lstrip("/").replace("=", "/").lstrip("/") for heading in headings} == {
        str(recipe) for recipe in RECIPES
    }
    assert [heading for heading in headings if heading.endswith("=default")] == [
        "recipe=default",
        "recipe/diffusion=default",
    ]


def test_help_marks_the_parts_of_the_default_experiment(tmp_path):
    _, out, _ = in_process(train, "--help", cwd=tmp_path)
    assert {"digits*", "muon*", "scores*", "cosine*", "unet*", "ddim*"} <= set(out.replace(",", " ").split())
    assert "adamw*" not in out


def test_the_sweep_over_families_names_all_and_compares_samples():
    _, settings = compose("sweep=families")
    params = OmegaConf.to_container(settings.sweeper.params, resolve=False)
    assert sorted(params["model"].split(",")) == [name for name in FAMILIES if issubclass(class_of(name), Generator)]
    preset = yaml.safe_load((CONF / "sweep" / "families.yaml").read_text())
    assert (preset["metric"], params["metric"], params["callbacks"]) == ("fd_classifier", "${metric}", "scores")


def test_a_sweep_shows_only_the_keys_that_differ(tmp_path, monkeypatch, capsys):
    """A preset also holds keys with one value for all jobs."""
    monkeypatch.setattr("sys.argv", ["src.train", "sweep=families", "seed=0,1"])
    monkeypatch.setattr(Sweep, "folder", None)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["sweep=families", f"hydra.sweep.dir='{tmp_path}'"]
        Sweep().on_multirun_start(hydra.compose("train", words, return_hydra_config=True))
    record = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert (record["keys"], record["metric"]) == (["seed", "model"], "fd_classifier")
