"""Feature extractors: each is the network that it claims to be, and no cached result is mistaken for another."""

import pickle
import urllib.error

import pytest
import torch
import torch_fidelity
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_kid import kid_features_to_metric

from lightning_diffusion.data.dataset import InMemory
from lightning_diffusion.metrics.comparison import Comparison
from lightning_diffusion.metrics.distances.frechet import frechet_distance, moments
from lightning_diffusion.metrics.extractors import inception
from lightning_diffusion.metrics.extractors.classifier import Classifier, shrink
from lightning_diffusion.metrics.extractors.efficientnet import EfficientNetLite0
from lightning_diffusion.metrics.extractors.inception import Inception
from lightning_diffusion.metrics.extractors.module import Module
from lightning_diffusion.metrics.reference import reference
from tests.metrics.features import Images, Net, digits, extractor
from tests.metrics.test_distances import Pictures


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random numbers in the shapes of the published weights."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        patch.setattr(torch, "load", lambda *args, **kwargs: None)
        torch.save(FeatureExtractorInceptionV3("inception", ["2048"], "nowhere").state_dict(), path)
    return path


class TestInception:
    def scored(self, weights, folder):
        """The whole path from uint8 images of an odd size to the scores' names, with random weights."""
        fake, real = Images(10, (3, 31, 27), seed=1), Images(10, (3, 31, 27), seed=2)
        comparison = Comparison(made := Inception(str(folder), str(weights)), real)
        return fake, real, comparison, (features := made.extract(fake)), comparison(features)

    @pytest.mark.slow
    def test_fid_is_torch_fidelitys_own(self, weights, tmp_path, monkeypatch):
        """torch-fidelity takes the eigenvalues of a 2048 × 2048 matrix."""
        monkeypatch.setattr(inception, "CHECKSUM", "")
        fake, real, _, _, found = self.scored(weights, tmp_path)
        theirs = torch_fidelity.calculate_metrics(
            input1=Pictures(fake.images), input2=Pictures(real.images), feature_extractor_weights_path=str(weights),
            fid=True, kid=True, kid_subsets=1, kid_subset_size=10, isc=True, isc_splits=1, cuda=False, batch_size=6,
            save_cpu_ram=True, verbose=False, cache=False,
        )  # fmt: skip
        assert found["fid"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
        assert found["kid"].value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)

    def test_fid_is_the_frechet_distance_of_torch_fidelitys_features(self, weights, tmp_path, monkeypatch):
        monkeypatch.setattr(inception, "CHECKSUM", "")
        given = []

        def recorded(*moments):
            given.append(moments)
            return frechet_distance(*moments)

        monkeypatch.setattr("lightning_diffusion.metrics.scores.frechet_distance", recorded)
        fake, real, comparison, features, found = self.scored(weights, tmp_path)
        network = FeatureExtractorInceptionV3("inception", ["2048"], str(weights)).eval()
        theirs = [features.vectors, comparison.reference.vectors]
        some = torch.tensor([0, 4, 9])  # an image takes a fifth of a second
        for vectors, images in zip(theirs, (fake, real), strict=True):
            with torch.no_grad():
                torch.testing.assert_close(vectors[some], network(images.images[some])[0], rtol=1e-3, atol=1e-4)
        ((ours, reference),) = given
        for got, vectors in ((ours, theirs[0]), (reference, theirs[1])):
            torch.testing.assert_close(got.mean, vectors.double().mean(0), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(got.covariance, vectors.double().T.cov(), rtol=1e-3, atol=1e-8)
        kid = kid_features_to_metric(*theirs, kid_subsets=1, kid_subset_size=10, verbose=False)
        assert list(found) == comparison.names
        assert found["fid"].value == pytest.approx(frechet_distance(*map(moments, theirs)), rel=1e-4)
        assert found["kid"].value == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-4)
        assert {"inception_score", "precision_inception", "recall_inception"} <= set(found)
        assert "10 images in 2048 dimensions" in comparison.bias(features)
        assert comparison.how()["resize"] == "299×299, TensorFlow 1's bilinear rule"

    def test_other_weights_are_not_called_fid(self, weights, tmp_path):
        made = Inception(str(tmp_path), str(weights))
        made.prepare(Images(1))
        assert made.label("fd") == "fd_other_inception"
        assert not {made.label(score) for score in ("fd", "kd", "is")} & {"fid", "kid", "inception_score"}

    def test_grey_is_three_equal_channels(self, weights, tmp_path):
        made, grey = Inception(str(tmp_path), str(weights)), Images(2, (1, 8, 8)).images
        made.prepare(Images(1))
        assert torch.equal(made(grey).vectors, made(grey.repeat(1, 3, 1, 1)).vectors)
        assert made(grey).vectors.shape == (2, 2048)

    def test_without_file_and_network_it_says_where_to_put_it(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))

        def unreachable(*args, **kwargs):
            raise urllib.error.URLError("no network")

        monkeypatch.setattr("urllib.request.urlopen", unreachable)
        with pytest.raises(FileNotFoundError) as error:
            Inception(str(tmp_path)).check(Images(1))
        for part in ("weights-inception-2015-12-05-6726825d.pth", "SHA-256 begins with 6726825d", str(tmp_path)):
            assert part in str(error.value)
        assert "\n" not in str(error.value)

    def test_takes_the_file_from_torchs_cache(self, weights, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / inception.FILE).symlink_to(weights)
        made = Inception(str(tmp_path))
        made.prepare(Images(1))
        assert made(Images(1).images).logits.shape == (1, 1008)

    def test_refuses_other_files_and_runs_nothing_in_them(self, tmp_path):
        class Hostile:
            def __reduce__(self):
                return (open, (str(tmp_path / "executed"), "w"))

        for content in (b"not weights", pickle.dumps(Hostile())):
            (path := tmp_path / "file.pth").write_bytes(content)
            with pytest.raises(ValueError, match="not the weights of torch-fidelity's InceptionV3"):
                Inception(str(tmp_path), str(path)).prepare(Images(1))
        torch.save({"a": Hostile()}, path)
        with pytest.raises(ValueError, match="not the weights"):
            Inception(str(tmp_path), str(path)).prepare(Images(1))
        assert not (tmp_path / "executed").exists()
        with pytest.raises(FileNotFoundError, match=r"metrics.weights=.*nowhere.pth: no such file"):
            Inception(str(tmp_path), str(tmp_path / "nowhere.pth")).check(Images(1))


