"""Files that say the same thing in two places: linters, versions, licence."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [*PROJECT["dependencies"], *(d for extra in PROJECT["optional-dependencies"].values() for d in extra)]


def test_pre_commit_runs_the_linters_of_ci():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    lines = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert [hook["entry"] for hook in hooks] == [line for line in lines if line.startswith(("ruff", "mypy"))]


def test_the_citation_has_the_version_and_the_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {key: citation[key] for key in ("version", "license", "abstract")} == {
        "version": PROJECT["version"],
        "license": PROJECT["license"],
        "abstract": PROJECT["description"],
    }
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_ci_runs_every_python_that_the_package_names_and_the_oldest_dependencies():
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert matrix["python-version"] == named
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert {"python-version": oldest, "dependencies": "oldest"} in matrix["include"]


@pytest.mark.parametrize("dependency", DEPENDENCIES)
def test_every_dependency_has_a_lower_bound(dependency):
    """The oldest versions are what CI's second installation takes; without a bound it would take the first release."""
    requirement = Requirement(dependency)
    bounded = any(s.operator in (">=", "==", "~=") for s in requirement.specifier)
    assert bounded or requirement.name == PROJECT["name"], f"{dependency}: give it a lower bound"
