"""A report of runs whose files are damaged: each is named with the reason, and the others are reported as ever."""

import csv
import json
import re

import pytest

from lightning_diffusion.runs.run import Run, find
from src.report import main as report
from tests.command import in_process
from tests.data.hostile import little_time
from tests.reporting.damage import OTHERS, damages, result, write_whole

pytestmark = pytest.mark.usefixtures("unarranged")


@pytest.fixture(autouse=True)
def no_hang():
    with little_time():
        yield


def reported(folder):
    status, out, err = in_process(report, f"runs={folder}", "metric=fd_x", cwd=folder.parent)
    assert (status, err) == (0, "")
    page = (folder / "report" / "report.html").read_text()
    rows = {row["run"].rsplit("/", 1)[1]: row for row in csv.DictReader((folder / "report" / "report.csv").open())}
    return out, page, rows


@pytest.mark.parametrize("name", OTHERS)
def test_every_damage_to_a_file_is_named_and_harms_no_other_run(tmp_path, name):
    folder = tmp_path / "runs"
    write_whole(folder / "0", 7.25)
    for i, damage in enumerate(damages(name), 1):
        write_whole(folder / str(i), 3.0, evaluated=name.startswith("evaluation"))
        damage(folder / str(i) / name)
    out, page, rows = reported(folder)
    assert len(rows) == len(damages(name)) + 1
    assert (rows["0"]["state"], rows["0"]["fd_x"], rows["0"]["failure"]) == ("done", "7.25", "")
    assert "7.25" in page
    for i in range(1, len(rows)):
        (told,) = [line for line in out.splitlines() if line.startswith(f"damaged: runs/{i}/{name}: ")]
        reason = told.split(": ", 2)[2]
        assert reason
        assert f"<td>{i}/{name}</td>" in page
        if name != "evaluation/metrics.json":
            assert rows[str(i)]["state"] == "damaged"
            assert f"{name}: {reason}" in rows[str(i)]["failure"]
            assert find(folder)[i].state == "damaged"
        if name not in ("metrics.json", "evaluation/metrics.json"):
            assert rows[str(i)]["fd_x"] == "3.0"


def test_there_are_enough_of_them():
    assert sum(len(damages(name)) for name in OTHERS) >= 68


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in ("failure.txt", "evaluation/metrics.json")])
def test_cut_at_any_byte_it_is_damaged_or_a_shorter_whole(tmp_path, name):
    write_whole(tmp_path / "0", 1.0)
    path, run = tmp_path / "0" / name, Run(tmp_path / "0")
    whole = path.read_bytes()
    words, curves, starts = run.words, run.curves, run.starts
    for end in range(len(whole) - 2):
        path.write_bytes(whole[:end])
        run = Run(tmp_path / "0")
        cut_between_lines = whole[:end].endswith(b"\n") and name.endswith((".yaml", ".csv"))
        assert name in run.damage or cut_between_lines, end
        assert words[: len(run.words)] == run.words
        assert starts[: len(run.starts)] == run.starts
        assert all(values == curves[key][1][: len(values)] for key, (_, values) in run.curves.items())
        assert (name == "metrics.json") == (not run.is_done)


def test_of_a_table_the_rows_before_the_damage_are_used(tmp_path):
    write_whole(tmp_path / "0", 1.0)
    (tmp_path / "0" / "metrics.csv").write_text("step,train/loss\n1,0.5\n2,0.25\n3,x\n4,0.1\n")
    run = Run(tmp_path / "0")
    assert run.curves == {"train/loss": ([1, 2], [0.5, 0.25])}
    assert run.damage == {"metrics.csv": "line 4: train/loss is not a number"}


def test_a_number_that_was_cut_is_not_taken_for_a_smaller_one(tmp_path):
    write_whole(tmp_path / "0", 1.0)
    (tmp_path / "0" / "metrics.csv").write_text("step,train/loss\n1,0.25\n2,0.1")  # of 0.125
    assert Run(tmp_path / "0").curves == {"train/loss": ([1], [0.25])}
    assert Run(tmp_path / "0").damage == {"metrics.csv": "cut off in its last line"}


def test_what_was_not_finite_is_drawn_as_a_gap_and_is_no_damage(tmp_path):
    write_whole(tmp_path / "0", 1.0)
    (tmp_path / "0" / "metrics.csv").write_text("step,train/loss\n1,0.5\n2,nan\n3,-inf\n4,1e300\n")
    values = Run(tmp_path / "0").curves["train/loss"][1]
    assert [str(value) for value in values] == ["0.5", "nan", "nan", "nan"]
    assert Run(tmp_path / "0").damage == {}


