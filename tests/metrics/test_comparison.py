"""All scores together: they order images as a viewer would, and handle unusual sets."""

import math

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from lightning_diffusion.data.dataset import InMemory
from lightning_diffusion.metrics.comparison import Comparison
from lightning_diffusion.metrics.distances.vendi import vendi_score
from lightning_diffusion.metrics.extractors.classifier import Classifier
from lightning_diffusion.metrics.extractors.inception import Inception
from lightning_diffusion.metrics.scores import SCORES, Declared, Score, directions, scores
from tests.metrics.features import Images, digits, extractor, features


@pytest.fixture(scope="module")
def on_digits(tmp_path_factory):
    train, held_out = digits()
    made = Classifier(str(tmp_path_factory.mktemp("digits")), steps=200)
    return Comparison(made, train, held_out), held_out.images, held_out.labels


def measured(comparison, images):
    found = comparison(comparison.extractor(images))
    return found["fd_classifier"].value, found["kd_classifier"].value


def noised(images, level):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + level * 255 * noise).clamp(0, 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    "worse",
    [
        [lambda images, labels, s=s: noised(images, s) for s in (0.05, 0.1, 0.2, 0.4)],
        [lambda images, labels, s=s: gaussian_blur(images, [5, 5], [s, s]) for s in (0.4, 0.6, 1.0, 2.0)],
        [lambda images, labels, k=k: images[labels >= k] for k in (1, 2, 4, 7)],
    ],
    ids=["noise", "blur", "lost classes"],
)
def test_the_distances_rise_with_what_an_eye_would_miss(on_digits, worse):
    comparison, images, labels = on_digits
    steps = [measured(comparison, images), *(measured(comparison, make(images, labels)) for make in worse)]
    for values in zip(*steps, strict=True):
        assert list(values) == sorted(values), values
        assert values[-1] > values[0] + 0.05


def test_lost_classes_cost_recall_and_noise_costs_precision(on_digits):
    comparison, images, labels = on_digits
    whole = comparison(comparison.extractor(images))
    half = comparison(comparison.extractor(images[labels >= 5]))
    noisy = comparison(comparison.extractor(noised(images, 0.3)))
    assert half["recall_classifier"].value < 0.7 * whole["recall_classifier"].value
    assert half["precision_classifier"].value > 0.9 * whole["precision_classifier"].value
    assert noisy["precision_classifier"].value < 0.7 * whole["precision_classifier"].value


def test_the_vendi_score_rises_with_the_classes_and_is_one_for_one_image(on_digits):
    comparison, images, labels = on_digits
    found = [
        comparison(comparison.extractor(some))["vendi_classifier"].value
        for some in (images[:1].repeat(30, 1, 1, 1), images[labels < 1], images[labels < 3], images[labels < 6], images)
    ]
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found == sorted(found)
    assert found[-1] > 1.5 * found[1]


def test_the_floor_is_the_score_of_held_out_images_at_the_same_number(on_digits):
    comparison, images, _ = on_digits
    floor = comparison.floor(100)
    assert floor["fd_classifier"].num_samples == 100
    assert floor["fd_classifier"].value == measured(comparison, images[:100])[0]
    assert comparison.floor(100) == floor  # kept
    assert comparison.floor(5000)["fd_classifier"].num_samples == 297
    assert list(floor) == comparison.names
    alone = comparison.extractor(images[:100]).vectors
    assert floor["vendi_classifier"] == (pytest.approx(vendi_score(alone)), None, 100, 0)


def test_the_floor_is_measured_again_if_there_are_other_scores_than_when_it_was_kept(tmp_path, monkeypatch):
    made, real, held_out = extractor(tmp_path), Images(50, seed=1), Images(30, seed=2)
    with monkeypatch.context() as earlier:
        earlier.setattr("lightning_diffusion.metrics.scores.SCORES", SCORES[:1])
        assert list(Comparison(made, real, held_out).floor(30)) == ["fd_random"]
    comparison = Comparison(made, real, held_out)
    assert list(comparison.floor(30)) == comparison.names


def test_a_score_is_declared_in_one_place(tmp_path, monkeypatch):
    """Its name, function and direction reach the floor, the names and metrics.json."""
    mean = Declared({"mean": "min"}, lambda of: [Score(float(of.samples.vectors.mean()), None, of.N, 0)])
    monkeypatch.setattr("lightning_diffusion.metrics.scores.SCORES", (*SCORES, mean))
    comparison = Comparison(made := extractor(tmp_path), Images(50, seed=1), Images(30, seed=2))
    found = comparison(samples := made.extract(Images(30, seed=3)))
    assert list(found) == comparison.names
    assert found["mean_random"] == (samples.vectors.mean(), None, 30, 0)
    recorded = comparison.beside_floor(found, 30)
    assert recorded["mean_random"]["best"] == "min"
    assert recorded["mean_random"]["floor"] == comparison.floor(30)["mean_random"]._asdict()


