"""Generative adversarial networks: two players in one backward pass, convergence of known games, networks, drawing."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from lightning_diffusion.codecs.condition import Condition, by_label
from lightning_diffusion.codecs.pixels import to_model, to_uint8
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.models.contracts import Training
from lightning_diffusion.models.gan.game import Game, Minimax, NonSaturating, Relativistic
from lightning_diffusion.models.gan.model import GAN
from lightning_diffusion.models.gan.objective import Adversarial
from lightning_diffusion.networks.adversarial import Block, ResidualDiscriminator, ResidualGenerator
from lightning_diffusion.training.module import TrainingModule
from lightning_diffusion.training.optimizers.muon import Muon
from tests.runs import digits, trainer

GAMES = [Relativistic(), Minimax(), NonSaturating()]


def randomized(module: nn.Module, std: float = 0.1) -> nn.Module:
    """With no weight at zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return module


def small(num_classes: int | None = 3) -> GAN:
    network = ResidualGenerator(2, [5, 7], latent_dim=3, width=4, depth=2, num_classes=num_classes)
    return GAN(randomized(network), 2, [5, 7], num_classes)


def opponent(num_classes: int | None = 3) -> nn.Module:
    return randomized(ResidualDiscriminator(2, [5, 7], width=4, depth=2, num_classes=num_classes))


