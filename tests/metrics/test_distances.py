"""The distances and the Vendi score against closed forms, brute force, torch-fidelity and torchmetrics."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
import torch_fidelity
from sklearn.metrics.pairwise import cosine_similarity
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from lightning_diffusion.codecs.pixels import to_model
from lightning_diffusion.metrics.distances.extrapolation import extrapolated, least
from lightning_diffusion.metrics.distances.frechet import Moments, frechet_distance, moments
from lightning_diffusion.metrics.distances.inception_score import inception_score
from lightning_diffusion.metrics.distances.kernel import kernel_distance
from lightning_diffusion.metrics.distances.manifold import nearest, overlap
from lightning_diffusion.metrics.distances.vendi import vendi_score
from tests.metrics.features import Images, Net


def random_covariance(d, seed, rank=None):
    a = torch.randn(d, rank or d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T / d


def gaussian(d, seed, rank=None):
    generator = torch.Generator().manual_seed(100 + seed)
    return Moments(1000, torch.randn(d, dtype=torch.float64, generator=generator), random_covariance(d, seed, rank))


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


class TestFrechet:
    def test_of_gaussians_with_equal_axes_is_the_closed_form(self):
        """Σ = diag(s²): d² = ‖μ − ν‖² + Σ (s − r)²."""
        s, r = torch.rand(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
        mu, nu = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        expected = (mu - nu).square().sum() + (s - r).square().sum()
        got = frechet_distance(Moments(9, mu, s.square().diag()), Moments(9, nu, r.square().diag()))
        assert got == pytest.approx(float(expected), rel=1e-6)

    @pytest.mark.parametrize("d", [1, 3, 64])
    def test_of_any_gaussians_is_that_of_the_matrix_root(self, d):
        a, b = gaussian(d, 1), gaussian(d, 2)
        root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
        expected = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * np.trace(root)
        assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)

    def test_does_not_change_with_the_axes_and_is_symmetric(self):
        a, b = gaussian(20, 1), gaussian(20, 2)
        rotation, _ = torch.linalg.qr(normal(20, 20, 5).double())
        turned = [Moments(m.number, rotation @ m.mean, rotation @ m.covariance @ rotation.T) for m in (a, b)]
        assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-9)
        assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)

    def test_of_singular_covariances_is_real_and_right(self):
        """Gaussians in a subspace of three out of ten dimensions have the distance that they have in the subspace."""
        a, b = gaussian(3, 1), gaussian(3, 2)
        basis, _ = torch.linalg.qr(normal(10, 3, 5).double())
        embedded = [Moments(9, basis @ m.mean, basis @ m.covariance @ basis.T) for m in (a, b)]
        assert frechet_distance(*embedded) == pytest.approx(frechet_distance(a, b), rel=1e-6)
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)

    def test_of_samples_is_that_of_their_distributions_within_sampling_error(self):
        d, n = 4, 40_000
        mean, root = torch.tensor([1.0, 0, -0.5, 0]), torch.tensor([1.0, 2.0, 0.5, 1.0])
        x, y = normal(n, d, 1), mean + root * normal(n, d, 2)
        expected = float(mean.square().sum() + (root - 1).square().sum())
        assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, abs=5 * 4 / math.sqrt(n))

    @pytest.mark.parametrize("sizes", [(20, 30), (20, 200), (200, 20)], ids=str)
    def test_of_fewer_vectors_than_dimensions_is_that_of_their_covariances(self, sizes):
        """The factors of the vectors and the roots of the covariances give the same distance."""
        a, b = (moments(normal(N, 64, N) * (i + 1) + i) for i, N in enumerate(sizes))
        assert [m.factor is not None for m in (a, b)] == [N < 64 for N in sizes]
        whole = frechet_distance(a._replace(factor=None), b._replace(factor=None))
        assert frechet_distance(a, b) == pytest.approx(whole, rel=1e-8)
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)

    def test_moments_are_unbiased(self):
        x = normal(50, 6, 3)
        m = moments(x)
        assert np.allclose(m.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-12)
        assert m.number == 50

    def test_one_image_has_none(self):
        with pytest.raises(ValueError, match="at least 2"):
            moments(torch.zeros(1, 3))


class TestExtrapolation:
    """FD∞ for samples of two Gaussians with a known distance."""

    d = 12
    mean, root = torch.full((d,), 0.15), torch.linspace(0.7, 1.2, d)
    real = Moments(10**9, torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    expected = float(mean.square().sum() + (root - 1).square().sum())

    def of(self, N, seed):
        x = self.mean + self.root * normal(N, self.d, seed)
        return frechet_distance(moments(x), self.real), extrapolated(x, self.real)

    @pytest.mark.parametrize("N", [400, 1000])
    def test_it_is_unbiased_where_the_distance_of_so_many_is_not(self, N):
        found = [self.of(N, seed) for seed in range(30)]
        plain, values, errors = (torch.tensor(part) for part in zip(*((fd, *e) for fd, e in found), strict=True))
        mean_error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - self.expected) < 3 * mean_error
        assert float(plain.mean()) - self.expected > 5 * mean_error  # the plain distance is biased
        assert 0.6 < float(errors.mean()) / float(values.std()) < 2.0
        assert float(((values - self.expected).abs() < 2 * errors).double().mean()) > 0.85

    def test_numbers_of_samples_agree_within_their_errors(self):
        few, many = self.of(300, 1)[1], self.of(3000, 2)[1]
        assert abs(few.value - many.value) < 3 * math.hypot(few.error, many.error)
        assert many.error < few.error

    def test_is_the_same_in_any_order_of_magnitude_and_each_time(self):
        x = self.mean + self.root * normal(300, self.d, 3)
        scaled = Moments(10**9, self.real.mean, 100 * self.real.covariance)
        assert extrapolated(10 * x, scaled) == pytest.approx([100 * y for y in extrapolated(x, self.real)], rel=1e-6)
        assert extrapolated(x, self.real) == extrapolated(x, self.real)

    def test_too_few_are_refused(self):
        few = least(self.d) - 1
        with pytest.raises(
            ValueError, match=f"{few} samples in 12 dimensions: an extrapolation needs at least {few + 1}"
        ):
            extrapolated(normal(few, self.d, 1), self.real)
        extrapolated(normal(few + 1, self.d, 1), self.real)


class TestKernel:
    def test_is_the_mean_over_all_pairs_of_two_different(self):
        x, y = normal(7, 5, 1).double(), normal(9, 5, 2).double() + 0.5

        def k(a, b):
            return float((a @ b / 5 + 1) ** 3)

        xx = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
        yy = np.mean([k(y[i], y[j]) for i in range(9) for j in range(9) if i != j])
        xy = np.mean([k(a, b) for a in x for b in y])
        assert kernel_distance(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-9)

    def test_is_unbiased(self):
        """Over many small pairs of sets from one distribution its mean is 0; the biased estimate would be above 1."""
        values = torch.tensor([kernel_distance(normal(10, 4, s), normal(10, 4, 1000 + s)) for s in range(400)])
        assert abs(float(values.mean())) < 5 * float(values.std()) / 20

    def test_does_not_depend_on_blocks(self, monkeypatch):
        x, y = normal(50, 5, 1), normal(40, 5, 2)
        whole = kernel_distance(x, y)
        monkeypatch.setattr("lightning_diffusion.metrics.distances.kernel.BLOCK", 7)
        assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-9)


class TestInceptionScore:
    def test_is_one_for_equal_answers_and_the_number_of_classes_for_sure_and_even_ones(self):
        assert inception_score(normal(1, 5, 0).expand(30, 5))[0] == pytest.approx(1)
        sure = torch.eye(5).repeat(20, 1) * 100
        assert inception_score(sure) == (pytest.approx(5), pytest.approx(0, abs=1e-9))

    def test_is_the_mean_of_consecutive_parts_and_their_deviation(self):
        logits = normal(40, 5, 3) * 4
        parts = [inception_score(logits[start : start + 10], 1)[0] for start in (0, 10, 20, 30)]
        assert inception_score(logits, 4) == (pytest.approx(np.mean(parts)), pytest.approx(np.std(parts)))

    def test_needs_an_image_for_each_part(self):
        with pytest.raises(ValueError, match="too few for 10 parts"):
            inception_score(torch.zeros(9, 5))

    @pytest.mark.parametrize("N", [10, 11, 19, 105, 1003])
    def test_equals_torch_fidelitys_where_the_parts_are_unequal_too(self, N):
        metric = pytest.importorskip("torch_fidelity.metric_isc")
        logits = 3 * normal(N, 8, N)
        theirs = metric.isc_features_to_metric(logits, shuffle=False)
        expected = (theirs[metric.KEY_METRIC_ISC_MEAN], theirs[metric.KEY_METRIC_ISC_STD])
        assert inception_score(logits) == pytest.approx(expected, rel=1e-12, abs=1e-12)


class TestOverlap:
    def brute_force(self, fake, real, k):
        def radii(points):
            return np.sort(np.linalg.norm(points[:, None] - points[None], axis=-1), axis=1)[:, k]

        cross = np.linalg.norm(fake[:, None] - real[None], axis=-1)
        inside_real, inside_fake = cross <= radii(real)[None], cross <= radii(fake)[:, None]
        return {
            "precision": inside_real.any(1).mean(),
            "recall": inside_fake.any(0).mean(),
            "density": inside_real.sum() / (k * len(fake)),
            "coverage": inside_real.any(0).mean(),
        }

    @pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
    def test_is_what_brute_force_finds(self, shift, monkeypatch):
        monkeypatch.setattr("lightning_diffusion.metrics.distances.manifold.BLOCK", 16)
        fake, real = normal(50, 4, 1) + shift, normal(70, 4, 2)
        found = overlap(fake, real)
        three, five = (self.brute_force(fake.double().numpy(), real.double().numpy(), k) for k in (3, 5))
        assert found.precision == pytest.approx(three["precision"])
        assert found.recall == pytest.approx(three["recall"])
        assert found.density == pytest.approx(five["density"])
        assert found.coverage == pytest.approx(five["coverage"])

    def test_of_equal_distributions_is_as_published(self):
        """E density = 1; E coverage = 1 − (N − 1)…(N − k)/((M + N − 1)…(M + N − k)). Ref: Naeem et al. Lemmas 1, 2"""
        M, N, runs = 60, 80, 60
        found = [overlap(normal(M, 8, s), normal(N, 8, 1000 + s)) for s in range(runs)]
        expected = 1 - math.prod((N - j) / (M + N - j) for j in range(1, 6))
        for values, mean in (([f.density for f in found], 1.0), ([f.coverage for f in found], expected)):
            assert np.mean(values) == pytest.approx(mean, abs=5 * np.std(values) / runs**0.5)

    def test_copies_of_one_point_lie_in_balls_without_extent(self):
        real = normal(20, 6, 0) * 30
        one = real[:1].expand(10, -1)
        assert overlap(one, one.clone()) == (1, 1, 2, 1)  # each fake is in all ten balls; k = 5
        assert overlap(one, real).recall == pytest.approx(1 / 20)
        assert overlap(one + 1e-3, one) == (0, 0, 0, 0)

    def test_needs_neighbours(self):
        with pytest.raises(ValueError, match="at least 6 are needed"):
            overlap(normal(5, 2, 0), normal(10, 2, 1))

    def test_nearest_come_first(self):
        among = torch.arange(10.0)[:, None]
        distances, indices = nearest(torch.tensor([[2.2], [8.9]]), among, 3)
        assert indices.tolist() == [[2, 3, 1], [9, 8, 7]]
        assert torch.allclose(distances, torch.tensor([[0.2, 0.8, 1.2], [0.1, 0.9, 1.9]]).double(), atol=1e-6)


class TestVendi:
    @pytest.mark.parametrize("d", [5, 40])
    def test_of_equal_directions_is_one(self, d):
        lengths = torch.linspace(0.1, 10, 20)[:, None]
        assert vendi_score(lengths * normal(1, d, 0)) == pytest.approx(1)

    @pytest.mark.parametrize("copies", [1, 6])
    def test_of_orthogonal_directions_is_their_number_however_often_each_occurs(self, copies):
        """Eight axes of ten dimensions: 8 images take the matrix of images, 48 that of dimensions."""
        axes, _ = torch.linalg.qr(normal(10, 8, 0).double())
        assert vendi_score(axes.T.repeat(copies, 1)) == pytest.approx(8)

    @pytest.mark.parametrize(("angle", "d"), [(0.3, 2), (1.2, 2), (0.3, 7), (1.2, 7)])
    def test_of_two_directions_is_that_of_their_angle(self, angle, d):
        """K/2 has the eigenvalues (1 ± cos θ)/2."""
        x = torch.zeros(2, d, dtype=torch.float64)
        x[0, 0], x[1, 0], x[1, 1] = 3, math.cos(angle), math.sin(angle)
        p, q = (1 + math.cos(angle)) / 2, (1 - math.cos(angle)) / 2
        assert vendi_score(x) == pytest.approx(p**-p * q**-q)

    @pytest.mark.parametrize(("N", "d"), [(1, 6), (7, 30), (30, 30), (60, 5)])
    def test_is_the_entropy_of_the_whole_kernel_in_numpy(self, N, d):
        x = normal(N, d, 3) + 0.5
        eigenvalues = np.linalg.eigvalsh(cosine_similarity(x.double().numpy()) / N)
        assert vendi_score(x) == pytest.approx(math.exp(scipy.stats.entropy(eigenvalues.clip(0))), rel=1e-9)

    @pytest.mark.parametrize("d", [4, 50])
    def test_features_of_length_0_are_one_further_direction(self, d):
        zeros, x = torch.zeros(6, d), normal(1, d, 0).repeat(6, 1)
        assert vendi_score(zeros) == pytest.approx(1)
        assert vendi_score(torch.cat([zeros, x])) == pytest.approx(2)

    def test_needs_an_image(self):
        with pytest.raises(ValueError, match="0 images have no Vendi score"):
            vendi_score(torch.zeros(0, 3))


class Pictures(Dataset):
    """Images in the form that torch-fidelity takes."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


