import lightning as L
import pytest
import torch
from torch import nn

from lightning_diffusion.training.ema import ExponentialMovingAverage
from tests.runs import digits, module, trainer


def test_equals_its_closed_form():
    """With d_n = min(decay, (1 + n)/(10 + n)):  θ̄ = Π d_n θ_0 + Σ_n (1 − d_n) Π_{m>n} d_m θ_n"""
    model = nn.Linear(3, 2).double()
    ema = ExponentialMovingAverage(model, decay=0.9)
    expected = model.weight.detach().clone()
    for n in range(200):
        nn.init.normal_(model.weight)
        ema.update(model, n)
        d = min(0.9, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * model.weight.detach()
    torch.testing.assert_close(ema.model.weight, expected, rtol=0, atol=1e-12)


def test_buffers_are_copied_not_averaged():
    model = nn.BatchNorm1d(2)
    ema = ExponentialMovingAverage(model, decay=0.99)
    model.running_mean.fill_(7.0)
    ema.update(model, 1000)
    assert torch.equal(ema.model.running_mean, model.running_mean)


@pytest.mark.slow
def test_after_20000_updates_the_average_is_its_closed_form_and_buffers_are_equal_bit_for_bit():
    """With constant weights θ̄_N = θ + Π d_n (θ̄_0 − θ); a schedule's tables must not drift."""
    denoiser = module().model.denoiser
    ema, N = ExponentialMovingAverage(denoiser, decay=0.9999), 20_000
    with torch.no_grad():
        before = [p.clone().double() for p in ema.model.parameters()]
        for p in denoiser.parameters():
            p.add_(0.5)
    for n in range(N):
        ema.update(denoiser, n)
    product = torch.tensor([min(0.9999, (1 + n) / (10 + n)) for n in range(N)], dtype=torch.float64).log().sum().exp()
    for average, weight, first in zip(ema.model.parameters(), denoiser.parameters(), before, strict=True):
        expected = weight.double() + product * (first - weight.double())
        torch.testing.assert_close(average.double(), expected, rtol=0, atol=1e-6)
    for average, buffer in zip(ema.model.buffers(), denoiser.buffers(), strict=True):
        assert torch.equal(average, buffer)


def test_average_is_apart_from_the_model_stays_in_eval_mode_and_asks_for_no_gradient():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    ema = ExponentialMovingAverage(model, decay=0.5)
    ema.train()
    assert not ema.model[1].training
    assert not any(p.requires_grad for p in ema.parameters())
    with torch.no_grad():
        model[0].weight.add_(1)
    assert not torch.equal(model[0].weight, ema.model[0].weight)


def test_is_updated_once_an_optimizer_step(monkeypatch):
    steps = []
    monkeypatch.setattr(ExponentialMovingAverage, "update", lambda self, model, step: steps.append(step))
    trainer(max_steps=3, accumulate_grad_batches=2).fit(module(), digits())
    assert steps == [0, 1, 2]


def test_validation_and_test_on_the_same_trainer_see_the_average(tmp_path):
    """Lightning's own EMAWeightAveraging gives `trainer.validate(ckpt_path=…)` the raw weights here."""
    model, fitter = module(ema_decay=0.9), trainer(max_steps=20)
    fitter.fit(model, digits())
    fitter.save_checkpoint(tmp_path / "a.ckpt")
    averaged = fitter.validate(model, digits(), ckpt_path=tmp_path / "a.ckpt", verbose=False)[0]["val/loss"]

    raw = module(ema_decay=0.0)
    raw.model.load_state_dict(model.model.state_dict())
    raw.ema.model.load_state_dict(model.model.state_dict())
    unaveraged = trainer(max_steps=1).validate(raw, digits(), verbose=False)[0]["val/loss"]
    assert abs(averaged - unaveraged) > 1e-3

    fresh = module(ema_decay=0.9)
    again = trainer(max_steps=1).validate(fresh, digits(), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert again[0]["val/loss"] == averaged


def test_a_checkpoint_without_the_average_does_not_load(tmp_path):
    fitter = trainer(max_steps=1)
    fitter.fit(module(), digits())
    fitter.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("ema.")}
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(RuntimeError, match=r"Missing key.*ema.model"):
        trainer(max_steps=2).fit(module(), digits(), ckpt_path=tmp_path / "b.ckpt")


def test_a_failing_validation_leaves_trained_and_averaged_weights_where_they_are():
    class Boom(L.Callback):
        def on_validation_batch_end(self, *args):
            raise RuntimeError("boom")

    model = module(ema_decay=0.99)
    before = {}

    class Note(L.Callback):
        def on_validation_start(self, trainer, pl_module):
            before.update({k: v.clone() for k, v in pl_module.state_dict().items()})

    with pytest.raises(RuntimeError, match="boom"):
        trainer(max_steps=4, val_check_interval=2, callbacks=[Note(), Boom()]).fit(model, digits())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_decay_out_of_range():
    with pytest.raises(ValueError, match="module.ema_decay=1"):
        ExponentialMovingAverage(nn.Linear(1, 1), decay=1.0)