def batch(count: int = 6, start: int = 0) -> Batch:
    images = torch.randint(256, (count, 2, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return Batch(images, by_label(torch.arange(count) % 3), start)


def latents(count: int) -> torch.Tensor:
    return BatchRNG(0).normal(torch.empty(count, 3))


def loss(objective: Adversarial, model: GAN, data: Batch, progress: float = 0.0):
    return objective.loss(model, data, BatchRNG(0), Training(progress, model))


def test_patches_are_channels_of_a_smaller_image():
    z, label = torch.randn(3, 4), by_label(torch.tensor([0, 2, 1]))
    options = {"width": 4, "depth": 1, "num_classes": 3}
    generator = randomized(ResidualGenerator(2, [6, 8], latent_dim=4, patch_size=2, **options))
    folded = ResidualGenerator(8, [3, 4], latent_dim=4, **options)
    folded.load_state_dict(generator.state_dict())
    images = generator(z, label)
    assert images.shape == (3, 2, 6, 8)
    assert torch.equal(nn.functional.pixel_unshuffle(images, 2), folded(z, label))
    discriminator = randomized(ResidualDiscriminator(2, [6, 8], patch_size=2, **options))
    folded = ResidualDiscriminator(8, [3, 4], **options)
    folded.load_state_dict(discriminator.state_dict())
    assert torch.equal(discriminator(images, label), folded(nn.functional.pixel_unshuffle(images, 2), label))


@pytest.mark.parametrize("game", GAMES, ids=lambda game: type(game).__name__)
def test_one_backward_pass_gives_the_gradients_of_two_to_the_bit(game):
    model, objective, data = small(), Adversarial(opponent(), game, r1=0.3, r2=0.7, final=0.5), batch()
    loss(objective, model, data, progress=0.6).values.mean().backward()
    together = [p.grad for p in [*model.parameters(), *objective.parameters()]]

    D, condition, x = objective.discriminator, data.condition, to_model(data.images).requires_grad_()
    fake = model.generate(latents(6), condition).detach().requires_grad_()
    of_real = D(x, condition)
    (slope_real,) = torch.autograd.grad(of_real.sum(), x, create_graph=True)
    of_fake = D(fake, condition)
    (slope_fake,) = torch.autograd.grad(of_fake.sum(), fake, create_graph=True)
    penalty = 0.3 * slope_real.square().flatten(1).sum(1) + 0.7 * slope_fake.square().flatten(1).sum(1)
    gamma = 0.5 + 0.5 * (1 + math.cos(math.pi * 0.6)) / 2
    discriminator = torch.autograd.grad(
        (game.discriminator(of_real, of_fake) + gamma / 2 * penalty).mean(), list(D.parameters()), allow_unused=True
    )
    scores = D(model.generate(latents(6), condition), condition)
    generator = torch.autograd.grad(game.generator(D(x, condition), scores).mean(), list(model.parameters()))
    assert len(together) == len(generator) + len(discriminator)
    for ours, theirs in zip(together, [*generator, *discriminator], strict=True):
        if theirs is None:  # the bias of D(x) − D(G(z))
            assert ours is None or not ours.any()
        else:
            assert torch.equal(ours, theirs)
            assert ours.any() or ours.numel() == 1


class Point(nn.Module):
    """A generator of one value θ, as in the Dirac-GAN."""

    latent_dim = 1

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, z: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        return self.value * torch.ones(len(z), 1, 1, 1)


class Line(Point):
    """D(x) = ψ x, without a bias."""

    def forward(self, x: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        return self.value * x[:, 0, 0, 0]


def dirac(steps: int, **penalties: float) -> list[float]:
    """The distance to the equilibrium (θ, ψ) = (x, 0) after each simultaneous step; at the start it is 0.54."""
    model, objective = GAN(Point(-0.5), 1, 1), Adversarial(Line(0.2), Relativistic(), **penalties)
    data = Batch(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), None, 0)  # x = −1
    optimizer, distances = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.3), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss(objective, model, data).values.mean().backward()
        optimizer.step()
        distances.append(math.hypot(model.generator.value.item() + 1, objective.discriminator.value.item()))
    return distances


@pytest.mark.parametrize("penalties", [{"r1": 0.25, "r2": 0.25}, {"r1": 0.5, "r2": 0}, {"r1": 0, "r2": 0.5}])
def test_penalties_make_the_dirac_gan_converge(penalties):
    assert dirac(100, **penalties)[-1] < 1e-3


def test_without_penalties_the_dirac_gan_circles():
    distances = dirac(100, r1=0, r2=0)
    assert min(distances) > 0.5
    assert max(distances) < 5


@pytest.mark.parametrize(
    ("game", "generator", "discriminator"),
    [
        (Relativistic(), -math.log(1 / (1 + math.exp(1.7))), -math.log(1 / (1 + math.exp(-1.7)))),
        (Minimax(), math.log(1 - 1 / (1 + math.exp(0.4))), math.log(1 + math.exp(-1.3)) + math.log(1 + math.exp(-0.4))),
        (NonSaturating(), math.log(1 + math.exp(0.4)), math.log(1 + math.exp(-1.3)) + math.log(1 + math.exp(-0.4))),
    ],
)
def test_games_by_hand(game: Game, generator, discriminator):
    real, fake = torch.tensor([1.3]), torch.tensor([-0.4])
    assert game.generator(real, fake).item() == pytest.approx(generator, rel=1e-5)
    assert game.discriminator(real, fake).item() == pytest.approx(discriminator, rel=1e-5)


class Paraboloid(nn.Module):
    """D(x) = ½ a ‖x‖², whose gradient is a x."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        return self.a / 2 * x.square().flatten(1).sum(1)


def test_loss_and_figures_by_hand():
    model, data = small(), batch()
    found = loss(Adversarial(Paraboloid(), Relativistic(), r1=0.3, r2=0.7), model, data)
    x2, g2 = (
        images.square().flatten(1).sum(1).detach()
        for images in (to_model(data.images), model.generate(latents(6), data.condition))
    )
    gap, penalty = 0.4 * (g2 - x2), (0.3 * 0.64 * x2 + 0.7 * 0.64 * g2) / 2
    torch.testing.assert_close(found.values.detach(), softplus(-gap) + softplus(gap) + penalty)
    expected = {
        "generator": softplus(-gap), "discriminator": softplus(gap), "penalty": penalty, "real": 0.4 * x2,
        "fake": 0.4 * g2, "r1": 0.64 * x2, "r2": 0.64 * g2, "r1_over_r2": x2 / g2.mean(),
    }  # fmt: skip
    torch.testing.assert_close(dict(found.figures), expected)
    assert not any(value.requires_grad for value in found.figures.values())


def test_the_ratio_of_the_penalties_is_that_of_their_means_and_needs_both():
    """Of the batch's penalties, whatever their weights. Means of ratios would differ."""
    figures = loss(Adversarial(Paraboloid(), Relativistic(), r1=0.3, r2=0.7), small(), batch()).figures
    ratio = figures["r1"].mean() / figures["r2"].mean()
    torch.testing.assert_close(figures["r1_over_r2"].mean(), ratio)
    assert not torch.isclose((figures["r1"] / figures["r2"]).mean(), ratio, rtol=1e-3)
    for r1, r2 in ((0, 1), (1, 0)):
        assert "r1_over_r2" not in loss(Adversarial(Paraboloid(), Relativistic(), r1, r2), small(), batch()).figures


def test_penalties_fall_with_the_progress_of_training():
    model, objective = small(), Adversarial(Paraboloid(), Relativistic(), r1=2, r2=2, final=0.1)
    assert [objective.gamma(progress) for progress in (0, 0.5, 1)] == pytest.approx([1, 0.55, 0.1])
    first, half = (loss(objective, model, batch(), progress) for progress in (0.0, 0.5))
    torch.testing.assert_close(half.figures["penalty"], 0.55 * first.figures["penalty"])
    torch.testing.assert_close(
        first.values - half.values, first.figures["penalty"] - half.figures["penalty"], atol=1e-4, rtol=1e-5
    )


def test_held_out_losses_belong_to_the_image_and_are_log_2_for_a_blind_discriminator():
    model, data, D = small(), batch(), opponent()
    objective = Adversarial(D, Relativistic())
    whole = objective.held_out(model, data, range(10, 16), seed=0).figures
    assert list(whole) == list(objective.figures)
    part = Batch(data.images[1:3], data.condition[1:3], 11)
    for name, values in objective.held_out(model, part, range(11, 13), seed=0).figures.items():
        torch.testing.assert_close(values, whole[name][1:3])
    torch.testing.assert_close(whole["real"], D(to_model(data.images), data.condition).detach())
    torch.testing.assert_close(whole["loss"], softplus(whole["real"] - whole["fake"]))
    torch.testing.assert_close(whole["discriminator"], softplus(whole["fake"] - whole["real"]))
    for weight in D.parameters():
        nn.init.zeros_(weight)
    blind = objective.held_out(model, data, range(6), seed=0).figures
    torch.testing.assert_close(blind["loss"], torch.full((6,), math.log(2)))


def test_a_share_of_classes_is_left_out_for_both_images_of_a_pair():
    model, B, seen = small(), 300, []
    D = opponent()
    D.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].label))
    data = Batch(torch.zeros(B, 2, 5, 7, dtype=torch.uint8), by_label(torch.ones(B, dtype=torch.long)), 0)
    model.generator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].label))
    loss(Adversarial(D, Relativistic(), label_dropout=0.5), model, data)
    assert len(seen) == 4
    assert all(torch.equal(label, seen[0]) for label in seen)
    assert set(seen[0].tolist()) == {1, 3}
    assert (seen[0] == 3).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(B))