class Fidelity(FeatureExtractorBase):
    """The same small network in the form that torch-fidelity takes."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        self.net = Net()

    def forward(self, x):
        vectors = self.net(to_model(x))
        return tuple({"vectors": vectors, "logits": vectors[:, :10] * 9}[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "vectors", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"isc": "logits"}.get(metric, "vectors")

    @staticmethod
    def can_be_compiled():
        return False

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 3, 16, 16, dtype=torch.uint8)


def test_equals_torch_fidelity():
    fake, real = Images(60, seed=1).images, Images(60, seed=2).images // 2 + 60
    torch_fidelity.register_feature_extractor("small", Fidelity)
    theirs = torch_fidelity.calculate_metrics(
        input1=Pictures(fake), input2=Pictures(real), feature_extractor="small", cuda=False, batch_size=20,
        fid=True, kid=True, kid_subsets=1, kid_subset_size=60, isc=True, isc_splits=1, prc=True,
        save_cpu_ram=True, verbose=False, cache=False,
    )  # fmt: skip
    with torch.inference_mode():
        x, y = Net()(to_model(fake)), Net()(to_model(real))
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert kernel_distance(x, y) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert inception_score(x[:, :10] * 9, 1)[0] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    found = overlap(x, y)
    assert found.precision == pytest.approx(theirs["precision"], rel=1e-4)
    assert found.recall == pytest.approx(theirs["recall"], rel=1e-4)
    assert theirs["frechet_inception_distance"] > 0.01
    assert 0 < theirs["precision"] + theirs["recall"] < 2


class FromBytes(torch.nn.Module):
    """The network in the form that torchmetrics calls: on uint8 images."""

    num_features = 24

    def __init__(self, scale=1.0, classes=None):
        super().__init__()
        self.net, self.scale, self.classes = Net(), scale, classes

    def forward(self, x):
        return self.net(to_model(x))[:, : self.classes] * self.scale


def test_equals_torchmetrics_where_the_definitions_agree():
    fake, real = Images(60, seed=1).images, Images(60, seed=2).images // 2 + 60
    fid = FrechetInceptionDistance(feature=FromBytes(), normalize=False, input_img_size=(3, 16, 16))
    kid = KernelInceptionDistance(feature=FromBytes(), subsets=1, subset_size=60)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    isc = InceptionScore(feature=FromBytes(9.0, 10), splits=1)
    isc.update(fake)
    with torch.inference_mode():
        x, y = Net()(to_model(fake)), Net()(to_model(real))
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(float(fid.compute()), rel=1e-4)
    assert kernel_distance(x, y) == pytest.approx(float(kid.compute()[0]), rel=1e-4)
    assert inception_score(x[:, :10] * 9, 1)[0] == pytest.approx(float(isc.compute()[0]), rel=1e-4)