class TestClassifier:
    @pytest.fixture(scope="class")
    def trained(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("classifier")
        made = Classifier(str(folder), steps=200)
        made.prepare(*digits())
        return folder, made

    def test_reads_digits_and_says_how_well(self, trained):
        _, made = trained
        _, held_out = digits()
        images, labels = held_out[torch.arange(len(held_out))]
        right = (made(images).logits.argmax(1) == labels).double().mean()
        assert made.note() == {"accuracy": pytest.approx(float(right))}
        assert right > 0.9

    def test_is_trained_once(self, trained, monkeypatch):
        folder, made = trained
        monkeypatch.setattr("lightning_diffusion.metrics.extractors.classifier.fit", None)
        again = Classifier(str(folder), steps=200)
        again.prepare(*digits())
        assert again.identity == made.identity
        assert again.note() == made.note()

    def test_other_data_or_another_recipe_is_another_classifier(self, tmp_path):
        train, held_out = digits()
        darker = InMemory(train.images // 2, train.labels)
        relabelled = InMemory(train.images, train.labels.flip(0))
        found = set()
        for data, steps in ((train, 20), (train, 20), (darker, 20), (relabelled, 20), (train, 30)):
            other = Classifier(str(tmp_path), steps=steps)
            other.prepare(data, held_out)
            found.add(other.identity)
        assert len(found) == 4  # two of the five were the same

    def test_a_damaged_file_is_replaced(self, tmp_path):
        made = Classifier(str(tmp_path), steps=20)
        made.prepare(*digits())
        (file,) = tmp_path.glob("classifier-*.safetensors")
        file.write_bytes(file.read_bytes()[:-100])
        again = Classifier(str(tmp_path), steps=20)
        again.prepare(*digits())
        assert again.identity == made.identity

    def test_without_labels_it_says_what_to_choose(self, tmp_path):
        with pytest.raises(ValueError, match="metrics=classifier: these images have no labels"):
            Classifier(str(tmp_path)).check(Images(20))

    def test_alone_it_tests_itself_on_a_tenth(self, tmp_path):
        train, _ = digits()
        made = Classifier(str(tmp_path), steps=200)
        made.prepare(train)
        assert 0.9 < made.accuracy < 1

    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 48), (1, 5, 7), (1, 28, 28)])
    def test_takes_images_of_any_shape(self, tmp_path, shape):
        images = Images(30, shape)
        made = Classifier(str(tmp_path), steps=10)
        made.prepare(InMemory(images.images, torch.arange(30) % 3))
        found = made(images.images)
        assert found.vectors.shape == (30, 64)
        assert found.logits.shape == (30, 3)

    def test_large_images_are_averaged(self):
        blocks = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
        large = blocks.repeat_interleave(16, -1).repeat_interleave(16, -2)
        assert torch.equal(shrink(large), blocks.repeat_interleave(8, -1).repeat_interleave(8, -2))

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=r"metrics.cache_dir=.*file/below: cannot be written"):
            Classifier(f"{tmp_path}/file/below").check(digits()[0])


