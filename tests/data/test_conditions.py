"""The images that are conditions: each source against its definition, on its way from the data set to a batch."""

import math

import pytest
import torch

from lightning_diffusion.codecs.masks import GREY, IGNORED, palette
from lightning_diffusion.data.conditions import (
    Grey,
    LowResolution,
    Mask,
    Picture,
    WithCondition,
    entropy,
    panels,
    shares,
)
from lightning_diffusion.data.dataset import Batches, ImageDataset, InMemory, Mirrored, Sample
from lightning_diffusion.data.digits import Digits
from lightning_diffusion.data.scenes import Scenes

BLACK, WHITE = -1, 1


class Masked(InMemory):
    """Images with masks."""

    def __init__(self, images, masks, labels=None):
        super().__init__(images, labels)
        self.masks = masks

    def sample(self, indices):
        images, labels = self[indices]
        return Sample(images, labels, self.masks[indices])


def sample_of(images, targets=None):
    return Sample(images, None, targets)


def masked(count=6):
    torch.manual_seed(1)
    masks = torch.randint(0, 3, (count, 4, 6), dtype=torch.uint8)
    masks[0, 0, :2] = IGNORED
    return Masked(torch.randint(0, 256, (count, 1, 4, 6), dtype=torch.uint8), masks, torch.arange(count) % 2)


def test_low_resolution_is_the_mean_of_each_square():
    image = torch.tensor([[0, 255, 10, 10], [255, 0, 10, 14], [0, 0, 255, 255], [0, 0, 255, 255]], dtype=torch.uint8)
    shown = LowResolution(1, factor=2)(sample_of(image[None, None])).shown
    wanted = torch.tensor([[0.0, 11 / 127.5 - 1], [BLACK, WHITE]]).kron(torch.ones(2, 2))
    torch.testing.assert_close(shown[0, 0], wanted)
    assert torch.equal(shown[0, 1], torch.ones(4, 4))  # all of it is known: a square of 0 is grey, not "none"


def test_grey_is_the_luminance():
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]], dtype=torch.uint8)
    shown = Grey()(sample_of(colours.T[None, :, None])).shown
    wanted = torch.tensor([0.299, 0.587, 0.114, 1, 0]) * 2 - 1
    torch.testing.assert_close(shown[0, 0, 0], wanted)


def test_a_mask_has_a_channel_for_each_class_and_ignored_pixels_are_unknown():
    data = masked()
    sample = Mask(3)(data.sample(torch.arange(6)))
    images, targets, shown = sample.images, sample.targets, sample.shown
    assert torch.equal(images, data.images)
    for k in range(3):
        assert torch.equal(shown[:, k] == 1, targets == k)
    assert torch.equal(shown[:, 3] == 1, targets != IGNORED)
    assert not shown[0, :, 0, :2].any()  # as "none"
    pictures = Mask(3).shown_as_picture(shown)
    assert torch.equal(pictures.movedim(1, -1), palette(3)[targets.long()])


def test_a_picture_is_shown_and_its_mask_is_drawn():
    data = masked()
    source = Picture(1, 3)
    sample = source(data.sample(torch.arange(6)))
    images, targets, shown = sample.images, sample.targets, sample.shown
    torch.testing.assert_close(shown[:, :1], data.images / 127.5 - 1)
    assert images.shape == (6, 3, 4, 6)
    assert images.unique().tolist() == [0, 255]
    assert torch.equal(images.argmax(1)[targets != IGNORED], targets[targets != IGNORED].long())
    assert not images[0, :, 0, :2].any()
    assert torch.equal(source.drawn_as_picture(images).movedim(1, -1), palette(3)[targets.long()])


def test_votes_of_several_samples():
    """Three samples of a pixel: classes 0, 0, 1; and one on which all agree."""
    samples = torch.zeros(3, 1, 2, 1, 2, dtype=torch.uint8)
    for v, k in enumerate((0, 0, 1)):
        samples[v, 0, k, 0, 0] = 200
        samples[v, 0, 1, 0, 1] = 100
    votes = shares(samples)
    torch.testing.assert_close(votes[0, :, 0], torch.tensor([[2 / 3, 0], [1 / 3, 1]]))
    wanted = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(2)
    torch.testing.assert_close(entropy(votes, 3)[0, 0], torch.tensor([wanted, 0]))
    everyone_differs = torch.eye(3)[:, :, None, None].expand(-1, -1, 1, 1)[:, None]
    torch.testing.assert_close(entropy(shares(everyone_differs), 3), torch.ones(1, 1, 1))


