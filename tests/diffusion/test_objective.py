import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.denoiser import NetworkDenoiser
from lightning_diffusion.diffusion.distance import Absolute, Huber, Squared
from lightning_diffusion.diffusion.objective import Objective
from lightning_diffusion.diffusion.parameterization import X0, Eps, V
from lightning_diffusion.diffusion.time_sampler import Uniform
from lightning_diffusion.diffusion.weighting import Simple
from tests.test_configs import build, compose


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value, self.seen = value, []

    def forward(self, x, time, condition):
        self.seen.append((x, time, condition))
        return torch.full_like(x, self.value)


def test_uniform_times_and_eps_is_l_simple():
    """E‖ε − c‖² = 1 + c² for a network with constant output c. Ref: DDPM Eq. 14"""
    network = Constant(0.5)
    denoiser = NetworkDenoiser(network, schedules.linear(), Eps())
    torch.manual_seed(0)
    loss = Objective(Uniform(), Simple())(denoiser, torch.zeros(4000, 1, 4, 4))
    assert abs(float(loss) - 1.25) < 5 * (2 / 64_000) ** 0.5
    time = network.seen[0][1]
    assert time.min() >= 0
    assert time.max() <= 999
    assert abs(float(time.mean()) - 499.5) < 5 * 1000 / 12**0.5 / 4000**0.5


def test_at_gives_each_item_its_own_loss():
    schedule = schedules.cosine()
    x_0, eps = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    t = torch.tensor([1.0, 500.0, 1000.0])
    for parameterization in (Eps(), X0(), V()):
        denoiser = NetworkDenoiser(Constant(0.0), schedule, parameterization)
        losses = Objective(Uniform(), Simple()).at(denoiser, x_0, eps, t).loss
        target = parameterization.target(schedule, x_0, eps, t)
        torch.testing.assert_close(losses, target.square().mean((1, 2, 3)))


def test_distances_have_known_values():
    output, target = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 0.5, 4.0])
    assert Squared()(output, target).tolist() == [0, 0.25, 9]
    assert Absolute()(output, target).tolist() == [0, 0.5, 3]
    assert Huber()(output, target).tolist() == [0, 0.125, 2.5]
    assert Huber(delta=2.0)(output, target).tolist() == [0, 0.125, 4]
    with pytest.raises(ValueError, match="^distance.delta=0: choose delta > 0"):
        Huber(delta=0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], 6.25),
        (["distance=absolute"], 2.5),
        (["distance=huber", "distance.delta=0.5"], 1.125),
        (["objective.distance=huber"], 2.0),  # the word that earlier runs used
    ],
)
def test_the_distance_of_the_loss_is_an_option_or_a_name(words, expected):
    objective = build(OmegaConf.to_container(compose(*words), resolve=True)["objective"])
    denoiser, x_0 = NetworkDenoiser(Constant(0.5), schedules.linear(), X0()), torch.full((2, 1, 1, 1), 3.0)
    assert objective.at(denoiser, x_0, torch.zeros_like(x_0), torch.ones(2)).loss.tolist() == [expected] * 2


def test_mathematics_is_float32_under_bf16_autocast():
    """At t = 1 of 1000, ᾱ rounds to 1 in bfloat16. The network must still receive noise, and the loss be float32."""
    network = Constant(0.0)
    denoiser = NetworkDenoiser(network, schedules.linear(), Eps())
    x_0, eps = torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = Objective(Uniform(), Simple()).at(denoiser, x_0, eps, torch.ones(2)).loss
    assert loss.dtype == torch.float32
    x_t = network.seen[0][0]
    assert x_t.dtype == torch.float32
    torch.testing.assert_close(x_t, torch.full_like(x_t, (1 - 1e-4) ** 0.5 + 0.01))


def test_network_time_is_ddpms_clock_at_any_T():
    network = Constant(0.0)
    denoiser = NetworkDenoiser(network, schedules.linear(T=50), Eps())
    denoiser(torch.zeros(2, 1, 2, 2), torch.tensor(50.0, dtype=torch.float64))
    assert network.seen[0][1].tolist() == [980.0, 980.0]
    denoiser(torch.zeros(2, 1, 2, 2), torch.tensor(1.0, dtype=torch.float64))
    assert network.seen[1][1].tolist() == [0.0, 0.0]


def test_fixed_noise_is_spread_over_the_whole_clock_and_belongs_to_the_item():
    network = Constant(0.0)
    denoiser = NetworkDenoiser(network, schedules.linear(), Eps())
    x_0 = torch.zeros(100, 1, 4, 4)
    losses = Objective(Uniform(), Simple()).on_fixed_noise(denoiser, x_0, range(50, 150), seed=0).loss
    times = network.seen[0][1].sort().values
    assert times[0] < 20
    assert times[-1] > 980
    assert times.diff().max() < 30  # 100 random times would leave gaps of about 50
    again = Objective(Uniform(), Simple()).on_fixed_noise(denoiser, x_0[:7], range(60, 67), seed=0).loss
    torch.testing.assert_close(again, losses[10:17])
    other = Objective(Uniform(), Simple()).on_fixed_noise(denoiser, x_0[:7], range(60, 67), seed=1).loss
    assert not torch.allclose(other, again)


def test_labels_are_dropped_only_while_training():
    network = Constant(0.0)
    network.num_classes = 10
    denoiser = NetworkDenoiser(network, schedules.linear(), Eps(), label_dropout=0.2)
    labels, x_0 = torch.arange(5000) % 10, torch.zeros(5000, 1, 1, 1)
    torch.manual_seed(0)
    Objective(Uniform(), Simple())(denoiser, x_0, by_label(labels))
    seen = network.seen[0][2].label
    dropped = seen == 10
    assert abs(float(dropped.float().mean()) - 0.2) < 5 * (0.2 * 0.8 / 5000) ** 0.5
    assert torch.equal(seen[~dropped], labels[~dropped])
    Objective(Uniform(), Simple())(denoiser.eval(), x_0, by_label(labels))
    assert torch.equal(network.seen[1][2].label, labels)


@pytest.mark.parametrize(
    ("parameterization", "factor"),
    [(V(), lambda snr: 1 + snr), (Eps(), lambda snr: snr), (X0(), lambda snr: torch.ones_like(snr))],
    ids=["v", "eps", "x0"],
)
def test_the_error_of_x0_is_the_loss_in_other_units(parameterization, factor):
    """‖v̂ − v‖² = ‖x̂_0 − x_0‖² (1 + SNR), ‖ε̂ − ε‖² = ‖x̂_0 − x_0‖² SNR, where α² + σ² = 1."""
    denoiser = NetworkDenoiser(Constant(0.3), schedules.linear(T=50), parameterization)
    x_0 = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = Objective(Uniform(), Simple()).on_fixed_noise(denoiser, x_0, range(40), seed=0)
    t = (found.time.double() * 50).round()
    assert ((t >= 1) & (t <= 50)).all()
    snr = denoiser.schedule.logsnr(t).exp()
    torch.testing.assert_close(found.loss.double(), found.error.double() * factor(snr), rtol=2e-3, atol=1e-5)
