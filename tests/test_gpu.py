"""What only a GPU can show: the same mathematics as on the CPU, and a host that never waits for it."""

import functools

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.data.dataset import Batches, InMemory
from lightning_diffusion.data.workers import Loader
from lightning_diffusion.diffusion import beta, threefry
from lightning_diffusion.diffusion.denoiser import NetworkDenoiser
from lightning_diffusion.diffusion.guidance import Unguided
from lightning_diffusion.diffusion.noise import BatchRNG, IndexedNoise
from lightning_diffusion.diffusion.parameterization import V
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.time_grid import Trailing
from lightning_diffusion.models.contracts import GRAPHS
from lightning_diffusion.models.diffusion.model import DiffusionModel
from lightning_diffusion.networks.unet import UNet
from lightning_diffusion.training.callbacks.checkpoint import LastCheckpoint
from lightning_diffusion.training.devices import prepare_for_inference
from lightning_diffusion.training.guard import Diverged
from lightning_diffusion.training.optimizers.muon import Muon
from tests import runs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def network(patch_size=1, scale_shift=False, resampling="conv"):
    torch.manual_seed(0)
    made = UNet(
        8, 1, 32, (1, 2), 1, (4,) if patch_size == 1 else (), num_classes=10,
        patch_size=patch_size, scale_shift=scale_shift, resampling=resampling,
    )  # fmt: skip
    for parameter in made.parameters():  # a layer that starts at zero would hide those before it
        torch.nn.init.normal_(parameter, std=0.1)
    return made


class Losses(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].detach())


def fit(max_steps=6, optimizer=None, precision="32-true", ckpt_path=None, save=None, callbacks=(), **options):
    of_module = {key: options.pop(key) for key in ("compile", "channels_last") if key in options}
    module = runs.module(dropout=0.0, ema_decay=0.9, **of_module)
    if optimizer is not None:
        module.optimizer = optimizer
    losses = Losses()
    trainer = runs.trainer(
        max_steps, [losses, *callbacks], accelerator="gpu", precision=precision, gradient_clip_val=1.0, **options
    )
    trainer.fit(module, runs.digits(), ckpt_path=ckpt_path)
    if save:
        trainer.save_checkpoint(save)
    return torch.stack(losses.values).cpu(), {k: v.cpu() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("options", [{}, {"patch_size": 2}, {"scale_shift": True, "resampling": "residual"}])
def test_network_and_gradient_are_those_of_the_cpu(options):
    """On a CPU norm, SiLU and convolution are one step, doubling is a transposed convolution; not so here."""
    x, time, condition = torch.randn(4, 1, 8, 8), torch.rand(4) * 1000, Condition(label=torch.arange(4))
    outputs, gradients = [], []
    for device in ("cpu", GPU):
        here = network(**options).to(device)
        output = here(x.to(device), time.to(device), condition.to(device))
        output.square().mean().backward()
        outputs.append(output.detach().cpu())
        gradients.append({name: p.grad.cpu() for name, p in here.named_parameters()})
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3 * float(outputs[0].abs().max()))
    for name, expected in gradients[0].items():
        got = gradients[1][name]
        assert (got - expected).norm() <= 2e-3 * expected.norm() + 1e-6, name


@pytest.mark.parametrize("how", [False, GRAPHS])
def test_samples_are_those_of_the_cpu(how):
    images = []
    for device, compiled in ((torch.device("cpu"), False), (GPU, how)):
        denoiser = NetworkDenoiser(network(), beta.linear(1000), V()).eval()
        model = DiffusionModel(denoiser, 1, 8, 10, DDIM(Trailing(), 5), Unguided)
        model = prepare_for_inference(model, device, "32-true", compiled)
        batches = [model.draw(batch, model.conditions_in_turn(batch), 3).images for batch in (range(8), range(8, 16))]
        images.append(torch.cat(batches).cpu().numpy().astype(int))
    assert images[0].std() > 30
    assert np.abs(images[0] - images[1]).max() <= 1


