"""The notebooks: nbmake runs lecture.ipynb in a kernel; families.ipynb runs here, in this process and in few steps."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

FAMILIES = Path(__file__).parent.parent / "notebooks" / "families.ipynb"
SHORTER = {
    "BUDGET = 1.0 ": "BUDGET = 0.01 ",
    "numbers = range(297)": "numbers = range(20)",
    "(1, 2, 5, 10, 20, 50)": "(1, 2)",
}


def cells(path):
    return json.loads(path.read_text())["cells"]


def programs(path):
    """The code of each cell, and that of the folded answers."""
    for cell in cells(path):
        text = "".join(cell["source"])
        yield from [text] if cell["cell_type"] == "code" else re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_notebook_of_the_families_and_its_answers_run_in_a_few_steps(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))  # it caches a classifier there
    scope, found = {}, list(programs(FAMILIES))
    for long, short in SHORTER.items():
        assert sum(text.count(long) for text in found) == 1, long
        found = [text.replace(long, short) for text in found]
    with torch.random.fork_rng(devices=[]):
        for text in found:
            exec(text, scope)
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


@pytest.mark.parametrize("path", sorted(FAMILIES.parent.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_ran_from_top_to_bottom(path):
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    for cell in code:
        last = "".join(cell["source"]).splitlines()[-1]
        shows = re.match(r"(show|samples|Picture|Markdown)\(", last)
        assert bool(shows) == any("data" in output for output in cell["outputs"]), last