def test_with_its_words_damaged_a_job_is_known_by_those_of_the_sweep(tmp_path):
    write_whole(tmp_path / "1", 1.0)
    (tmp_path / "1" / "overrides.yaml").write_bytes(b"")
    assert Run(tmp_path / "1").words == ["seed=1"]
    (tmp_path / "1" / "job.yaml").unlink()
    assert Run(tmp_path / "1").words == []


def test_where_all_are_damaged_the_page_is_made(tmp_path):
    for name in ("a", "b"):
        write_whole(tmp_path / "runs" / name, 1.0, evaluated=True)
        for path in (tmp_path / "runs" / name).rglob("*.*"):
            path.write_bytes(b"\0\xff")
    status, out, err = in_process(report, f"runs={tmp_path}/runs", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "2 runs, 2 damaged" in (tmp_path / "runs" / "report" / "report.html").read_text()
    assert len(re.findall(r"^damaged: runs/[ab]/", out, re.MULTILINE)) == 2 * 10


def test_a_picture_that_is_none_is_never_embedded(tmp_path):
    for i, content in enumerate((b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\n<script>", b"GIF89a<script>")):
        write_whole(tmp_path / "runs" / str(i), 1.0)
        for name in ("final.png", "predictions.png", "<img onerror=alert(2)>.png", "trajectory.gif"):
            (tmp_path / "runs" / str(i) / "samples" / name).write_bytes(content)
    out, page, _ = reported(tmp_path / "runs")
    assert "<h2>Samples</h2>" not in page
    assert "<h2>Predictions</h2>" not in page
    assert "<img onerror" not in page
    assert "samples/predictions.png: not a readable PNG" in out
    assert "image/gif" not in page


def test_a_run_with_many_damaged_files_names_them_all_in_its_row(tmp_path):
    write_whole(tmp_path / "runs" / "0", 1.0)
    for name in ("metrics.csv", "environment.json"):
        (tmp_path / "runs" / "0" / name).write_text("")
    _, _, rows = reported(tmp_path / "runs")
    assert rows["0"]["failure"] == "metrics.csv: empty; environment.json: empty"


def test_what_a_run_records_of_its_model_and_its_cost_is_checked(tmp_path):
    write_whole(tmp_path / "0", 1.0)
    how = {"nfe": 3, "seconds_per_1000_samples": 0.25, "seed": 0}
    (tmp_path / "0" / "metrics.json").write_text(result(how=how, likelihood="exact", parameters=7))
    run = Run(tmp_path / "0")
    assert (run.cost, run.likelihood, run.metric("parameters")) == (
        {"nfe": 3, "seconds_per_1000_samples": 0.25},
        "exact",
        7,
    )
    (tmp_path / "0" / "metrics.json").write_text(result())
    assert (Run(tmp_path / "0").cost, Run(tmp_path / "0").likelihood, Run(tmp_path / "0").damage) == ({}, None, {})
    for changed, reason in (
        ({"how": {"seconds_per_1000_samples": 10**400}}, "seconds_per_1000_samples is not a finite number"),
        ({"parameters": "many"}, "parameters is not a number"),
        ({"likelihood": "likely"}, "likelihood is not exact or bound"),
    ):
        (tmp_path / "0" / "metrics.json").write_text(result(**changed))
        assert Run(tmp_path / "0").damage == {"metrics.json": reason}


def test_numbers_at_the_edges_are_drawn(tmp_path):
    extremes = ("3e38", "-3e38", "1e-300", "0", "5e-324")
    for i, value in enumerate(extremes):
        write_whole(tmp_path / "runs" / str(i), float(value))
        run = tmp_path / "runs" / str(i)
        (run / "metrics.csv").write_text(f"step,train/loss,fd_x\n0,1,1\n{value},{value},{value}\n")
        (run / "noise_levels.csv").write_text(f"time,logsnr,images,loss,error\n0,{value},1,1,{value}\n0,0,1,1,1\n")
        numbers = {"val/loss": float(value), "images_per_second": float(value)}
        (run / "metrics.json").write_text(json.dumps(numbers | {"scores": {"fd_x": {"value": float(value)}}}))
    _, _, rows = reported(tmp_path / "runs")
    assert {row["state"] for row in rows.values()} == {"done"}