class TestEfficientNet:
    def test_reads_a_picture_of_imagenet_kind(self, tmp_path):
        """Its weights are the real ones: it recognizes scikit-learn's photographs."""
        from sklearn.datasets import load_sample_image

        made = EfficientNetLite0(str(tmp_path))
        made.prepare(Images(1))
        flower = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None, :, :, 100:527]
        found = made(flower)
        assert found.vectors.shape == (1, 1280)
        assert int(found.logits.argmax()) == 985  # daisy, ImageNet's nearest to a dahlia
        exact = Images(2, (3, 224, 224)).images  # the network's own size and normalization
        assert torch.allclose(made(exact).logits, made.network.efficientnet((exact.float() - 127) / 128), atol=1e-4)
        assert made.label("fd") == "fd_efficientnet_lite0"

    def test_grey_and_tiny_pictures_are_enlarged_with_three_equal_channels(self, tmp_path):
        made = EfficientNetLite0(str(tmp_path))
        made.prepare(Images(1))
        for grey in (Images(2, (1, 28, 28)).images, Images(2, (1, 1, 1)).images):
            assert torch.equal(made(grey).vectors, made(grey.repeat(1, 3, 1, 1)).vectors)
        flat = torch.full((1, 3, 5, 5), 90, dtype=torch.uint8)
        large = torch.full((1, 3, 224, 224), 90, dtype=torch.uint8)
        assert torch.allclose(made(flat).vectors, made(large).vectors, atol=1e-4)

    def test_what_the_other_extractors_refuse_it_takes_and_they_say_so(self, tmp_path, monkeypatch):
        """Unlabelled pictures, offline: no two messages recommend each other's extractor."""
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", _no_network)
        pictures = InMemory(Images(12, (3, 16, 16)).images)
        for other in (Classifier(str(tmp_path)), Inception(str(tmp_path))):
            with pytest.raises((ValueError, FileNotFoundError), match=r"metrics=imagenet_lite") as refused:
                other.check(pictures)
            assert "choose metrics=inception" not in str(refused.value)
            assert "metrics=classifier needs" not in str(refused.value)
        EfficientNetLite0(str(tmp_path)).check(pictures)


def _no_network(*args, **options):
    raise urllib.error.URLError("no network")


class TestModule:
    def test_any_network_will_do(self, tmp_path):
        made = Module(str(tmp_path), nn.Conv2d(3, 4, 3), name="mine", image_size=12, colour=True)
        made.prepare(Images(1))
        assert made(Images(5, (1, 8, 8)).images).vectors.shape == (5, 4)
        assert made.label("fd") == "fd_mine"
        assert "is_mine" not in Comparison(made, Images(30)).names

    @pytest.mark.parametrize("name", ["inception", "a b", ""])
    def test_cannot_take_inceptions_name(self, tmp_path, name):
        with pytest.raises(ValueError, match="metrics.name="):
            Module(str(tmp_path), Net(), name=name)


class TestReference:
    def test_is_computed_once_and_never_taken_for_that_of_other_images(self, tmp_path):
        """Other pixels or another extractor give another reference, even under the same name."""
        made, calls = extractor(tmp_path), []
        extract = made.extract
        made.extract = lambda images, **options: calls.append(len(images)) or extract(images, **options)
        first, again = (reference(made, Images(40, seed=1)) for _ in range(2))
        assert calls == [40]
        assert torch.equal(first.vectors, again.vectors)
        assert torch.equal(first.moments.covariance, again.moments.covariance)
        others = [reference(made, Images(40, seed=2)), reference(extractor(tmp_path, d=12), Images(40, seed=1))]
        assert len({first.hash, again.hash, *(other.hash for other in others)}) == 3
        assert not torch.equal(first.moments.mean, others[0].moments.mean)

    def test_keeps_an_even_share_of_the_vectors_and_the_moments_of_all(self, tmp_path, monkeypatch):
        monkeypatch.setattr("lightning_diffusion.metrics.reference.MAX_VECTORS", 10)
        made, images = extractor(tmp_path), Images(91, seed=1)
        found, everything = reference(made, images), made.extract(images).vectors
        assert found.indices.tolist() == list(range(0, 91, 10))
        assert torch.equal(found.vectors, everything[::10])
        assert torch.allclose(found.moments.mean, everything.double().mean(0))
        assert found.moments.number == 91

    def test_a_float_image_is_refused(self, tmp_path):
        with pytest.raises(TypeError, match="uint8"):
            extractor(tmp_path)(torch.rand(2, 3, 16, 16))
