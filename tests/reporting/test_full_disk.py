"""What the report and an evaluation write is whole or not there, and the reason is one line."""

import errno
import os

import pytest

from lightning_diffusion.system import files
from src.evaluate import main as evaluate
from src.report import main as report
from tests.command import in_process
from tests.reporting.damage import write_whole

pytestmark = pytest.mark.usefixtures("unarranged")

OUTPUTS = ("report.csv", "trajectory.png", "report.html")


@pytest.fixture
def full(monkeypatch):
    """name -> the disk is full from this file on: half of it is written."""

    def fill(name):
        real = os.replace

        def replace(source, target):
            if os.path.basename(target) == name:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(source, target)

        monkeypatch.setattr(files.os, "replace", replace)

    return fill


@pytest.mark.parametrize("name", OUTPUTS)
def test_of_a_report(tmp_path, full, name):
    write_whole(tmp_path / "runs" / "0", 1.0)
    write_whole(tmp_path / "runs" / "1", 2.0)
    output = tmp_path / "runs" / "report"
    assert in_process(report, "runs=runs", cwd=tmp_path)[0] == 0
    assert {path.name for path in output.iterdir()} >= set(OUTPUTS)
    before = (output / name).read_bytes()
    full(name)
    write_whole(tmp_path / "runs" / "2", 3.0)
    status, _, err = in_process(report, "runs=runs", cwd=tmp_path)
    assert status == 2
    assert err == f"error: runs=runs: runs/report/{name}: could not be written (No space left on device)\n"
    assert (output / name).read_bytes() == before
    assert not list(output.glob(".*"))


def test_of_a_report_whose_folder_is_a_file(tmp_path):
    write_whole(tmp_path / "runs" / "0", 1.0)
    (tmp_path / "taken").write_text("")
    status, _, err = in_process(report, "runs=runs", "output_dir=taken", cwd=tmp_path)
    assert status == 2
    assert err.startswith("error: runs=runs: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["curve.csv", "curve.png", "metrics.json"])
def test_of_an_evaluation(finished, tmp_path, full, name):
    full(name)
    words = ("output_dir=evaluation", "num_samples=20", "metrics.steps=10", "samplers=[ddim]", "num_steps=[1,2]")
    status, _, err = in_process(evaluate, f"ckpt_path={finished[0]}/checkpoints/last.ckpt", *words, cwd=tmp_path)
    assert status == 2
    assert (
        err.splitlines()[-1] == f"error: output_dir: evaluation/{name}: could not be written (No space left on device)"
    )
    assert not (tmp_path / "evaluation" / name).exists()
    assert not list((tmp_path / "evaluation").glob(".*"))