def test_without_a_class_is_a_class_of_its_own():
    model, D, z, x = small(), opponent(), latents(1), torch.rand(1, 2, 5, 7)
    for label in range(4):
        condition, same = by_label(torch.tensor([label])), label == 3
        assert torch.equal(model.generate(z, None), model.generate(z, condition)) == same
        assert torch.equal(D(x, None), D(x, condition)) == same
    with pytest.raises(ValueError, match="label"):
        opponent(num_classes=None)(x, by_label(torch.tensor([0])))


def test_the_class_enters_the_discriminator_by_a_projection():
    D, x, features = opponent(), torch.rand(2, 2, 5, 7).requires_grad_(), []
    D.head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    scores = D(x, by_label(torch.tensor([0, 2])))
    weight = D.head.weight + D.classes.weight[torch.tensor([0, 2])]
    expected = (weight * features[0]).sum(1) + D.head.bias
    torch.testing.assert_close(scores, expected)
    slopes = (torch.autograd.grad(value.sum(), x, retain_graph=True)[0] for value in (scores, expected))
    torch.testing.assert_close(*slopes)


def test_blocks_start_as_identities_and_by_fixup():
    block, x = Block(64, num_blocks=9), torch.randn(2, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x)
    he = math.sqrt(2 / (1.04 * 64 * 9))
    assert block.conv.weight.std().item() == pytest.approx(he / 3, rel=0.02)  # 9^(−1/2)
    randomized(block)
    assert not torch.equal(block(x), x)


def test_the_networks_double_and_halve_any_sides_and_normalize_nothing():
    D, x = opponent(), torch.rand(4, 2, 5, 7)
    torch.testing.assert_close(D(x, None)[1:2], D(x[1:2], None))  # no statistics of the batch
    assert small().generate(latents(4), None).shape == (4, 2, 5, 7)
    assert small().generator.bottom == (16, 2, 2)
    modules = [*small().modules(), *D.modules()]
    assert not [module for module in modules if "norm" in type(module).__name__.lower()]


def test_a_sample_depends_on_its_seed_number_and_class_only_and_the_walk_ends_there():
    model, condition = small(), by_label(torch.arange(4) % 3)
    together = model.draw(range(4), condition, seed=3).images
    alone = model.draw([2], condition[2:3], seed=3).images
    assert (alone[0].int() - together[2].int()).abs().max() <= 1
    assert not torch.equal(together, model.draw(range(4), condition, seed=4).images)
    assert not torch.equal(together[0], together[3]), "samples of a class differ"
    walk = list(model.trajectory(range(4), condition, seed=3))
    assert torch.equal(walk[-1], together)
    assert len(walk) >= model.num_steps
    assert torch.equal(walk[0][0], walk[0][3]), "the walk begins at z = 0, the same for each image of a class"


