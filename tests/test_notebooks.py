"""The notebooks, in this process and in few steps. `pytest -m slow notebooks` runs them whole, in a kernel."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SHORTER = {
    "families": {
        "BUDGET = 1.0 ": "BUDGET = 0.01 ",
        "numbers = range(297)": "numbers = range(20)",
        "(1, 2, 5, 10, 20, 50)": "(1, 2)",
    },
    "lecture": {"STEPS = 250": "STEPS = 5", "num_steps=200": "num_steps=50", "loss < 0.35": "0.35 < loss < 1.2"},
}


def cells(path):
    return json.loads(path.read_text())["cells"]


def programs(path):
    """The code of each cell, and that of the folded answers."""
    for cell in cells(path):
        text = "".join(cell["source"])
        yield from [text] if cell["cell_type"] == "code" else re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(name):
    """The variables at the end of a notebook that ran in a few steps."""
    scope, found = {}, list(programs(NOTEBOOKS / f"{name}.ipynb"))
    for long, short in SHORTER[name].items():
        assert sum(text.count(long) for text in found) == 1, long
        found = [text.replace(long, short) for text in found]
    with torch.random.fork_rng(devices=[]):
        for text in found:
            exec(text, scope)
    return scope


def test_the_lecture_runs_in_a_few_steps(capsys):
    scope = run("lecture")
    assert "β_1 = 1.0e-04, β_T = 2.0e-02, signal left at T: 4.0e-05" in capsys.readouterr().out
    assert scope["samples"].shape == (40, 1, 8, 8)
    assert len(scope["states"]) == 51  # noise, and the state after each of 50 steps


def test_the_notebook_of_the_families_and_its_answers_run_in_a_few_steps(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))  # it caches a classifier there
    scope = run("families")
    out = capsys.readouterr().out
    assert "that of pixel 36" in out  # the distribution of a pixel depends only on earlier pixels
    assert "2 steps: " in out  # the last answer
    head, _, floor, *rows = [line.strip("|").split("|") for line in scope["lines"]]
    assert {len(row) for row in (head, floor, *rows)} == {8}
    evaluations = {row[0].strip(): float(row[5]) for row in rows}
    assert evaluations == {"autoregressive": 64, "VAE": 1, "GAN": 1, "diffusion": 10}
    bits = {name: trained.bits for name, trained in scope["FAMILIES"].items()}
    assert bits.pop("GAN") is None
    assert all(0 < value < math.inf for value in bits.values())


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_ran_from_top_to_bottom(path):
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    for cell in code:
        last = "".join(cell["source"]).splitlines()[-1]
        shows = re.match(r"(show|samples|Picture|Markdown)\(", last)
        assert bool(shows) == any("data" in output for output in cell["outputs"]), last
