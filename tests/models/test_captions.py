"""Captions and attributes as conditions: their sources, and captions through the real programs on a tiny run."""

import numpy as np
import pytest
import torch
from PIL import Image

import lightning_diffusion as ld
from benchmarks import captions
from lightning_diffusion.app.sample import main as sample
from lightning_diffusion.app.train import main as train
from lightning_diffusion.checkpoints.loading import load, load_data
from lightning_diffusion.codecs.condition import Condition
from lightning_diffusion.data.captions import CLASSES, Vocabulary
from lightning_diffusion.data.conditions import WithCondition, panels
from lightning_diffusion.data.dataset import Batches, Mirrored
from lightning_diffusion.data.descriptions import Attributes, Caption
from lightning_diffusion.data.scenes import Scenes
from lightning_diffusion.runs.pictures import with_texts
from tests.models.test_conditions import refused
from tests.models.test_programs import done, words

SCENES = ["data=scenes", "data.image_size=16", "data.num_items=[2,2]", "data.hold_out_pairs=true"]


def scenes(**options):
    return Scenes(
        **{"channels": 1, "image_size": 16, "num_classes": None, "batch_size": 4, "num_items": [2, 2]} | options
    )


class TestSources:
    data = scenes()

    def given(self, source):
        self.data.setup()
        dataset = self.data.splits["val"]
        return dataset, WithCondition(dataset, source)

    def test_the_caption_of_a_scene_is_its_tokens(self):
        source = Caption("digits", 15)
        plain, dataset = self.given(source)
        indices = torch.tensor([5, 0, 9])
        batch = Batches(dataset, None)[0, indices]
        assert batch.condition.parts.keys() == {"tokens"}
        assert torch.equal(batch.condition.tokens, plain.captions(indices))
        assert Batches(plain, None)[0, indices].condition is None
        texts = source.texts(batch.condition)
        assert torch.equal(torch.cat([source.read(text).tokens for text in texts]), batch.condition.tokens)

    def test_attributes_have_a_last_number_that_says_that_they_are_known(self):
        source = Attributes(10)
        plain, dataset = self.given(source)
        indices = torch.tensor([5, 0])
        batch = Batches(Mirrored(dataset), None)[0, torch.tensor([5, 1000])]  # a mirror image has the same attributes
        found = batch.condition.attributes
        assert torch.equal(found[:, :-1], plain.sample(indices).description.attributes)
        assert found[:, -1].tolist() == [1, 1]
        assert source.texts(batch.condition)[0].split() == [f"{value:g}" for value in found[0, :-1].tolist()]
        assert source.read([0] * 9 + [1]).attributes.tolist() == [[0] * 9 + [1, 1]]

    def test_a_tile_is_a_sample(self):
        source = Caption("digits", 15)
        _, dataset = self.given(source)
        samples = torch.randint(0, 256, (1, 3, 1, 16, 16), dtype=torch.uint8)
        assert torch.equal(panels(dataset, source, samples), samples[0])

    @pytest.mark.parametrize(
        ("data", "source", "says"),
        [
            ({"num_items": [2, 3]}, Caption("digits", 15), "condition=caption: these images have no captions; choose"),
            (
                {},
                Caption("fashion_mnist", 15),
                "data.items: the captions .* other words than T-shirt",
            ),
            ({"horizontal_flip": True}, Caption("digits", 15), "data.horizontal_flip=true: the mirror image"),
            ({}, Attributes(3), "condition.num_attributes=3: these images have 10 attributes"),
        ],
    )
    def test_data_that_do_not_fit(self, data, source, says):
        with pytest.raises(ValueError, match=says):
            source.check(scenes(**data))
        Caption("digits", 15).check(scenes())
        Attributes(10).check(scenes(num_items=[1, 4]))

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (lambda: Caption("digits", 14), "condition.num_words=14: there are 15; leave it out"),
            (lambda: Caption(None, 15), "condition=caption: these images have no captions"),
            (lambda: Attributes(0), "condition=attributes: these images have no attributes"),
            (lambda: Attributes(3).read([1, 0]), "attributes: this model takes 3 numbers"),
            (lambda: Attributes(1).read([float("nan")]), "attributes: this model takes 1 numbers"),
        ],
    )
    def test_wrong_values(self, make, says):
        with pytest.raises(ValueError, match=says):
            make()


def test_texts_are_below_their_images():
    images = torch.arange(2, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8) * 200
    short, longer = (with_texts(images, [text] * 2) for text in ("a", "an ankle boot right of an ankle boot"))
    assert short.shape[-1] in (8, 16)
    assert longer.shape[-1] > 100
    for picture in (short, longer):
        side = picture.shape[-1]
        assert torch.equal(picture[:, 0, 0, 0], images[:, 0, 0, 0])
        assert (picture[1, :, :side] == 200).all()
        assert picture[0, :, side:].max() > 200  # white letters
        assert not picture[0, :, :side].any()
    assert not with_texts(images, ["", ""])[:, :, 8:].any()