def test_noise_has_the_bits_of_the_cpu():
    """Across 2³¹, where int32 wraps."""
    items = torch.arange(2**31 - 3, 2**31 + 3)
    for got, expected in zip(*(threefry.words((5, 6), items.to(d), 2**31 - 2, 9) for d in (GPU, "cpu")), strict=True):
        assert torch.equal(got.cpu(), expected)
    assert torch.equal(threefry.uniform((5, 6), items.to(GPU), 7).cpu(), threefry.uniform((5, 6), items, 7))
    z, expected = (IndexedNoise(1, range(500), (1, 28, 28), device)() for device in (GPU, "cpu"))
    torch.testing.assert_close(z.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_the_host_never_waits_for_noise():
    like = torch.empty(8, 3, 8, 8, device=GPU)
    IndexedNoise(0, range(8), (3, 8, 8), GPU)()
    torch.cuda.set_sync_debug_mode("error")
    try:
        noise, rng = IndexedNoise(0, range(8), (3, 8, 8), GPU), BatchRNG(0, 16, GPU)
        drawn = [noise(), noise(), rng.normal(like), rng.uniform(8), rng.spread(8)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.device.type == "cuda" for value in drawn)


@pytest.fixture
def as_found():
    """Lightning leaves torch deterministic behind."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("as_found")
def test_a_resumed_run_ends_bit_for_bit_as_if_never_stopped(tmp_path):
    whole_losses, whole = fit(12, deterministic=True)
    part, _ = fit(5, save=tmp_path / "a.ckpt", deterministic=True)
    rest, resumed = fit(12, ckpt_path=tmp_path / "a.ckpt", deterministic=True)
    assert torch.equal(torch.cat([part, rest]), whole_losses)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_reduced_precision_follows_the_full_one(precision, name):
    optimizer = {
        "adamw": functools.partial(torch.optim.AdamW, lr=1e-3, fused=True),
        "muon": functools.partial(Muon, lr=1e-2),
    }[name]
    exact, rounded = (fit(20, optimizer, precision=kind)[0] for kind in ("32-true", precision))
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.02)
    assert exact[-5:].mean() < exact[:5].mean()


@pytest.mark.parametrize("channels_last", [False, True])
def test_by_cuda_graphs_the_curve_is_the_same(channels_last):
    """With a validation in between."""
    plain, by_graphs = (
        fit(8, compile=how, channels_last=channels_last, val_check_interval=4) for how in (False, GRAPHS)
    )
    torch.testing.assert_close(by_graphs[0], plain[0], rtol=1e-3, atol=1e-4)
    for key, value in plain[1].items():
        torch.testing.assert_close(by_graphs[1][key], value, rtol=1e-2, atol=1e-3, msg=key)


class NoWaiting(L.Callback):
    """Raises where the host waits for the device within a step."""

    steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx >= 3:
            torch.cuda.set_sync_debug_mode("error")
            self.steps += 1

    def on_train_batch_end(self, *args):
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *args):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_host_never_waits_within_a_step(name):
    optimizer = {
        "adamw": functools.partial(torch.optim.AdamW, lr=1e-3, fused=True),
        "muon": functools.partial(Muon, lr=1e-2),
    }[name]
    watch = NoWaiting()
    fit(8, optimizer, precision="bf16-mixed", callbacks=[watch], log_every_n_steps=100)
    assert watch.steps == 5


def test_a_wait_would_be_seen():
    class Waits(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            float(next(pl_module.parameters()).grad.sum())

    with pytest.raises(RuntimeError, match="synchroniz"):
        fit(8, callbacks=[NoWaiting(), Waits()], log_every_n_steps=100)


def test_a_run_that_diverges_ends_with_a_good_checkpoint(tmp_path):
    module = runs.module()
    draw, seen = module.objective.draw, []

    def drawn(*args):
        times, losses = draw(*args)
        seen.append(len(losses))
        return times, torch.where(torch.arange(16, device=GPU) == 2, torch.nan, losses) if len(seen) == 5 else losses

    module.objective.draw = drawn
    keeper = LastCheckpoint(str(tmp_path), every_n_steps=2)
    trainer = runs.trainer(20, [keeper], accelerator="gpu", enable_checkpointing=True)
    with pytest.raises(Diverged, match=r"step 5: the loss of image 66 in the training order at t = .* is not finite"):
        trainer.fit(module, runs.digits())
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_condition_is_pinned_and_moved_with_its_batch(workers):
    dataset = Batches(InMemory(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.arange(6)), num_classes=6)
    (batch,) = Loader(dataset, num_workers=workers, sampler=[(0, torch.arange(6))], pin_memory=True)
    assert batch.images.is_pinned()
    assert batch.condition.label.is_pinned()
    moved = move_data_to_device(batch, GPU)
    assert moved.condition.label.device.type == "cuda"
    assert moved.condition.label.tolist() == [*range(6)]


def test_graphs_replay_with_the_condition_of_the_call():
    made = network().eval().to(GPU)
    x, time = torch.randn(4, 1, 8, 8, device=GPU), torch.rand(4, device=GPU) * 1000
    compiled = torch.compile(made, mode=GRAPHS)
    with torch.inference_mode():
        for first in (0, 1, 2, 3, 4):  # the first calls warm up and record
            condition = Condition(label=torch.arange(first, first + 4)).to(GPU)
            torch.testing.assert_close(compiled(x, time, condition), made(x, time, condition), rtol=1e-3, atol=1e-3)
