"""Long work reports its name and progress; short work prints nothing."""

import io
import re
import time

import pytest
import torch
import yaml

from lightning_diffusion.configuration.quick import quick_form, ten_minutes
from lightning_diffusion.configuration.trusted_targets import CONF
from lightning_diffusion.data.download import downloading
from lightning_diffusion.metrics.extractors.classifier import fit
from lightning_diffusion.system import progress
from lightning_diffusion.system.console import clock
from lightning_diffusion.system.progress import Phase, say
from lightning_diffusion.training.callbacks.progress import RichProgress
from tests import runs


@pytest.fixture
def hasty(monkeypatch):
    """A line every 50 ms."""
    monkeypatch.setattr(progress, "QUIET", 0.05)
    monkeypatch.setattr(progress, "EVERY", 0.05)


def wait_for(capsys, words, seconds=20.0):
    """Waits until a line has these words; returns all lines so far."""
    text, until = "", time.monotonic() + seconds
    while words not in text and time.monotonic() < until:
        time.sleep(0.01)
        text += capsys.readouterr().out
    assert words in text
    return text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (3599.9, "1 h 0 min"), (200_000, "2 d 7 h")],
)
def test_times_have_two_units(seconds, words):
    assert clock(seconds) == words


def test_short_work_writes_nothing_to_a_log(capsys):
    with Phase("work", 3) as phase:
        phase.advance(3)
    assert capsys.readouterr().out == ""


def test_long_work_writes_what_it_is_how_far_and_how_long(capsys, hasty):
    with Phase("work", 100, "image", note=lambda: "a note") as phase:
        assert re.match(r"work: image 0/100, a note, \d s so far\n", wait_for(capsys, "work"))
        phase.advance(40)
        assert "work: image 40/100, a note, " in (text := wait_for(capsys, " left"))
    assert text.count("\n") >= 1
    assert capsys.readouterr().out.endswith("work: done in 0 s\n")


def test_the_time_left_is_that_of_the_pace_since_the_first_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Phase("work", 10, done=2) as phase:
        now[0] = 100.0  # the first step prepares something
        phase.advance()
        assert phase.seconds_left == pytest.approx(700)  # 7 steps at its own pace
        now[0] = 104.0
        phase.advance(2)
        assert phase.seconds_left == pytest.approx(5 * 2)


def test_the_innermost_of_nested_phases_writes(capsys, hasty):
    with Phase("outer"), Phase("inner"):
        text = wait_for(capsys, "inner")
    assert "outer" not in text
    assert Phase._open == []


def test_work_that_fails_is_not_called_done(capsys, hasty):
    def work():
        with Phase("work"):
            wait_for(capsys, "work")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert "done" not in capsys.readouterr().out


def test_other_ranks_are_silent(capsys, hasty, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with Phase("work", 3) as phase:
        time.sleep(0.2)
        phase.advance()
    assert capsys.readouterr().out == ""


def test_phases_on_a_terminal_share_their_bars(monkeypatch):
    file = io.StringIO()
    terminal = progress.console(file=file, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", lambda: terminal)
    with Phase("outer [/b]", 5) as outer, Phase("inner", 8) as inner:
        outer.advance()
        inner.advance(3)
        say("a line")
        Phase._bars.refresh()
    text = file.getvalue()
    for words in ("outer [/b]", "step 1/5", "inner", "step 3/8", "a line"):
        assert words in text
    assert Phase._bars is None


def test_the_classifier_for_scores_counts_its_steps(capsys, hasty):
    images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
    fit(images, torch.arange(64) % 2, steps=100, seed=0)
    assert re.search(r"training a classifier .*: step \d+/100, .* left", capsys.readouterr().out)


def test_a_download_shows_the_bytes_that_have_come(tmp_path, capsys, hasty):
    with downloading("MNIST", tmp_path):
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "file").write_bytes(bytes(3_000_000))
        text = wait_for(capsys, "3.0 MB")
    assert f"getting MNIST into {tmp_path}: " in text


class TestTraining:
    def lines(self, capsys, max_steps, **options):
        callback = RichProgress()
        trainer = runs.trainer(max_steps, [callback], enable_progress_bar=True, **options)
        trainer.fit(runs.module(), runs.digits())
        return callback, capsys.readouterr().out

    def test_a_log_has_loss_and_time_left_from_the_first_steps_and_each_validation_once(self, capsys, hasty):
        _, out = self.lines(capsys, 60, val_check_interval=30)
        lines = [line for line in out.splitlines() if line.startswith("training: step")]
        first = next(line for line in lines if "step 0/" not in line)
        assert re.fullmatch(r"training: step \d+/60, loss \d\.\d{4}, \d+ s left", first)
        assert len(re.findall(r"^validation after .*$", out, re.MULTILINE)) == 1  # the last one is in the run's result
        assert re.search(r"^validation after 30 steps: loss 0\.\d+, bits_per_dim \d\.\d+$", out, re.MULTILINE)
        assert "_q1" not in out

    def test_a_run_of_hours_names_the_recipe_of_ten_minutes(self, capsys, monkeypatch):
        monkeypatch.setattr("lightning_diffusion.training.callbacks.progress.HOUR", 0.01)
        _, out = self.lines(capsys, 30)
        (line,) = [line for line in out.splitlines() if line.startswith("note: ")]
        assert re.fullmatch(
            r"note: this run takes about \d+ s more on this CPU; trainer.max_steps=\d+ takes ten minutes; .*", line
        )

    def test_a_short_one_does_not(self, capsys):
        _, out = self.lines(capsys, 30)
        assert "note" not in out


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_the_quick_recipe_of_data_is_found_by_its_name_in_conf(option):
    data = yaml.safe_load((CONF / "data" / f"{option}.yaml").read_text())
    expected = f"{option}_quick" if (CONF / "experiment" / f"{option}_quick.yaml").exists() else None
    assert quick_form(data) == expected
    told = ten_minutes({"data": data}, seconds_each=0.5)
    assert told.startswith(f"experiment={expected} " if expected else "trainer.max_steps=1200 ")
