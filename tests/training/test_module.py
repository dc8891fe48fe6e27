import itertools
import math

import lightning as L
import pytest
import torch

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion.time_sampler import Importance
from lightning_diffusion.training.callbacks.checkpoint import LastCheckpoint
from lightning_diffusion.training.guard import Diverged
from lightning_diffusion.training.module import TrainingModule
from tests import runs
from tests.runs import digits, module, trainer


class Losses(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def fit(max_steps, ckpt_path=None, save=None, **options):
    model, losses = module(ema_decay=0.9), Losses()
    model.objective.time_sampler = Importance(num_bins=2, warmup=1)  # it has a state to lose
    runner = trainer(max_steps, [losses], **options)
    runner.fit(model, digits(num_workers=options.pop("num_workers", 0)), ckpt_path=ckpt_path)
    if save:
        runner.save_checkpoint(save)
    return losses.values, {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_ends_bit_for_bit_as_if_never_stopped(tmp_path, accumulate):
    """Data order, times, noise and dropout are functions of (seed, batch), in mid-epoch too (1,500 images)."""
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 7}
    whole_losses, whole = fit(24, **options)
    part_losses, _ = fit(11, save=tmp_path / "a.ckpt", **options)
    torch.manual_seed(12345)
    rest_losses, resumed = fit(24, ckpt_path=tmp_path / "a.ckpt", **options)
    assert part_losses + rest_losses == whole_losses
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_validation_does_not_disturb_training():
    assert fit(12, val_check_interval=3)[0] == fit(12)[0]


def test_steps_and_ranks_draw_different_noise():
    model = module(dropout=0.0).eval()
    model.trainer = trainer(1)
    images, labels = digits_batch()
    losses = {model.training_step(Batch(images, by_label(labels), start)).item() for start in range(20)}
    assert len(losses) == 20  # the same images: only the noise differs
    again = model.training_step(Batch(images, by_label(labels), 7)).item()
    assert again in losses


def digits_batch(count=8):
    data = digits()
    data.setup()
    return data.splits["train"][torch.arange(count)]


def test_validation_noise_belongs_to_the_image_not_to_the_batch():
    model = module()
    measured = [
        trainer(1, limit_val_batches=1.0).validate(model, digits(batch_size=size), verbose=False)[0]
        for size in (297, 50, 7)
    ]
    for name in ("val/loss", "val/bits_per_dim", "val/bits_per_dim_se"):
        values = [row[name] for row in measured]
        assert max(values) - min(values) < 1e-5, name
    results = [row["val/loss"] for row in measured]
    other_seed = module()
    other_seed.seed = 99
    again = trainer(1, limit_val_batches=1.0).validate(other_seed, digits(batch_size=50), verbose=False)
    assert again[0]["val/loss"] == results[1]  # runs with different seeds compare


def test_optimizer_holds_the_trained_weights_and_not_the_average():
    model = module()
    runner = trainer(2)
    runner.fit(model, digits())
    held = {id(p) for group in runner.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in model.model.parameters()}


def test_learning_rate_warms_up_and_comes_down():
    rates = []

    class Note(L.Callback):
        def on_train_batch_start(self, trainer, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer(100, [Note()]).fit(module(max_steps=100), digits(batch_size=2))
    assert rates[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert rates[5] == pytest.approx(1e-3)
    assert rates[-1] < 1e-6
    assert all(a >= b for a, b in zip(rates[5:], rates[6:], strict=False))


def test_gradients_are_clipped_by_their_norm_and_fused_adamw_may_run_in_bf16():
    model = module()
    model.optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    norms = []

    class Note(L.Callback):
        def on_train_batch_end(
            self, trainer, pl_module, *args
        ):  # the step has been taken, its gradients are still there
            norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in pl_module.model.parameters()])))

    trainer(3, [Note()], gradient_clip_val=1e-3, precision="bf16-mixed").fit(model, digits())
    assert norms == pytest.approx([1e-3] * 3, rel=1e-2)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    data = digits(batch_size=15)
    data.setup()
    data.trainer = type("Two", (), {"world_size": 2})()
    with pytest.raises(ValueError, match="data.batch_size=15 does not divide over 2 devices"):
        data.train_dataloader()


