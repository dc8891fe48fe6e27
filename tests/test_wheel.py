"""The wheel that pip installs: its content, and its commands where no checkout is."""

import configparser
import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import numpy as np
import pytest
import yaml

from lightning_diffusion.system.version import version
from tests.command import REPOSITORY
from tests.runs import TINY

PACKAGE = "lightning_diffusion"
PROGRAMS = ("train", "sample", "evaluate", "export", "predict", "summary", "report")
SOURCES = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore", "src", "conf")


def hook(name, source, target):
    """Calls a build hook of the build backend in `source`, as pip does; returns the file that it writes."""
    code = f"from hatchling.build import {name}; print({name}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel): the wheel is built from the unpacked sdist, and the sdist from a copy of the checkout's files."""
    copy, dist = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.exists():
            shutil.copy(path, copy)
    sdist = hook("build_sdist", copy, dist)
    with tarfile.open(sdist) as archive:
        archive.extractall(copy / "unpacked", filter="data")
    (source,) = (copy / "unpacked").iterdir()
    return sdist, hook("build_wheel", source, dist)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The bin/ of a virtual environment that holds the wheel. Other libraries are this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", built[1]],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    site = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))  # a path; its own .pth files are not read
    return folder / "bin"


def command(installed, name, *words, cwd, status=0, **environment):
    """Runs an installed program; returns (stdout, stderr)."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [installed / name, *map(str, words)],
        cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def files(folder):
    """Names of the files below a folder of the checkout that the package holds."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".py", ".yaml", ".jinja")
    }


def test_the_wheel_holds_the_package_and_conf_and_nothing_else(built):
    """It is built from the sdist, so the sdist holds what the wheel needs."""
    names = zipfile.ZipFile(built[1]).namelist()
    package = {name for name in names if name.split("/")[0] == PACKAGE}
    code, conf = files(REPOSITORY / "src" / PACKAGE), files(REPOSITORY / "conf")
    assert package == {f"{PACKAGE}/{name}" for name in code} | {f"{PACKAGE}/conf/{name}" for name in conf}
    about = {name.partition(".dist-info/")[2] for name in names if name not in package}
    assert about - {"licenses/LICENSE"} == {"METADATA", "RECORD", "WHEEL", "entry_points.txt"}


def test_the_metadata_names_the_project_and_its_commands(built):
    with zipfile.ZipFile(built[1]) as wheel:
        metadata, points = (
            wheel.read(next(name for name in wheel.namelist() if name.endswith(f"dist-info/{end}")))
            for end in ("METADATA", "entry_points.txt")
        )
    parsed = email.message_from_bytes(metadata)
    assert f"{parsed['Name']} {parsed['Version']}" == version()
    assert parsed.get_payload(decode=True).decode().strip() == (REPOSITORY / "README.md").read_text().strip()
    commands = configparser.ConfigParser()
    commands.read_string(points.decode())
    assert dict(commands["console_scripts"]) == {f"diffusion-{name}": f"{PACKAGE}.app.{name}:main" for name in PROGRAMS}


def test_an_installed_command_answers_without_a_checkout(installed, tmp_path):
    code = f"import {PACKAGE}, {PACKAGE}.configuration.trusted_targets as t; print({PACKAGE}.__file__, t.CONF)"
    out, _ = command(installed, "python", "-c", code, cwd=tmp_path)
    assert all(path.startswith(str(installed.parent)) for path in out.split())
    out, _ = command(installed, "diffusion-train", "--version", cwd=tmp_path)
    assert out == f"{version()}\n"
    out, _ = command(installed, "diffusion-sample", "--help", cwd=tmp_path)
    assert "unipc" in out
    assert "diffusion-sample ckpt_path=" in out
    assert "src.sample" not in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_installed_commands_from_another_folder(installed, tmp_path):
    """Training, resuming, sampling, measuring, exporting, a summary, a sweep whose jobs are processes, and a report."""

    def run(name, *words, **options):
        return command(installed, f"diffusion-{name}", *words, cwd=tmp_path, **options)

    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "not this project's"]):
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", installed.parent, *author, *words], check=True)
    words = [*TINY, "trainer.max_steps=4", "trainer.val_check_interval=2"]
    out, _ = run("train", *words, "hydra.run.dir=run")
    assert "4 steps" in out
    assert "more samples: diffusion-sample ckpt_path=" in out
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert starts[0]["command"].startswith("diffusion-train backbone.channels=8")
    assert starts[0]["git"] is None
    run("train", "resume=run", "trainer.max_steps=6")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 6

    model = f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt"
    run("sample", model, "num_samples=4", "sampler.num_steps=2", "output_dir=samples")
    assert np.load(tmp_path / "samples" / "samples.npz")["images"].shape == (4, 8, 8, 1)
    run("evaluate", model, "num_samples=10", "sampler.num_steps=1", "metrics.steps=10")
    run("export", model, "format=safetensors", "output_dir=exported")
    assert (tmp_path / "exported" / "denoiser.safetensors").is_file()
    assert "parameters" in run("summary", "data=digits")[0]

    out, _ = run("train", *words, "-m", "seed=0,1", "hydra.sweep.dir=sweep")
    assert "2 of 2 jobs done" in out
    seeds = [yaml.safe_load((tmp_path / "sweep" / name / "config.yaml").read_text())["seed"] for name in "01"]
    assert seeds == [0, 1]
    (job,) = json.loads((tmp_path / "sweep" / "0" / "environment.json").read_text())
    assert job["command"].startswith(f"python -m {PACKAGE}.app.train ")
    run("report", "runs=sweep")
    assert "<html" in (tmp_path / "sweep" / "report" / "report.html").read_text()
