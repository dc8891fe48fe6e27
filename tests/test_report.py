"""The report: read from folders written by hand, whose numbers are known, and opened in a real browser."""

import csv
import json
import re
import shlex
import shutil

import pytest
import yaml

from lightning_diffusion.metrics.scores import SCORES as DECLARED
from lightning_diffusion.runs.comparable import higher_is_better
from lightning_diffusion.runs.reporting import figures
from lightning_diffusion.runs.reporting.page import to_paste
from lightning_diffusion.runs.reporting.table import compare, in_order
from lightning_diffusion.runs.run import Run, find
from src.report import main as report
from tests.command import in_process

SCORES = {("linear", "10"): 3.0, ("linear", "100"): 2.0, ("cosine", "10"): 2.5, ("cosine", "100"): 1.0}
FAILURE = "<script>document.title = 'taken over'</script>"


def write_run(folder, words, score=None, val_loss=0.5, **options):
    """A finished run, but for pictures, where a score is given; else one that was cut."""
    folder.mkdir(parents=True)
    config = {"metric": "fd_x", "seed": 0, "schedule": {"T": 10}} | options
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "overrides.yaml").write_text(yaml.safe_dump({"name": "digits", "overrides": words}))
    (folder / "metrics.csv").write_text("step,train/loss,val/loss,fd_x\n4,0.9,,\n9,0.8,0.7,\n10,,0.6,5.0\n")
    (folder / "noise_levels.csv").write_text(
        "time,logsnr,images,loss,error\n0.25,4.0,8,0.5,0.01\n0.75,-4.0,8,0.3,0.3\n"
    )
    start = {
        "command": f"python -m src.train {' '.join(words)}", "python": "3.11", "libraries": {"torch": "2.6"},
        "git": {"commit": "abc", "changed": True}, "system": "Linux", "processor": "P", "cores": 2,
        "devices": ["cpu"], "host": "h",
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps([start]))
    if score is not None:
        scores = {"fd_x": {"value": score, "floor": {"value": 0.25}}}
        metrics = {"val/loss": val_loss, "steps": 10, "images_per_second": 100.0 + score, "seconds": 5.0}
        (folder / "metrics.json").write_text(json.dumps(metrics | {"scores": scores}))


@pytest.fixture
def sweep(tmp_path, finished):
    """Four jobs, with pictures of a real run, one that failed and one that was cut."""
    folder = tmp_path / "sweep"
    for i, ((schedule, T), score) in enumerate(SCORES.items()):
        write_run(folder / str(i), [f"schedule={schedule}", f"schedule.T={T}", "logger=csv"], score)
        shutil.copytree(finished[0] / "samples", folder / str(i) / "samples")
    write_run(folder / "4", ["schedule=sigmoid", "schedule.T=10", "logger=csv"])
    (folder / "10").mkdir()
    (folder / "10" / "job.yaml").write_text(
        yaml.safe_dump({"overrides": ["schedule=linear", "schedule.T=-5", "logger=csv"]})
    )
    (folder / "10" / "failure.txt").write_text(FAILURE + "\n")
    (folder / "4" / "wandb" / "files").mkdir(parents=True)
    (folder / "4" / "wandb" / "files" / "config.yaml").write_text("of no run")
    return folder


def test_runs_are_found_in_their_order_and_say_how_they_are(sweep):
    runs = find(sweep)
    assert [run.folder.name for run in runs] == ["0", "1", "2", "3", "4", "10"]
    assert [run.state for run in runs] == ["done"] * 4 + ["not finished", "failed"]
    assert find(sweep / "2") == [Run(sweep / "2")]
    assert runs[0].curves["val/loss"] == ([9.0, 10.0], [0.7, 0.6])
    assert runs[0].floors == {"fd_x": 0.25}


def test_the_best_is_first_whichever_way_the_metric_goes(sweep):
    table = compare(find(sweep), "fd_x")
    assert table.keys == ["schedule", "schedule.T"]
    assert [run.folder.name for run in table.runs] == ["3", "1", "2", "0", "4", "10"]
    assert table.label(table.runs[0]) == "schedule=cosine schedule.T=100"
    faster = compare(find(sweep), "images_per_second")
    assert [run.folder.name for run in faster.done] == ["0", "2", "1", "3"]
    assert all(map(higher_is_better, ("precision_x", "recall_x", "inception_score", "is_classifier", "vendi_x")))
    assert not any(map(higher_is_better, ("fid", "fd_is", "val/loss", "kd_classifier")))


