"""Names and texts of runs that would style a terminal, control it, take over a page or break a picture."""

import csv
import json
import os
import re

import pytest
import yaml

from src.report import main as report
from tests.command import in_process
from tests.reporting.damage import write_whole

TEXTS = {
    "closing markup": "[/b]",
    "markup": "[red]x[/red]",
    "link": "[link=https://e.org]x[/link]",
    "emoji": ":smile:",
    "escape": "\x1b[31m\x1b]0;taken\x07",
    "c1": "\x9b31m",
    "newline": "a\nb\r\u2028c",
    "right to left": "a\u202egnp",
    "formula": "$\\frac$",
    "half a formula": "$",
    "html": "<script>document.title = 1</script>",
    "template": "{{ 7 * 7 }}{% raw %}",
    "surrogate": "\udcff",
    "long": "x" * 5000,
    "japanese": "日本語",
}
UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")


def check(folder):
    """The program ends well, and what it prints and writes is lines of visible text."""
    status, out, err = in_process(report, f"runs={folder}", "metric=fd_x", cwd=folder.parent)
    assert (status, err) == (0, "")
    page = (folder / "report" / "report.html").read_text()
    table = (folder / "report" / "report.csv").read_bytes().decode()
    assert not UNSAFE.search(out)
    assert not UNSAFE.search(page)
    assert not UNSAFE.search(table.replace("\r\n", "\n"))
    assert "<script>document" not in page
    return out, page, list(csv.DictReader(table.splitlines()))


def write_with(text, first, second, third):
    """Three runs with a text wherever one can be, and their scores."""
    for i, run in enumerate((first, second, third)):
        write_whole(run, 7.25 + i, evaluated=i == 0)
    said = {"overrides": [f"key={text}", "seed=2", f"{text}=1"]}
    (second / "overrides.yaml").write_text(yaml.safe_dump(said))
    (third / "failure.txt").write_bytes(f"it failed: {text}\n".encode(errors="surrogateescape"))
    scores = {"fd_x": {"value": 8.5}, f"fd_{text}": {"value": 9.5}}
    (third / "metrics.json").write_text(json.dumps({"val/loss": 0.5, "scores": scores}))
    (second / "config.yaml").write_text(yaml.safe_dump({"metric": text, "key": text}))
    walks = [{"sampler": text, "nfe": nfe, "fd_x": 9 / nfe} for nfe in (5, 10)]
    told = json.dumps({"walks": walks, "how": {"num_samples": 100}})
    (first / "evaluation" / "metrics.json").write_text(told)
    start = json.loads((second / "environment.json").read_text())
    start[0] |= {"command": text, "host": text, "libraries": {text: text}, "devices": [text], "git": {"commit": text}}
    (second / "environment.json").write_text(json.dumps(start))
    with (first / "metrics.csv").open("w", newline="", errors="backslashreplace") as file:
        csv.writer(file).writerows([["step", f"train/loss{text}"], [1, 2]])
    return dict(zip((first.name, second.name, third.name), ("7.25", "8.25", "8.5"), strict=True))


SHOWN = [name for name, text in TEXTS.items() if len(text) < 20 and not UNSAFE.search(text)]  # as they are
OTHERS = [name for name in TEXTS if name not in SHOWN]


@pytest.mark.parametrize("names", [*([name] for name in SHOWN), *(OTHERS[i::3] for i in range(3))], ids=", ".join)
def test_in_words_failures_scores_and_the_environment(tmp_path, names):
    expected = {}
    for i, name in enumerate(names):
        expected |= write_with(TEXTS[name], *(tmp_path / "runs" / str(3 * i + j) for j in range(3)))
    out, page, rows = check(tmp_path / "runs")
    assert {row["run"].rsplit("/", 1)[1]: row["fd_x"] for row in rows} == expected
    assert "7.25" in page
    assert all(TEXTS[name] in out for name in names if name in SHOWN)


def test_in_the_names_of_folders(tmp_path):
    above = tmp_path / "all[b]\x1b[31m\u202e"
    names = [text for text in TEXTS.values() if len(text) < 255 and "/" not in text]
    for name in names:
        write_whole(above / name, 7.25)
        write_whole(above / f"b{name}", 1.0)
        (above / f"b{name}" / "metrics.csv").write_text("")
    status, out, err = in_process(report, "runs=.", cwd=above)
    assert (status, err) == (0, "")
    assert out.count("damaged: ") == len(names)
    for text in (out, (above / "report" / "report.html").read_text()):
        assert not UNSAFE.search(text)


def test_a_name_that_is_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_whole(tmp_path / "runs" / name, 1.0)
    write_whole(tmp_path / "runs" / "b", 2.0)
    (tmp_path / "runs" / name / "metrics.csv").write_text("")
    out, page, rows = check(tmp_path / "runs")
    assert r"caf\udce9" in out
    assert r"<td>caf\udce9</td>" in page
    assert [row["run"].endswith(r"/caf\udce9") for row in rows] == [True, False]


def test_folders_whose_names_are_odd_numbers(tmp_path):
    for name in ("²", "٣", "10", "9", "x"):
        write_whole(tmp_path / "runs" / name, 1.0)
    assert len(check(tmp_path / "runs")[2]) == 5
