"""Scores of samples while training: fresh or absent, the same on any number of ranks, without a trace in the run."""

import csv
import json
import math
import time

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_diffusion.training.callbacks.scores
from lightning_diffusion.data.dataset import InMemory
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.time_grid import Trailing
from lightning_diffusion.metrics.comparison import Comparison
from lightning_diffusion.metrics.extractors.module import Module
from lightning_diffusion.training.callbacks import budget
from lightning_diffusion.training.callbacks.scores import SampleScores
from lightning_diffusion.training.loggers.csv import CSVLogger
from tests import runs
from tests.command import start_ranks
from tests.metrics.features import Images, Net


def callback(cache_dir, **options):
    extractor = Module(str(cache_dir), Net(channels=1), name="random")
    defaults = {"every_n_steps": 4, "num_samples": 20, "share": None, "batch_size": 10}
    return SampleScores(extractor, **(defaults | options))


def quick(module):
    """Draws in three steps."""
    module.ema.model.sampler = DDIM(Trailing(), 3)
    return module


def fit(callbacks, max_steps=12, module=None, **options):
    """Train with a validation every two steps."""
    module = quick(module or runs.module())
    trainer = runs.trainer(max_steps, callbacks, val_check_interval=2, **options)
    trainer.fit(module, runs.digits())
    return trainer, module


def logged(path):
    """Steps taken -> the score, where there is one."""
    rows = csv.DictReader(path.open())
    return {int(row["step"]) + 1: float(row["fd_random"]) for row in rows if row.get("fd_random")}


@pytest.mark.parametrize("saving", [{}, {"every_n_train_steps": 1}, {"every_n_train_steps": 2}], ids=str)
def test_a_model_checkpoint_never_raises_and_never_reads_an_old_score(tmp_path, saving):
    """The score is measured only at every second validation. The best checkpoint's score is from its own step."""
    scores = callback(tmp_path)
    best = ModelCheckpoint(str(tmp_path / "best"), "{step}", monitor="fd_random", mode="min", save_top_k=1, **saving)
    seen, update = [], ModelCheckpoint._update_best_and_save

    def note(self, current, trainer, candidates):
        seen.append((trainer.global_step, float(current)))
        return update(self, current, trainer, candidates)

    best._update_best_and_save = note.__get__(best)
    fit([scores, best], logger=CSVLogger(str(tmp_path / "metrics.csv")), enable_checkpointing=True)
    measured = logged(tmp_path / "metrics.csv")
    assert list(measured) == [4, 8, 12]
    for step, value in seen:
        assert math.isnan(value) or measured[step] == pytest.approx(value, rel=1e-6)
    if not saving:  # saved at validations, where the score is fresh
        assert float(best.best_model_score) == pytest.approx(min(measured.values()), rel=1e-6)
        step = min(measured, key=measured.get)
        assert best.best_model_path.endswith(f"step={step}.ckpt")


def test_the_last_step_is_measured_once_and_logged_wherever_one_validates(tmp_path):
    scores = callback(tmp_path, every_n_steps=0, share=1e-9)
    trainer, module = fit([scores], max_steps=3, logger=CSVLogger(str(tmp_path / "metrics.csv")))
    assert scores.scores == {}
    trainer.validate(module, runs.digits(), verbose=False)
    first = scores.scores
    trainer.validate(module, runs.digits(), verbose=False)
    assert scores.scores is first
    assert float(trainer.callback_metrics["fd_random"]) == pytest.approx(first["fd_random"].value)
    assert scores.summary()["how"]["step"] == 3
    assert scores.summary()["how"]["nfe"] == 3
    assert 0 < scores.summary()["how"]["seconds_per_1000_samples"] < 50 * scores.summary()["how"]["seconds"]
    near = scores.summary()["scores"]["near_copies_random"]
    assert near == {"value": pytest.approx(near["value"]), "num_samples": 20, "floor": {"value": 0.01}}
    assert 20 * near["value"] == pytest.approx(round(20 * near["value"]))
    assert scores.summary()["scores"]["fd_random"]["floor"]["num_samples"] == 20


def test_scores_leave_the_training_unchanged(tmp_path):
    """The weights are the same to the bit, without the extractor's, and the checkpoint can be resumed."""
    plain = fit([], max_steps=5)[1].state_dict()
    scores = callback(tmp_path, every_n_steps=2)
    trainer, module = fit([scores], max_steps=5)
    assert all(torch.equal(value, plain[name]) for name, value in module.state_dict().items())
    assert list(module.state_dict()) == list(plain)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    (ours,) = (value for name, value in state.items() if "SampleScores" in name)
    assert ours == {"measured_step": 4}