@pytest.mark.parametrize(
    ("metric", "recorded", "higher"),
    [
        ("new_x", "max", True),
        ("new_x", "min", False),
        ("fd_x", "max", True),
        ("vendi_x", None, True),
        ("fd_x", 1, False),
    ],
)
def test_a_run_records_the_direction_of_a_score_and_the_name_decides_without(tmp_path, metric, recorded, higher):
    for i in range(3):
        write_run(tmp_path / str(i), [f"schedule.T={i}", "schedule=linear"], 1.0)
        found = json.loads((tmp_path / str(i) / "metrics.json").read_text())
        found["scores"] = {metric: {"value": i} | ({} if recorded is None else {"best": recorded})}
        (tmp_path / str(i) / "metrics.json").write_text(json.dumps(found))
    table = compare(find(tmp_path), metric)
    assert [run.folder.name for run in table.runs] == (["2", "1", "0"] if higher else ["0", "1", "2"])
    assert table.higher == higher
    assert [run.state for run in table.runs] == ["done"] * 3


def test_the_heat_map_holds_each_score_at_its_place(sweep):
    figure = figures.heat_map(compare(find(sweep), "fd_x"))
    (axes,) = [axes for axes in figure.axes if axes.get_xlabel()]
    across, down = (
        [label.get_text() for label in labels] for labels in (axes.get_xticklabels(), axes.get_yticklabels())
    )
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("schedule", "schedule.T")
    cells = {(across[int(x)], down[int(y)]): text.get_text() for text in axes.texts for x, y in [text.get_position()]}
    assert {key: float(cells[key]) for key in SCORES} == SCORES
    assert {cells["sigmoid", T] for T in ("-5", "10", "100")} == {"–"}


@pytest.mark.parametrize(("metric", "best"), [("fd_x", 1.0), ("images_per_second", 103.0)])
def test_the_best_cell_is_the_darkest(sweep, metric, best):
    figure = figures.heat_map(compare(find(sweep), metric))
    (picture,) = next(axes.images for axes in figure.axes if axes.images)
    values = picture.get_array().compressed()
    assert min(values, key=lambda value: sum(picture.to_rgba(value)[:3])) == best


def test_numbers_are_in_order_of_size_and_words_in_alphabetical_order():
    assert in_order({"1000", "250", "1e-3", "b", "a"}) == ["1e-3", "250", "1000", "a", "b"]


def with_counts(folder, counts, scores):
    for name, (N, score) in enumerate(zip(counts, scores, strict=True)):
        write_run(folder / str(name), [f"optimizer.lr={name}"], score, optimizer={"lr": name})
        path = folder / str(name) / "metrics.json"
        found = json.loads(path.read_text())
        found["scores"]["fd_x"] |= {} if N is None else {"num_samples": N}
        path.write_text(json.dumps(found))


