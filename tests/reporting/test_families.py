"""The report's table of families, from folders written by hand, whose numbers are known."""

import json

import numpy as np
import pytest
from PIL import Image

from lightning_diffusion.runs.reporting import family_figures
from lightning_diffusion.runs.reporting.families import compare_families, family
from lightning_diffusion.runs.reporting.table import compare
from lightning_diffusion.runs.run import Run, find
from src.report import main as report
from tests.command import in_process
from tests.reporting.test_hostile_text import TEXTS, check
from tests.test_report import write_run

CLASSES = {"vae": "VAE", "gan": "GAN", "diffusion": "DiffusionModel", "autoregressive": "Autoregressive"}
CLIP, CFG = {"_target_": "g.Clip", "_partial_": True}, {"_target_": "g.Guided", "_partial_": True, "scale": 2.5}
FLOORS = {"fd_x": 0.25, "precision_x": 0.9, "recall_x": 0.8, "density_x": 1.1, "coverage_x": 0.7, "near_copies_x": 0.01}


def scored(N, **values):
    """Scores by name, each with the floor of held-out images."""
    return {
        f"{name}_x": {"value": value, "num_samples": N, "floor": {"value": FLOORS[f"{name}_x"]}}
        for name, value in values.items()
    }


def write_family(folder, name, seed, words=(), N=100, how=None, scores=None, guidance=CLIP, **numbers):
    """A finished run of a family of the project, without pictures and curves."""
    node = {"_target_": f"lightning_diffusion.models.{name}.model.{CLASSES[name]}"}
    write_run(folder, [*words, f"seed={seed}"], 0.0, seed=seed, model=node, guidance=guidance)
    for path in folder.glob("*.csv"):
        path.unlink()
    metrics = {"val/loss": 0.5, "steps": 10, "how": how or {}} | numbers
    (folder / "metrics.json").write_text(json.dumps(metrics | {"scores": scored(N, **(scores or {}))}))


def write_evaluation(folder, content):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))


@pytest.fixture
def runs(tmp_path):
    """Two seeds of a VAE, a GAN, and two of a diffusion model that was also drawn in other ways; and an old run."""
    folder = tmp_path / "runs"
    for seed, fd, bits in ((0, 2.0, 3.5), (1, 4.0, 3.75)):
        how = {"nfe": 1.0, "seconds_per_1000_samples": 0.5 + seed}
        write_family(
            folder / f"vae{seed}", "vae", seed, ["model=vae"], how=how, scores={"fd": fd, "precision": 0.5},
            seconds=60.0 + 2 * seed, parameters=70, likelihood="bound", **{"val/bits_per_dim": bits},
        )  # fmt: skip
        write_family(
            folder / f"default{seed}", "diffusion", seed, how={"nfe": 50, "seconds_per_1000_samples": 80.0},
            scores={"fd": 1.0, "near_copies": 0.02}, parameters=90, likelihood="bound", seconds=100.0,
            **{"val/bits_per_dim": 2.5},
        )  # fmt: skip
    write_family(folder / "gan", "gan", 0, ["model=gan"], how={"nfe": 1}, scores={"fd": 3.5}, seconds=50, parameters=9)
    write_family(
        folder / "exact", "autoregressive", 0, ["model=autoregressive"], likelihood="exact", **{"val/bits_per_dim": 2.0}
    )
    walks = [{"sampler": "ddim", "num_steps": n, "nfe": n, "seconds_per_1000_samples": 2.0 * n, "seconds": 1.0,
              "fd_x": 10 / n, "near_copies_x": 0.0} for n in (5, 50)]  # fmt: skip
    how = {"num_samples": 100, "guidance": CLIP}
    write_evaluation(folder / "default0" / "evaluations" / "1", {"walks": walks, "how": how})
    single = {"num_samples": 100, "nfe": 5, "seconds_per_1000_samples": 14.0, "seconds": 3.0, "guidance": CLIP,
              "sampler": {"_target_": "s.DDIM", "num_steps": 5}}  # fmt: skip
    write_evaluation(folder / "default1" / "evaluations" / "1", scored(100, fd=7.0) | {"how": single})
    write_evaluation(folder / "default1" / "evaluations" / "2", scored(100, fd=4.5) | {"how": single})
    write_evaluation(
        folder / "default1" / "evaluations" / "3", scored(100, fd=5.0) | {"how": single | {"guidance": CFG}}
    )
    write_evaluation(folder / "default1" / "evaluations" / "4", {"bound": {"mean": 2.5}, "how": {"seconds": 3.0}})
    write_evaluation(folder / "default1" / "evaluations" / "5", scored(100, fd=0.1) | {"how": single | {"nfe": None}})
    write_evaluation(
        folder / "exact" / "evaluations" / "1",
        scored(20, fd=6.0) | {"how": {"num_samples": 20, "nfe": 64, "seconds_per_1000_samples": 9.0}},
    )
    return folder


