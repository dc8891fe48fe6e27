"""A sweep whose files are torn: a job with a damaged result is run again, the rest is one line."""

import json
import os

import pytest
import yaml

from lightning_diffusion.app.sweep import sweep_to_resume
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.runs.job import Job
from lightning_diffusion.runs.run import Run
from src.train import main as train
from tests.command import in_process
from tests.runs import TINY

WORDS = ["-m", *TINY, "trainer.max_steps=2", "schedule.T=10,20"]


@pytest.fixture
def swept(tmp_path):
    """Two jobs that are done, as their folders tell."""
    folder = tmp_path / "runs" / "sweeps" / "a"
    for i, T in enumerate((10, 20)):
        (folder / str(i)).mkdir(parents=True)
        words = [*WORDS[1:-1], f"schedule.T={T}"]
        (folder / str(i) / "overrides.yaml").write_text(yaml.safe_dump({"overrides": words, "name": "digits"}))
        (folder / str(i) / "metrics.json").write_text('{"val/loss": 0.5}')
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"words": WORDS[1:], "keys": ["schedule.T"]}))
    return folder


def resume(swept):
    status, out, err = in_process(train, *WORDS, "resume=true", cwd=swept.parent.parent.parent)
    assert "Traceback" not in err
    return status, out, err


def test_it_can_be_resumed_more_than_once(swept):
    for _ in range(2):
        status, out, err = resume(swept)
        assert status == 0, err
        assert "2 of 2 jobs done in runs/sweeps/a" in out


@pytest.mark.slow
def test_a_job_whose_result_is_torn_is_run_again(swept):
    (swept / "0" / "metrics.json").write_text('{"val/lo')
    assert not Run(swept / "0").is_done
    (swept / "0" / "overrides.yaml").unlink()
    status, out, err = resume(swept)
    assert status == 0, err
    assert json.loads((swept / "0" / "metrics.json").read_text())["steps"] == 2
    assert (swept / "1" / "metrics.json").read_text() == '{"val/loss": 0.5}'
    assert "2 of 2 jobs done" in out


@pytest.mark.parametrize("damage", ["", "overrides: 5\n", pytest.param("\0", marks=pytest.mark.slow), "[" * 5000])
def test_a_job_whose_words_are_torn_is_one_line(swept, damage):
    (swept / "0" / "overrides.yaml").write_text(damage)
    status, _, err = resume(swept)
    assert status == 2
    assert err.splitlines()[-1].startswith("error: hydra.sweep.dir: ")
    assert "0/overrides.yaml: " in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("output.log", os.mkdir),
        ("output.log", os.mkfifo),
        ("failure.txt", os.mkdir),
        pytest.param("job.yaml", os.mkdir, marks=pytest.mark.slow),
    ],
)
def test_what_lies_in_place_of_a_job_s_file_is_one_line(swept, name, make):
    (swept / "0" / "metrics.json").write_text("{")
    make(swept / "0" / name)
    status, _, err = resume(swept)
    assert status == 2
    assert err.splitlines()[-1].startswith("error: hydra.sweep.dir: ")
    assert err.splitlines()[-1].endswith("; remove runs/sweeps/a/0")


@pytest.mark.parametrize("damage", ["", "words: 5\n", "[]\n", "\0", "words: [a", "a: &a [*a]\n"])
def test_a_sweep_whose_words_are_torn_is_passed_over(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    for name, text in (("a", yaml.safe_dump({"words": ["x=1,2"]})), ("b", damage)):
        (tmp_path / "runs" / "sweeps" / name).mkdir(parents=True)
        (tmp_path / "runs" / "sweeps" / name / "sweep.yaml").write_text(text)
    assert sweep_to_resume(["-m", "x=1,2", "resume=true"]) == ["hydra.sweep.dir='runs/sweeps/a'"]
    with pytest.raises(
        ConfigError, match=r"resume=true: no sweep with these arguments .* \(runs/sweeps/b/sweep.yaml: "
    ) as error:
        sweep_to_resume(["-m", "x=1,3", "resume=true"])
    assert len(str(error.value).splitlines()) == 1


def test_a_failure_is_told_in_one_visible_line(tmp_path):
    (tmp_path / "failure.txt").write_bytes(b"\x1b[31m first\nsecond\n")
    assert "\x1b" not in Job(Run(tmp_path), ["a=1"]).told("val/loss", ["a"])
    (tmp_path / "failure.txt").write_bytes(b"\xff")
    assert Job(Run(tmp_path), ["a=1"]).told("val/loss", ["a"]).startswith("a=1: failed: failure.txt: not a text file")