def test_panels_side_by_side():
    data = masked(4)
    for source, width in ((LowResolution(1, 2), 3), (Mask(3), 3), (Picture(1, 3), 4)):
        held_out = WithCondition(data, source)
        drawn = held_out.sample(torch.arange(5) % 4)
        row = panels(held_out, source, drawn.images[None].expand(source.num_samples, -1, -1, -1, -1))
        assert row.shape[0] == 5
        assert row.shape[2:] == (4, width * 7 - 1)
        assert (row[..., 6::7] == GREY).all()
        cells = [row[..., 7 * i : 7 * i + 6] for i in range(width)]
        assert torch.equal(cells[0], source.shown_as_picture(drawn.shown).expand_as(cells[0]))
        truth = 1 if width == 4 else 2
        assert torch.equal(cells[truth], source.drawn_as_picture(drawn.images).expand_as(cells[truth]))
        if width == 4:
            assert not cells[3].any()  # all samples agree


def test_consistency_is_that_of_the_condition():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    for source in (LowResolution(3, 4), Grey()):
        shown = source(sample_of(images)).shown
        assert not source.consistency(images, shown).any()
        darker = images // 2
        wanted = ((source(sample_of(darker)).shown - shown)[:, :-1] / 2).square().flatten(1).mean(1)
        torch.testing.assert_close(source.consistency(darker, shown), wanted)
    shifted = images.clone()
    shifted[:, :, ::2] = images[:, :, 1::2]
    shifted[:, :, 1::2] = images[:, :, ::2]
    assert LowResolution(3, 4).consistency(shifted, LowResolution(3, 4)(sample_of(images)).shown).max() < 1e-12
    assert Mask(2).consistency(images, shown) is None


@pytest.mark.parametrize("source", [LowResolution(1, 2), Mask(3), Picture(1, 3)], ids=lambda s: type(s).__name__)
def test_the_condition_reaches_the_batch_and_is_mirrored_with_its_image(source):
    data = masked()
    whole = WithCondition(data, source)
    batch = Batches(Mirrored(whole), 2)[7, torch.tensor([1, 7])]
    straight = source(data.sample(torch.tensor([1])))
    assert batch.start == 7
    assert batch.condition.label.tolist() == [1, 1]
    assert torch.equal(batch.condition.image[:1], straight.shown)
    assert torch.equal(batch.condition.image[1:], straight.shown.flip(-1))
    assert torch.equal(batch.images[1:], straight.images.flip(-1))
    assert Batches(whole, None)[0, torch.tensor([0])].condition.parts.keys() == {"image"}


def test_fingerprints_differ_if_the_images_do():
    data = masked()
    assert WithCondition(data, Mask(3)).fingerprint() == data.fingerprint()
    drawn = {data.fingerprint(), *(WithCondition(data, Picture(1, k)).fingerprint() for k in (3, 4))}
    assert len(drawn) == 3
    assert WithCondition(data, Picture(1, 3)).fingerprint() in drawn


def test_the_data_module_shows_both_splits():
    module = Digits(channels=1, image_size=8, num_classes=None, batch_size=4, num_images=5)
    module.condition_source = LowResolution(1)
    module.setup()
    assert len(module.splits["train"]) == 5
    for split in module.splits.values():
        assert isinstance(split, ImageDataset)
        assert split.sample(torch.arange(2)).shown.shape == (2, 2, 8, 8)


DIGITS = {"channels": 1, "image_size": 8, "num_classes": None, "batch_size": 4}
SCENES = {"channels": 1, "image_size": 16, "num_classes": None, "batch_size": 4}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowResolution(1, 1), "condition.factor=1: choose a whole number of at least 2"),
        (lambda: LowResolution(1, 3).check(Digits(**DIGITS)), "condition.factor=3 and data.image_size=8: the factor"),
        (lambda: Grey(2), "condition.channels=2: a grey image has 1 channel"),
        (lambda: Grey().check(Digits(**DIGITS)), "condition=grey and data.channels=1: only colour images"),
        (lambda: Mask(1), "condition: these images have no masks"),
        (lambda: Mask(3).check(Scenes(**SCENES)), "condition.channels=3 and data.mask_classes=11: the masks have"),
        (lambda: Picture(1, 1), "condition: these images have no masks"),
        (lambda: Picture(1, 4).check(Digits(**DIGITS)), "condition.drawn_channels=4 and data.mask_classes=None"),
    ],
)
def test_mistakes_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