def test_captions_that_masks_obey():
    """Scenes obey their own captions by their own masks, but for items of an odd shape, and no other captions."""
    data = scenes(overlap=False, image_size=32)
    data.setup()
    dataset, vocabulary = data.splits["train"], data.vocabulary
    numbers, asked = captions.of_two_classes(dataset, 200)
    assert (asked[:, 0] != asked[:, 2]).all()
    masks = dataset.sample(numbers).targets
    found = captions.obeyed(masks, asked, vocabulary)
    assert found.present.value > 0.98
    assert found.right.value > 0.9
    subjects, relations, others = vocabulary.parts(asked)
    swapped = captions.obeyed(masks, vocabulary.of(others, relations, subjects), vocabulary)
    assert swapped.present == found.present
    assert swapped.right.value < 0.05
    mirrored = captions.obeyed(masks, vocabulary.of(others, relations ^ 1, subjects), vocabulary)
    assert mirrored == found  # "a left of b" is "b right of a"
    random = captions.obeyed(masks, captions.with_other_relations(asked, vocabulary), vocabulary)
    assert 0.15 < random.right.value < 0.35
    assert captions.obeyed(masks, vocabulary.of((subjects + 5) % 10, relations, others), vocabulary).present.value < 0.1
    assert captions.obeyed(torch.zeros_like(masks), asked, vocabulary).present.value == 0


class TestPrograms:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        """The folder with a run of two steps."""
        folder = tmp_path_factory.mktemp("captions")
        few = ["trainer.max_steps=2", "trainer.limit_val_batches=1", "hydra.run.dir=run"]
        done(train, *words("diffusion", *SCENES, "condition=caption", *few), cwd=folder)
        return folder

    @pytest.fixture(scope="class")
    def checkpoint(self, folder):
        return f"ckpt_path={folder / 'run' / 'checkpoints' / 'last.ckpt'}"

    def drawn(self, folder, name):
        with np.load(folder / name / "samples.npz") as content:
            return torch.from_numpy(content["images"]).permute(0, 3, 1, 2), content["captions"].tolist()

    def test_a_caption_for_all_samples(self, folder, checkpoint):
        text = "a 3 left of a 7"
        done(sample, checkpoint, "num_samples=2", f"caption='{text}'", "output_dir=one", cwd=folder)
        images, texts = self.drawn(folder, "one")
        assert texts == [text] * 2
        trained = load(folder / "run" / "checkpoints" / "last.ckpt")
        tokens = Vocabulary(CLASSES["digits"]).encode(text).expand(2, -1)
        expected = trained.model.draw(range(2), Condition(tokens=tokens), 0).images
        assert (images.int() - expected.int()).abs().max() <= 1
        from_python = ld.load(folder / "run", device="cpu").draw(2, caption=text)
        assert torch.equal(torch.from_numpy(from_python).permute(0, 3, 1, 2), images)
        width, height = Image.open(folder / "one" / "grid.png").size
        assert height / width > 0.55  # two squares side by side, and a line of text

    def test_captions_of_held_out_scenes_in_turn(self, folder, checkpoint):
        done(sample, checkpoint, "num_samples=3", "output_dir=turn", cwd=folder)
        _, texts = self.drawn(folder, "turn")
        held_out = load_data(load(folder / "run" / "checkpoints" / "last.ckpt"), None)["val"].sample(torch.arange(3))
        assert texts == [Vocabulary(CLASSES["digits"]).decode(caption) for caption in held_out.tokens]
        for caption in texts:
            one, other = (int(word) for word in caption.split() if word.isdigit())
            assert (one - other) % 10 in (3, 7)  # pairs that training has not shown

    def test_the_benchmark_judges_samples(self, folder):
        path = folder / "run" / "checkpoints" / "last.ckpt"
        with pytest.raises(ValueError, match=r"trained with denoiser.tokens_dropout=0"):
            captions.report(path, 0.01, 4, 2.0)
        table = captions.report(path, 0.01, 4, 1.0, channels=4, depth=1)
        assert [row[:2] for row in table.rows] == [
            (images, pairs)
            for pairs in ("seen in training", "held out")
            for images in ("real scenes", "samples", "samples, wrong captions")
        ]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["caption=a hat left of a 7"], "caption=a hat left of a 7: 'hat' is no class; choose 0, 1"),
            (["caption=a 3"], "caption=a 3: it has no relation"),
            (
                ["attributes=[1,0]"],
                "attributes: this model was trained without attributes; leave it out; give caption=",
            ),
            (["caption=a 3 above a 7", "data=scenes"], "data: the condition of each sample is given"),
            (["edit=image_to_image", "images=[x.png]"], "edit: this model draws only with a caption as its condition"),
            (["guidance=cfg"], "guidance: this model was trained with denoiser.tokens_dropout=0"),
        ],
    )
    def test_mistakes(self, folder, checkpoint, words, message):
        refused(sample, checkpoint, *words, message=message, cwd=folder)