def test_scores_are_those_of_the_averaged_weights(tmp_path):
    scores = callback(tmp_path, every_n_steps=0)
    _, module = fit([scores], max_steps=4)
    check_equal({name: score.value for name, score in scores.scores.items()}, tmp_path, module.ema.model, 20, 10)


def check_equal(found, cache_dir, model, count, batch_size):
    """What was found is what one process finds of the same weights, step by step."""
    made, data = callback(cache_dir), runs.digits()
    data.setup()
    comparison = Comparison(made.extractor, data.splits["train"])
    batches = [range(start, start + batch_size) for start in range(0, count, batch_size)]
    images = torch.cat([model.draw(batch, model.conditions_in_turn(batch), 0).images for batch in batches])
    expected = comparison(made.extractor.extract(InMemory(images)))
    assert list(found) == list(expected)
    for name, score in expected.items():
        assert found[name] == pytest.approx(score.value, rel=1e-6, abs=1e-6), name


class Clock:
    """A second is as long as the machine is busy."""

    def __init__(self, load):
        self.load = load

    def monotonic(self):
        return self.load * time.monotonic()


@pytest.mark.parametrize("share", [None, 1e-9])
def test_no_clock_changes_the_number_or_the_value_but_how_often_it_is_measured(tmp_path, monkeypatch, share):
    """On an idle machine, and on one where everything takes a thousand times as long."""
    found = {}
    for load in (1, 1000):
        for module in (budget, lightning_diffusion.training.callbacks.scores):
            monkeypatch.setattr(module, "time", Clock(load))
        path = tmp_path / f"{load}.csv"
        scores = callback(tmp_path, num_samples=30, share=share, every_n_steps=2)
        fit([scores], max_steps=6, logger=CSVLogger(str(path)))
        found[load] = scores.scores, logged(path)
        rows = [row for row in csv.DictReader(path.open()) if row["fd_random"]]
        assert {float(row["scores/num_samples"]) for row in rows} == {30}
        assert {float(row["floor/fd_random"]) for row in rows} == {scores._floor["fd_random"].value}
        assert scores.scores["fd_random"].num_samples == scores._floor["fd_random"].num_samples == 30
    (idle, curve), (loaded, slow_curve) = found.values()
    assert idle == loaded
    assert all(curve[step] == slow_curve[step] for step in curve.keys() & slow_curve.keys())
    # the first measures the time that one takes, the last is the result
    assert list(curve) == list(slow_curve) == ([2, 4, 6] if share is None else [2, 6])


def test_what_is_monitored_is_measured_whatever_time_it_takes(tmp_path):
    best = ModelCheckpoint(str(tmp_path / "best"), monitor="fd_random", mode="min")
    scores = callback(tmp_path, share=1e-9, every_n_steps=2)
    fit([scores, best], 8, logger=CSVLogger(str(tmp_path / "metrics.csv")), enable_checkpointing=True)
    assert list(logged(tmp_path / "metrics.csv")) == [2, 4, 6, 8]


def test_a_checkpoint_whose_number_a_clock_had_chosen_is_resumed_with_the_configurations(tmp_path):
    scores = callback(tmp_path, num_samples=30)
    scores.load_state_dict({"num_samples": 10, "in_budget": True, "measured_step": 20})
    assert (scores.num_samples, scores.state_dict()) == (30, {"measured_step": 20})


@pytest.mark.parametrize("option", ["every_n_steps=-1", "num_samples=9", "share=0", "share=2", "batch_size=0"])
def test_refuses_values_out_of_range(tmp_path, option):
    key, value = option.split("=")
    with pytest.raises(ValueError, match=option):
        callback(tmp_path, **{key: int(value)})


def test_too_few_training_images_are_named_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="callbacks.scores: scores need at least 10 training images, found 9"):
        callback(tmp_path).check(Images(9))


def test_two_ranks_score_as_one_and_nobody_waits_inside_a_collective(tmp_path):
    """The second rank takes longer for its samples than a collective may last."""
    ranks = start_ranks("tests.training.two_ranks", tmp_path, 6, cwd=tmp_path, forked=True)
    for process in ranks:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-3000:]
    first, second = (json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1))
    assert first == second
    assert first["collectives"]
    denoiser = quick(runs.module()).ema.model
    denoiser.load_state_dict(torch.load(tmp_path / "averaged.pt"))
    check_equal(first["scores"], tmp_path / "cache", denoiser, 50, 25)