def test_channels_last_changes_the_order_in_memory_alone():
    images, labels = digits_batch()
    losses = []
    for channels_last in (False, True):
        model = module(dropout=0.0, channels_last=channels_last)
        model.trainer = trainer(1)
        for each in (model.model, model.ema.model):
            weight = each.denoiser.backbone.down[0][0].block.conv_2.weight
            assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        losses.append(float(model.training_step(Batch(images, by_label(labels), 0))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.fixture(params=[False, True], ids=["at once", "a step later"])
def ahead(request, monkeypatch):
    """Whether the host runs ahead of the device, as with a GPU."""
    monkeypatch.setattr(TrainingModule, "_runs_ahead", request.param)
    return request.param


PLACES, VALUES, EVERY = ("loss", "gradient", "sample", "weight"), (math.nan, math.inf, -math.inf), (1, 2, 20)
DIVERGING = [  # a third of them by default: each place with each value and with each interval, each value with each
    pytest.param(place, value, every, marks=[pytest.mark.slow] if (i + j + k) % 3 else [])
    for i, place in enumerate(PLACES)
    for j, value in enumerate(VALUES)
    for k, every in enumerate(EVERY)
]


class TestDiverging:
    """inf or NaN in a loss, a gradient or a weight ends the run before anything is kept of it."""

    def diverging(self, monkeypatch, place, value, at=5):
        module, steps = runs.module(), itertools.count(1)
        draw = module.objective.draw

        def drawn(denoiser, x_0, condition, draws):
            here = next(steps) == at
            if here and place == "sample":
                x_0[2, 0, 3, 3] = value
            if here and place == "weight":
                next(denoiser.parameters()).data.view(-1)[0] = value
            times, losses = draw(denoiser, x_0, condition, draws)
            if here and place == "loss":
                losses = torch.where(torch.arange(len(losses)) == 2, value, losses)
            if here and place == "gradient":
                next(denoiser.parameters()).register_hook(lambda gradient: gradient * value)
            return times, losses

        monkeypatch.setattr(module.objective, "draw", drawn)
        return module

    @pytest.mark.parametrize(("place", "value", "every_n_steps"), DIVERGING)
    def test_the_run_stops_where_it_happens_and_the_last_checkpoint_is_finite(
        self, monkeypatch, tmp_path, ahead, place, value, every_n_steps
    ):
        module = self.diverging(monkeypatch, place, value)
        keeper = LastCheckpoint(str(tmp_path), every_n_steps=every_n_steps)
        trainer = runs.trainer(20, [keeper], enable_checkpointing=True)
        with pytest.raises(Diverged) as error:
            trainer.fit(module, runs.digits())
        assert trainer.global_step == (5 if ahead else 4)
        # batches of 16: the fifth begins with image 64
        message = {
            "loss": "step 5: the loss of image 66 in the training order at t = ",
            "sample": "step 5: the loss of image 66 in the training order at t = ",
            "gradient": "step 5: the gradient is not finite, although every loss is (images from 64 in",
            "weight": "step 5: the loss of image 64 in the training order at t = ",
        }
        assert str(error.value).startswith(message[place])
        if every_n_steps <= 4:
            checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
            assert checkpoint["global_step"] == 4
            assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
        if place != "weight" and not ahead:
            assert all(value.isfinite().all() for value in module.state_dict().values())

    @pytest.mark.parametrize("last", [True, False])
    def test_in_the_last_step_too_and_before_a_validation(self, monkeypatch, ahead, last):
        module, validated = self.diverging(monkeypatch, "gradient", math.nan), []
        monkeypatch.setattr(module, "validation_step", lambda batch: validated.append(batch))
        options = {} if last else {"val_check_interval": 5}
        with pytest.raises(Diverged, match="step 5: the gradient is not finite"):
            runs.trainer(5 if last else 20, **options).fit(module, runs.digits())
        assert validated == []

    def test_in_any_batch_of_a_step(self, monkeypatch, ahead):
        module = self.diverging(monkeypatch, "loss", math.nan)  # the first of the third step's two batches
        with pytest.raises(Diverged, match="step 3: the loss of image 66 in the training order"):
            runs.trainer(20, accumulate_grad_batches=2).fit(module, runs.digits())

    def test_or_leaves_the_step_out(self, monkeypatch, ahead, capsys):
        module = self.diverging(monkeypatch, "gradient", math.nan, at=8)
        module._guard.policy = "skip"
        runs.trainer(9).fit(module, runs.digits())
        assert module.trainer.global_step == 9
        assert "step 8: the gradient is not finite" in capsys.readouterr().err
        assert all(value.isfinite().all() for value in module.state_dict().values())

    @pytest.mark.parametrize("steps", [4, 30, 200])
    def test_a_run_that_leaves_out_most_steps_stops(self, ahead, steps):
        """Every step from the first on, from step 20 on, and in a run of few steps: not one of them ends well."""
        module = runs.module(nonfinite="skip")
        first = 20 if steps == 200 else 0
        original = module.objective.draw

        def drawn(denoiser, *arguments):
            times, losses = original(denoiser, *arguments)
            return times, losses * (math.nan if module.global_step >= first else 1)

        module.objective.draw = drawn
        with pytest.raises(Diverged, match=r"skipped (\d+) of the last (\d+) steps, whose loss or gradient") as error:
            runs.trainer(steps).fit(module, runs.digits())
        assert module.trainer.global_step <= 50
        skipped, last = (int(word) for word in str(error.value).split() if word.isdigit())
        assert skipped > last / 2

    def test_a_run_that_leaves_out_a_third_goes_on(self, ahead):
        module = runs.module(nonfinite="skip")
        original = module.objective.draw

        def drawn(denoiser, *arguments):
            times, losses = original(denoiser, *arguments)
            return times, losses * (math.nan if module.global_step % 3 == 0 else 1)

        module.objective.draw = drawn
        runs.trainer(30).fit(module, runs.digits())
        assert module.trainer.global_step == 30