def test_each_score_has_a_direction_under_its_reported_name(tmp_path):
    found = directions(Inception(str(tmp_path)))
    assert {name: found[name] for name in ("fid", "fid_inf", "kid")} == dict.fromkeys(("fid", "fid_inf", "kid"), "min")
    highest = ["inception_score", *(f"{name}_inception" for name in ("precision", "recall", "density", "coverage"))]
    assert {name: found[name] for name in highest} == dict.fromkeys(highest, "max")
    assert len(found) == sum(len(declared.best) for declared in SCORES)


def test_copies_are_found_and_shown(on_digits):
    comparison, images, _ = on_digits
    train, _ = digits()
    copies = torch.tensor([3, 700, 1499])
    samples = torch.cat([images[:17], train.images[copies]])
    near = comparison.neighbours(comparison.extractor(samples), k=3)
    assert near.indices[17:, 0].tolist() == copies.tolist()
    assert torch.allclose(near.distances[17:, 0], torch.zeros(3, dtype=torch.float64), atol=1e-3)
    assert near.near_copies == pytest.approx(3 / 20, abs=0.051)
    held_out = comparison.neighbours(comparison.extractor(images), k=1)
    assert held_out.near_copies == pytest.approx(0.01, abs=0.005)


def test_neighbours_are_numbers_of_images_where_a_share_is_kept_too(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_diffusion.metrics.reference.MAX_VECTORS", 10)
    real = Images(91, seed=1)
    comparison = Comparison(made := extractor(tmp_path), real)
    near = comparison.neighbours(made.extract(InMemory(real.images[::10])), k=1)
    assert near.indices[:, 0].tolist() == list(range(0, 91, 10))
    assert near.near_copies is None


def everything_finite(found):
    assert all(math.isfinite(score.value) for score in found.values())
    return {name: score.value for name, score in found.items()}


class TestOddSets:
    def test_fewer_samples_than_dimensions_have_a_stated_bias(self, tmp_path):
        comparison = Comparison(made := extractor(tmp_path, d=24), Images(200, seed=1))
        few, many = (made.extract(Images(n, seed=2)) for n in (12, 150))
        assert everything_finite(comparison(few))["fd_random"] > everything_finite(comparison(many))["fd_random"]
        assert "12 images in 24 dimensions: the Fréchet distance is biased upwards" in comparison.bias(few)
        assert comparison.bias(many) is None

    def test_too_few_are_refused(self, tmp_path):
        comparison = Comparison(made := extractor(tmp_path), Images(50, seed=1))
        with pytest.raises(ValueError, match="9 samples against 50 real images: at least 10 of each"):
            comparison(made.extract(Images(9)))

    def test_constant_images(self, tmp_path):
        comparison = Comparison(made := extractor(tmp_path), Images(50, seed=1))
        black = InMemory(torch.zeros(20, 3, 16, 16, dtype=torch.uint8))
        found = everything_finite(comparison(made.extract(black)))
        m = comparison.reference.moments
        expected = (made.extract(black).vectors[0] - m.mean).square().sum() + m.covariance.trace()
        assert found["fd_random"] == pytest.approx(float(expected), rel=1e-6)
        assert found["recall_random"] == 0
        both = Comparison(made, black)
        assert everything_finite(both(made.extract(black)))["fd_random"] == pytest.approx(0, abs=1e-9)

    def test_one_duplicated_image(self, tmp_path):
        real = Images(50, seed=1)
        comparison = Comparison(made := extractor(tmp_path), real)
        found = everything_finite(comparison(made.extract(InMemory(real.images[7:8].repeat(30, 1, 1, 1)))))
        assert found["precision_random"] == 1
        assert found["recall_random"] == pytest.approx(1 / 50)
        assert found["coverage_random"] < 0.5

    @pytest.mark.parametrize("shape", [(1, 8, 8), (1, 7, 5), (3, 17, 31)])
    def test_grey_images_and_odd_sizes(self, tmp_path, shape):
        made = extractor(tmp_path, channels=shape[0])
        found = everything_finite(Comparison(made, Images(40, shape, seed=1))(made.extract(Images(40, shape, seed=2))))
        assert found["fd_random"] > 0

    def test_many_images_meet_in_an_even_share(self, tmp_path, monkeypatch):
        monkeypatch.setattr("lightning_diffusion.metrics.scores.MOST_PAIRED", 15)
        made = extractor(tmp_path)
        found = scores(features(made.extract(Images(40)).vectors), Comparison(made, Images(50, seed=1)).reference)
        assert (found["fd"].num_samples, found["fd"].num_real) == (40, 50)
        assert (found["kd"].num_samples, found["kd"].num_real) == (15, 15)