def rows(folder, metric="fd_x"):
    return compare_families(compare(find(folder), metric)).rows


def test_a_row_is_a_family_or_a_way_to_draw_from_it_the_least_distance_first(runs):
    assert [(row.label, len(row.runs), row.number) for row in rows(runs)] == [
        ("held-out images", 0, 100),
        ("diffusion", 2, 100),
        ("vae", 2, 100),
        ("diffusion: ddim, 5 steps", 2, 100),
        ("gan", 1, 100),
        ("diffusion: ddim, 5 steps, Guided scale=2.5", 1, 100),
        ("autoregressive: src.evaluate", 1, 20),
        ("autoregressive", 1, None),
    ]
    assert [row.label for row in rows(runs, "val/loss")] == [row.label for row in rows(runs)]


def test_it_holds_means_and_deviations_of_each_figure(runs):
    found = {row.label: {name: tuple(cell) for name, cell in row.cells.items()} for row in rows(runs)}
    assert found["held-out images"] == {name: (FLOORS[name], None, 0) for name in ("fd_x", "near_copies_x")}
    assert found["vae"] == {
        "fd_x": (3.0, pytest.approx(2**0.5), 2), "precision_x": (0.5, None, 2), "parameters": (70, None, 2),
        "val/bits_per_dim": (3.625, pytest.approx(0.125 * 2**0.5), 2), "nfe": (1, None, 2),
        "seconds": (61, pytest.approx(2**0.5), 2), "seconds_per_1000_samples": (1, pytest.approx(0.5**0.5), 2),
    }  # fmt: skip
    few = found["diffusion: ddim, 5 steps"]  # of one run by a curve, of the other by the newer of two evaluations
    assert few["fd_x"] == (3.25, pytest.approx(2.5 / 2**0.5), 2)
    assert few["seconds_per_1000_samples"] == (12, pytest.approx(8**0.5), 2)
    assert few["near_copies_x"] == (0, None, 1)
    assert (few["seconds"], few["val/bits_per_dim"], few["nfe"]) == ((100, None, 2), (2.5, None, 2), (5, None, 2))
    assert found["gan"].keys() == {"fd_x", "parameters", "seconds", "nfe"}
    assert {row.label: row.bits_sign for row in rows(runs) if "val/bits_per_dim" in row.cells} == {
        "diffusion": "≤ ", "vae": "≤ ", "diffusion: ddim, 5 steps": "≤ ", "autoregressive": "",
        "diffusion: ddim, 5 steps, Guided scale=2.5": "≤ ", "autoregressive: src.evaluate": "",
    }  # fmt: skip


def test_the_page_shows_it_and_what_is_missing_as_a_dash(runs):
    status, _, err = in_process(report, f"runs={runs}", "metric=fd_x", cwd=runs.parent)
    assert (status, err) == (0, "")
    page = (runs / "report" / "report.html").read_text()
    table = page[page.index("<h2>Families</h2>") : page.index("<h2>Runs</h2>")]
    cells = {
        line.split("</td>")[0].removeprefix("<td>"): [
            cell.split(">")[-1] for cell in line.replace("\n", "").split("</td>")[1:-1]
        ]
        for line in (row.partition("</tr>")[0].partition("\n  ")[2] for row in table.split("<tr")[2:])
    }
    dash = "–"
    assert cells["held-out images"] == ["0.25", *[dash] * 4, "0.01", *[dash] * 5, "100", dash]
    assert cells["vae"] == [
        "3 ±&nbsp;1.4", "0.5", *[dash] * 4, "≤ 3.625 ±&nbsp;0.18", "70", "61 ±&nbsp;1.4", "1", "1 ±&nbsp;0.71", "100",
        "2",
    ]  # fmt: skip
    assert cells["diffusion: ddim, 5 steps"][5] == "0 (1)"
    assert cells["autoregressive"] == [*[dash] * 6, "2", *[dash] * 5, "1"]
    assert "compare them at equal N only" in table
    assert (runs / "report" / "families_cost.png").is_file()
    assert not (runs / "report" / "families.png").exists(), "no run has samples"


def test_runs_of_one_family_have_no_such_table(tmp_path):
    for seed, words in ((0, []), (1, ["model=diffusion"])):
        write_family(tmp_path / str(seed), "diffusion", seed, words, scores={"fd": 1.0})
    table = compare(find(tmp_path), "fd_x")
    assert {family(run) for run in table.runs} == {"diffusion"}
    assert compare_families(table) is None
    write_run(tmp_path / "2", ["model=gan"])  # it has not finished
    assert compare_families(compare(find(tmp_path), "fd_x")) is None
    write_run(tmp_path / "3", [], 1.0)  # of a version without families
    assert [row.label for row in rows(tmp_path)] == ["held-out images", "diffusion", "–"]


