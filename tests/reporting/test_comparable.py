"""Runs are compared by a figure that means the same for all of them."""

import json

import pytest
import yaml

from lightning_diffusion.app.commands.report import _metric
from lightning_diffusion.runs.comparable import BITS, LOSS, misled_by, sentence, warning
from lightning_diffusion.runs.reporting.table import compare
from lightning_diffusion.runs.run import find


def write_run(folder, words, metrics, **options):
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text(yaml.safe_dump({"overrides": words}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"metric": LOSS, **options}))
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def schedules(tmp_path):
    """The lower loss belongs to the worse model."""
    short = {"low": -7.5, "high": 4.1, "whole": False}
    write_run(tmp_path / "0", ["schedule=linear"], {LOSS: 0.22, BITS: 4.6, "bound": {"high": 6.9, "whole": True}})
    write_run(tmp_path / "1", ["schedule=cosine"], {LOSS: 0.25, BITS: 4.4, "bound": {"high": 7.0, "whole": True}})
    write_run(tmp_path / "2", ["schedule=cosine", "schedule.T=10"], {LOSS: 0.3, BITS: 4.5, "bound": short})
    return tmp_path


def test_the_highest_score_of_masks_is_the_best(tmp_path):
    for i, score in enumerate((0.4, 0.7, 0.5)):
        write_run(tmp_path / str(i), [f"seed={i}"], {LOSS: score, "val/mean_iou": score, "val/dice_loss": score})
    runs = find(tmp_path)
    assert [run.folder.name for run in compare(runs, "val/mean_iou").runs] == ["1", "2", "0"]
    assert [run.folder.name for run in compare(runs, "val/dice_loss").runs] == ["0", "2", "1"]
    assert "held-out masks" in sentence("val/iou_3")
    assert "masks" not in sentence("val/dice_loss")


def test_the_bound_leads_where_the_loss_would_mislead(schedules):
    runs = find(schedules)
    assert _metric(None, runs) == BITS  # although these runs name val/loss themselves
    table = compare(runs, BITS)
    assert [run.folder.name for run in table.runs] == ["1", "2", "0"]
    assert table.notes[0] == sentence(BITS)
    assert "schedule=cosine schedule.T=10 (log-SNR 4.1)" in table.notes[1]
    assert len(table.notes) == 2


def test_choosing_the_loss_gets_a_line(schedules):
    runs = find(schedules)
    assert _metric(LOSS, runs) == LOSS
    _, line = compare(runs, LOSS).notes
    assert line.startswith("metric=val/loss: schedule and schedule.T change what it measures; choose metric=val/bits_")


def test_runs_that_train_alike_are_compared_by_their_own_metric(tmp_path):
    for i, rate in enumerate((0.1, 0.2)):
        write_run(tmp_path / str(i), [f"optimizer.lr={rate}"], {LOSS: 0.2 + i, BITS: 4.0})
    assert _metric(None, find(tmp_path)) == LOSS
    assert compare(find(tmp_path), LOSS).notes == [sentence(LOSS)]


def test_runs_without_the_bound_are_compared_by_what_they_have(tmp_path):
    for i, name in enumerate(("linear", "cosine")):
        write_run(tmp_path / str(i), [f"schedule={name}"], {LOSS: 0.2 + i})
    assert _metric(None, find(tmp_path)) == LOSS
    assert len(compare(find(tmp_path), LOSS).notes) == 2


@pytest.mark.parametrize(
    ("metric", "keys", "expected"),
    [
        (LOSS, ["schedule.T", "optimizer.lr"], ["schedule.T"]),
        (LOSS, ["parameterization"], ["parameterization"]),
        (LOSS, ["objective.distance"], ["objective.distance"]),
        (LOSS, ["distance.delta", "distances"], ["distance.delta"]),
        (LOSS, ["scheduler", "weighting", "time_sampler", "objective.vlb_weight"], []),
        ("val/loss_q1", ["schedule"], ["schedule"]),
        (BITS, ["schedule", "parameterization"], []),
        ("fd_classifier", ["schedule"], []),
    ],
)
def test_which_keys_mislead(metric, keys, expected):
    assert misled_by(metric, keys) == expected
    assert (warning(metric, keys) is None) == (not expected)
