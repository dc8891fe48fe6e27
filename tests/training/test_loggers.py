import csv
import os

from lightning_diffusion.training.loggers.csv import CSVLogger


def rows(path):
    with path.open(newline="") as file:
        return [(int(row["step"]), row["loss"], row["val"]) for row in csv.DictReader(file)]


def test_columns_may_come_later_and_every_row_is_on_disk_at_once(tmp_path):
    logger = CSVLogger(str(tmp_path / "new" / "metrics.csv"))
    logger.log_metrics({"loss": 0.5, "epoch": 0}, step=1)
    logger.log_metrics({"loss": 0.4, "val": 0.6}, step=2)
    logger.log_metrics({"loss": 0.3}, step=3)
    assert rows(logger.path) == [(1, "0.5", ""), (2, "0.4", "0.6"), (3, "0.3", "")]


def test_it_settles_its_own_file(tmp_path, monkeypatch):
    settled = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: settled.append(os.fstat(descriptor).st_ino))
    logger = CSVLogger(str(tmp_path / "metrics.csv"))
    logger.log_metrics({"loss": 0.5}, step=1)
    settled.clear()
    logger.settle()
    assert settled == [logger.path.stat().st_ino]


def test_going_on_from_an_earlier_step_replaces_what_came_after(tmp_path):
    path = tmp_path / "metrics.csv"
    before = CSVLogger(str(path))
    for step in range(1, 10):
        before.log_metrics({"loss": step, "val": 0}, step)
    after = CSVLogger(str(path))
    for step in (6, 7):
        after.log_metrics({"loss": 10 * step}, step)
    assert rows(path) == [*((step, str(step), "0") for step in range(1, 6)), (6, "60", ""), (7, "70", "")]


def test_of_the_step_that_a_run_goes_on_with_what_came_earlier_stays(tmp_path):
    """A validation is logged under the number of its step, after it."""
    path, (loss, val) = tmp_path / "metrics.csv", ({"loss": 1}, {"val": 2})
    for run in ([loss, val], [loss, val], [val]):
        logger = CSVLogger(str(path))
        for row in run:
            logger.log_metrics(row, 3)
        assert rows(path) == [(3, "1", ""), (3, "", "2")]