def test_settings_in_which_a_familys_runs_differ_make_rows_of_their_own(tmp_path):
    for i, (name, width) in enumerate((("vae", 8), ("vae", 16), ("vae", 16), ("gan", 8))):
        words = [f"model={name}", f"network.width={width}"]
        write_family(tmp_path / str(i), name, i, words, scores={"fd": 1.0 + i})
    found = [(row.label, len(row.runs)) for row in rows(tmp_path)]
    assert found == [("held-out images", 0), ("vae network.width=8", 1), ("vae network.width=16", 2), ("gan", 1)]


def test_a_class_of_another_package_is_named_by_itself(tmp_path):
    write_run(tmp_path / "0", [], 1.0, model={"_target_": "toy.gaussian.Gaussian"})
    assert family(Run(tmp_path / "0")) == "Gaussian"


def test_the_grids_are_of_the_lowest_seed_and_titled_by_family(tmp_path):
    for i, (name, seed) in enumerate((("vae", 10), ("vae", 9), ("gan", 3))):
        write_family(tmp_path / str(i), name, seed, [f"model={name}"], scores={"fd": 1.0 + i})
        (tmp_path / str(i) / "samples").mkdir()
        Image.new("L", (24, 12), 50 * (1 + i)).save(tmp_path / str(i) / "samples" / "final.png")
    figure = family_figures.families(compare_families(compare(find(tmp_path), "fd_x")))
    assert [axes.get_title() for axes in figure.axes] == ["vae", "gan"]
    shades = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [shade.shape for shade in shades] == [(12, 24, 3)] * 2
    assert [set(shade.flat) for shade in shades] == [{100}, {150}]


def test_the_plot_shows_the_distance_over_the_seconds_of_each_way_to_draw(runs):
    figure = family_figures.families_cost(compare_families(compare(find(runs), "fd_x")))
    (axes,) = figure.axes
    points = {line.get_label(): sorted(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert points.pop("held-out images")[0][1] == 0.25
    assert points == {
        "diffusion": [(12, 3.25), (14, 5), (80, 1)], "vae": [(1, 3)], "autoregressive": [(9, 6)],
    }  # fmt: skip


DAMAGED = {
    "[]": "not a mapping",
    "{": "not JSON",
    json.dumps(scored(9, fd=1.0)): "how is not a mapping",
    json.dumps(scored(9, fd=1.0) | {"how": {"nfe": 2}}): "how has no num_samples",
    '{"fd_x": {"value": 1}, "how": {"nfe": 2, "num_samples": Infinity}}': "how has no num_samples",
    json.dumps(scored(9, fd="1") | {"how": {"nfe": 2, "num_samples": 9}}): "fd_x is not a number",
    json.dumps(scored(9, fd=1.0) | {"how": {"nfe": [2], "num_samples": 9}}): "nfe is not a number",
    json.dumps({"walks": [], "how": {"num_samples": 9}}): "walks is not a list of mappings",
}


def test_a_damaged_evaluation_is_named_and_the_others_are_shown(runs):
    for i, text in enumerate(DAMAGED):
        (runs / "gan" / "evaluations" / str(i)).mkdir(parents=True)
        (runs / "gan" / "evaluations" / str(i) / "metrics.json").write_text(text)
    found = compare_families(compare(find(runs), "fd_x"))
    told = {path.parent.name: reason for path, reason in found.damaged.items()}
    assert len(told) == len(DAMAGED)
    assert all(told[str(i)].startswith(reason) for i, reason in enumerate(DAMAGED.values()))
    assert len(found.rows) == 8


def test_values_that_are_no_measurements_are_gaps(runs):
    write_evaluation(
        runs / "gan" / "evaluations" / "1",
        scored(100, fd=float("nan"), recall=0.5) | {"how": {"num_samples": 100, "nfe": 10**400, "sampler": "s"}},
    )
    (row,) = [row for row in rows(runs) if row.label == "gan: s"]
    assert row.cells.keys() == {"recall_x", "parameters", "seconds"}


def test_texts_of_strangers_stay_lines_of_visible_text(tmp_path):
    folder = tmp_path / "runs"
    for i, text in enumerate(TEXTS.values()):
        write_family(folder / str(i), "vae", 0, [f"model={text}"], scores={"fd": 7.25})
        how = {"num_samples": 9, "nfe": 2, "seconds_per_1000_samples": 1, "sampler": text}
        how["guidance"] = {"_target_": text, text: 1}
        write_evaluation(folder / str(i) / "evaluations" / "1", scored(9, fd=2.0) | {"how": how})
    _, page, _ = check(folder)
    assert page[: page.index("<h2>Runs</h2>")].count("<tr") > 2 * len(TEXTS)