def test_both_players_are_trained_and_saved_and_only_the_generator_is_averaged():
    model = GAN(ResidualGenerator(1, 8, 4, width=4, depth=1, num_classes=10), 1, 8, 10)
    objective = Adversarial(ResidualDiscriminator(1, 8, width=4, depth=1, num_classes=10), Relativistic())
    module = TrainingModule(
        model, objective, lambda p: torch.optim.Adam(p), lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)
    )
    before = {name: value.clone() for name, value in module.state_dict().items()}
    runner = trainer(3, log_every_n_steps=1)
    runner.fit(module, digits(batch_size=8))
    after = module.state_dict()
    names = [name for name in before if name.startswith("objective.discriminator.")]
    assert len(names) == len(objective.discriminator.state_dict())
    assert {name.split(".")[0] for name in before} == {"model", "objective", "ema"}
    assert sum(name.startswith("ema.") for name in before) == len(model.state_dict())
    assert not torch.equal(
        before["objective.discriminator.first.weight"], after["objective.discriminator.first.weight"]
    )
    assert not torch.equal(before["model.generator.head.weight"], after["model.generator.head.weight"])
    logged = runner.logged_metrics
    total = sum(logged[f"train/{name}"] for name in ("generator", "discriminator", "penalty"))
    assert logged["train/loss"].item() == pytest.approx(total.item(), rel=1e-5)
    assert {"train/real", "train/fake", "train/r1", "train/r2"} <= logged.keys()


class Perceptron(nn.Sequential):
    """Of two numbers: a generator of points, as images of two channels, or a discriminator."""

    latent_dim = 2

    def __init__(self, outputs: int, width: int = 64) -> None:
        sides = [2, width, width, width, outputs]
        linear = [nn.Linear(a, b) for a, b in zip(sides[:-1], sides[1:], strict=True)]
        super().__init__(nn.Flatten(), *[part for layer in linear for part in (layer, nn.LeakyReLU(0.2))][:-1])
        for layer in linear:
            nn.init.kaiming_normal_(layer.weight, a=0.2)
        nn.init.normal_(linear[-1].weight, std=0.5 * math.sqrt(2 / (1.04 * width)))

    def forward(self, x: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        y = super().forward(x)
        return y[:, 0] if y.shape[1] == 1 else y[:, :, None, None]


def found_modes(game: Game, weight: float, steps: int = 2000, B: int = 256, seed: int = 0) -> int:
    """How many of 25 narrow Gaussians on a grid hold at least 10 of 2,000 samples within 0.1 of their centre."""
    centres = torch.cartesian_prod(*[torch.linspace(-0.8, 0.8, 5)] * 2)
    torch.manual_seed(seed)
    model, objective = GAN(Perceptron(2), 2, 1), Adversarial(Perceptron(1), game, r1=weight, r2=weight)
    optimizer = Muon([*model.parameters(), *objective.parameters()], momentum=0.9, betas=(0.0, 0.99))
    generator, rng = torch.Generator().manual_seed(seed), BatchRNG(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
        points = centres[torch.randint(25, (B,), generator=generator)] + 0.03 * torch.randn(B, 2, generator=generator)
        data = Batch(to_uint8(points)[:, :, None, None], None, 0)
        optimizer.zero_grad()
        objective.loss(model, data, rng, Training(0.0, model)).values.mean().backward()
        optimizer.step()
    z = torch.randn(2000, 2, generator=generator)
    distance, nearest = torch.cdist(model.generate(z, None).detach().flatten(1), centres).min(1)
    return int((nearest[distance < 0.1].bincount(minlength=25) >= 10).sum())


@pytest.mark.slow
def test_the_relativistic_game_with_penalties_finds_all_modes_and_minimax_loses_some():
    assert found_modes(Relativistic(), weight=0.2) == 25
    assert found_modes(Minimax(), weight=0.0) < 25


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ResidualGenerator(1, 8, latent_dim=0), "network.latent_dim=0"),
        (lambda: ResidualGenerator(1, 8, width=0), "width=0"),
        (lambda: ResidualGenerator(1, 8, depth=4), "network.depth=4 and data.image_size=8"),
        (lambda: ResidualGenerator(1, 9, patch_size=2), "network.patch_size=2 and data.image_size=9"),
        (lambda: ResidualDiscriminator(1, 8, depth=0), "depth=0"),
        (lambda: ResidualDiscriminator(1, 9, patch_size=2), "discriminator.patch_size=2 and data.image_size=9"),
        (lambda: ResidualDiscriminator(1, [8, 3], depth=3), r"discriminator.depth=3 and data.image_size=\[8,3\]"),
        (lambda: Adversarial(opponent(), Minimax(), r1=-1), "objective.r1=-1"),
        (lambda: Adversarial(opponent(), Minimax(), r2=math.nan), "r2=nan"),
        (lambda: Adversarial(opponent(), Minimax(), final=1.5), "objective.final=1.5"),
        (lambda: Adversarial(opponent(), Minimax(), label_dropout=1), "objective.label_dropout=1"),
        (lambda: Adversarial(opponent(), Minimax()).check(opponent()), "choose model=gan"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()