def test_only_runs_of_equally_many_samples_are_ranked_together(tmp_path):
    """The best value comes from more samples than the others, so it is not evidence of a better model."""
    folder = tmp_path / "sweep"
    with_counts(folder, [297, 297, 1000, 100], [0.5, 0.3, 0.1, 0.9])
    table = compare(find(folder), "fd_x")
    assert [run.folder.name for run in table.runs] == ["1", "0", "2", "3"]
    assert ([run.folder.name for run in table.done], table.number) == (["1", "0"], 297)
    assert table.over("optimizer.lr") == {("1",): [0.3], ("0",): [0.5]}
    by_loss = compare(find(folder), "val/loss")
    assert (len(by_loss.done), len(by_loss.notes)) == (4, 1)
    status, out, err = in_process(report, f"runs={folder}", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "2 runs with N = 297 ranked, 2 runs with another N (100, 1000) listed below" in out
    assert "0.1 (N = 1000)" in out
    rows = list(csv.DictReader((folder / "report" / "report.csv").open()))
    told = [(row["fd_x"], row["num_samples/fd_x"], row["floor/fd_x"]) for row in rows]
    assert told == [("0.3", "297", "0.25"), ("0.5", "297", "0.25"), ("0.1", "1000", "0.25"), ("0.9", "100", "0.25")]
    page = (folder / "report" / "report.html").read_text()
    assert "Best: <b>optimizer.lr=1</b>, fd_x 0.3 (held-out images: 0.25), of 297 samples." in page
    assert 'data-floor="0.25"' in page
    assert '<td class="number" data-value="1000">1,000</td>' in page


def test_runs_that_do_not_tell_the_number_are_ranked_with_each_other(tmp_path):
    with_counts(tmp_path, [None, None, 297], [0.5, 0.3, 0.1])
    table = compare(find(tmp_path), "fd_x")
    assert [run.folder.name for run in table.done] == ["1", "0"]
    assert "N = unknown ranked, 1 run with another N (297)" in table.notes[1]


def test_over_seeds_it_tells_mean_and_deviation(tmp_path):
    for seed, score in ((0, 1.0), (1, 3.0)):
        for rate in ("0.1", "0.2"):
            words = [f"seed={seed}", f"optimizer.lr={rate}"]
            write_run(tmp_path / f"{rate}_{seed}", words, score + 10 * float(rate), seed=seed)
    rows = compare(find(tmp_path), "fd_x").over_seeds()
    assert [row["label"] for row in rows] == ["optimizer.lr=0.1", "optimizer.lr=0.2"]
    assert [row["mean"] for row in rows] == pytest.approx([3, 4])
    assert [row["deviation"] for row in rows] == pytest.approx([2**0.5, 2**0.5])
    assert compare(find(tmp_path), "fd_x").axes == ["optimizer.lr"]


def test_a_key_that_only_some_were_given_has_the_others_value_from_their_configuration(tmp_path):
    write_run(tmp_path / "a", [], 1.0)
    write_run(tmp_path / "b", ["schedule.T=20"], 2.0, schedule={"T": 20})
    table = compare(find(tmp_path), "fd_x")
    assert [table.label(run) for run in table.runs] == ["schedule.T=10", "schedule.T=20"]


def test_it_writes_a_table_and_plots(sweep):
    status, out, err = in_process(report, f"runs={sweep}", cwd=sweep.parent)
    assert (status, err) == (0, "")
    assert "sweep/report/report.html" in out
    assert out.splitlines()[1].split() == ["3", "cosine", "100", "1", "done"]
    rows = list(csv.DictReader((sweep / "report" / "report.csv").open()))
    assert [row["schedule"] for row in rows] == ["cosine", "linear", "cosine", "linear", "sigmoid", "linear"]
    assert [row["fd_x"] for row in rows] == ["1.0", "2.0", "2.5", "3.0", "", ""]
    assert rows[-1]["failure"] == FAILURE
    for name in ("heat_map", "curves", "noise_levels", "throughput", "trajectory"):
        assert (sweep / "report" / f"{name}.png").stat().st_size > 1000
    again = find(sweep)
    assert len(again) == 6  # the report is no run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs=nowhere"], "error: runs=nowhere: no run found; give a run's folder, or a folder of runs"),
        (["runs=sweep", "metric=fid"], "error: metric=fid: not measured in these runs; choose fd_x, "),
        (["runs=sweep", "num_pictures=0"], "error: num_pictures=0: choose a whole number of at least 1"),
        ([], "error: runs: missing; give runs=…"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_reported_is_told_in_a_line(sweep, words, message):
    before = sorted(sweep.rglob("*"))
    status, _, err = in_process(report, *words, cwd=sweep.parent)
    assert status == 2
    assert err.startswith(message)
    assert len(err.splitlines()) == 1
    assert sorted(sweep.rglob("*")) == before


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, or any on the path."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """path -> the loaded page, with its requests and errors."""
    page = browser.new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url.split(":")[0]))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)

    def open_file(path):
        page.goto(path.as_uri())
        return page

    yield open_file
    assert wrong == []
    assert asked.count("file") == 1  # itself: everything else is inside
    assert set(asked) <= {"file", "data"}
    page.close()


def check_pictures(page, at_least):
    sizes = page.eval_on_selector_all("img", "images => images.map(image => [image.complete, image.naturalWidth])")
    assert len(sizes) >= at_least
    assert all(complete and width > 0 for complete, width in sizes)


def column(page, number):
    return page.eval_on_selector_all("#runs tbody tr", f"rows => rows.map(row => row.cells[{number}].textContent)")


def test_in_a_browser_it_shows_everything_and_sorts(sweep, opened):
    walks = [{"sampler": name, "nfe": nfe, "fd_x": 9 / nfe} for name in ("ddim", "heun") for nfe in (5, 10)]
    (sweep / "evaluation").mkdir()
    told = {"walks": walks, "floor": {"fd_x": {"value": 0.25}}, "how": {"num_samples": 100}}
    (sweep / "evaluation" / "metrics.json").write_text(json.dumps(told))
    assert in_process(report, f"runs={sweep}", cwd=sweep.parent)[0] == 0
    page = opened(sweep / "report" / "report.html")
    check_pictures(page, at_least=4 + 2 + 4 + 1)  # plots, film and its frames, grids, walks
    text = page.inner_text("body")
    for words in (
        "6 runs, 4 done, 1 failed, 1 not finished", "Best: schedule=cosine schedule.T=100, fd_x 1 ",
        "held-out images: 0.25", "python -m src.train schedule=linear schedule.T=10 logger=csv", "abc (changed since)",
        "Score over network evaluations", FAILURE,
    ):  # fmt: skip
        assert words in text
    assert page.title() == "sweep"
    assert column(page, 0) == ["3", "1", "2", "0", "4", "10"]
    run, T, score = (page.locator("#runs th button", has_text=name) for name in ("run", "schedule.T", "fd_x"))
    score.click()  # it is sorted upwards already
    assert column(page, 3) == ["3", "2.5", "2", "1", "–", "–"]
    score.click()
    assert column(page, 3) == ["1", "2", "2.5", "3", "–", "–"]
    run.click()
    assert column(page, 0) == ["0", "1", "2", "3", "4", "10"]
    T.click()
    T.click()
    assert column(page, 2)[:2] == ["100", "100"]


@pytest.mark.parametrize("width", [800, 1200])
@pytest.mark.parametrize("more", [0, 1])
def test_a_table_of_many_scores_fits_the_page(tmp_path, opened, width, more):
    names = [f"{score}_imagenet_lite" for declared in DECLARED if not declared.on_request for score in declared.best]
    names += [f"score{i}_imagenet_lite" for i in range(more)]
    for i, schedule in enumerate(("linear", "cosine")):
        folder = tmp_path / "runs" / f"2026-01-01_00-00-00-00000{i}"
        write_run(folder, [f"schedule={schedule}", f"schedule.T={10 + i}", "parameterization=eps"], 1.0)
        found = json.loads((folder / "metrics.json").read_text())
        found["scores"] = {name: {"value": 1234.5678 + i, "floor": {"value": 0.25}} for name in names}
        (folder / "metrics.json").write_text(json.dumps(found))
    assert in_process(report, "runs=runs", cwd=tmp_path)[0] == 0
    page = opened(tmp_path / "runs" / "report" / "report.html")
    page.set_viewport_size({"width": width, "height": 800})
    wide, there = page.eval_on_selector(".scroll", "box => [box.scrollWidth, box.clientWidth]")
    assert wide <= there


def test_words_about_the_screen_make_no_columns_and_defaults_no_labels(tmp_path):
    write_run(tmp_path / "a", ["schedule=linear", "logger=csv", "debug=limit"], 1.0)
    write_run(tmp_path / "b", ["experiment=mnist"], 2.0)
    table = compare(find(tmp_path), "fd_x")
    assert table.keys == ["schedule", "experiment"]
    assert [table.label(run) for run in table.runs] == ["schedule=linear", "experiment=mnist"]


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("python -m src.train schedule=linear", "python -m src.train schedule=linear"),
        ("""python -m src.train "data.root='My pictures'" 'tags=[a b]'""",) * 2,
        (
            "python -m src.train schedule.T=5 sweep=optuna "
            "'group='\"'\"'2026'\"'\"'' 'name='\"'\"'a b'\"'\"'' 'hydra.run.dir='\"'\"'x'\"'\"'' hydra.mode=RUN",
            "python -m src.train schedule.T=5 sweep=optuna",
        ),
        ("python 'torn", "python 'torn"),
    ],
)
def test_commands_can_be_pasted(typed, shown):
    assert to_paste(typed) == shown
    if "torn" not in typed and "hydra" not in typed:
        assert shlex.split(shown) == shlex.split(typed)


def test_of_one_run_it_shows_what_there_is(finished, tmp_path, opened):
    assert in_process(report, f"runs={finished[0]}", f"output_dir={tmp_path}/r", cwd=tmp_path)[0] == 0
    page = opened(tmp_path / "r" / "report.html")
    check_pictures(page, at_least=5)
    text = page.inner_text("body")
    assert "1 run, 1 done" in text
    assert "Best:" not in text
    assert "Loss by noise level" in text


def test_it_shows_predictions_and_reconstructions_but_no_intermediate_grids(sweep, finished):
    picture = finished[0] / "samples" / "final.png"
    for run, name in (("0", "reconstructions"), ("1", "predictions"), ("2", "step_0000005"), ("3", "predictions")):
        shutil.copy(picture, sweep / run / "samples" / f"{name}.png")
    shutil.copy(picture, sweep / "0" / "samples" / "<b>.png")
    assert in_process(report, f"runs={sweep}", cwd=sweep.parent)[0] == 0
    page = (sweep / "report" / "report.html").read_text()
    assert "<b>.png" not in page
    assert "<h2>&lt;b&gt;</h2>" in page
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert [title for title in titles if title in ("Samples", "Predictions", "Reconstructions")] == [
        "Samples", "Predictions", "Reconstructions",
    ]  # fmt: skip
    assert [page.count(f'alt="{kind} of ') for kind in ("samples", "predictions", "reconstructions")] == [4, 2, 1]
    assert "step_" not in page
