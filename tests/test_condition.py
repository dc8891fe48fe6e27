"""What a sample is asked to be: its parts go together through slices, devices, processes and networks."""

import pickle

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data._utils.pin_memory import pin_memory

from lightning_diffusion.codecs.condition import Condition, by_label
from lightning_diffusion.data.batch import Batch
from lightning_diffusion.data.dataset import Batches, InMemory
from lightning_diffusion.data.workers import Loader
from lightning_diffusion.diffusion.denoiser import NetworkDenoiser
from lightning_diffusion.diffusion.guidance import ClassifierFree
from lightning_diffusion.diffusion.noise import BatchRNG
from lightning_diffusion.diffusion.parameterization import X0
from lightning_diffusion.networks.captions import CaptionEncoder
from lightning_diffusion.networks.dit import DiT
from lightning_diffusion.networks.unet import UNet
from lightning_diffusion.networks.unet_lecture import LectureUNet
from lightning_diffusion.networks.uvit import UViT
from tests.backbones.test_unet import randomized
from tests.diffusion.options import SCHEDULES

PARTS = ("label", "attributes", "image", "tokens")


def every_part(count=5):
    """Sample i has i in each of its parts, or i and what follows it."""
    i = torch.arange(count)
    return Condition(
        label=i,
        attributes=i[:, None] + torch.tensor([0.25, 0.5]),
        image=i[:, None, None, None].float().expand(count, 3, 2, 2),
        tokens=i[:, None] + torch.tensor([10, 20, 30]),
    )


def assert_same(one, other):
    assert type(one) is type(other) is Condition
    assert list(one.parts) == list(other.parts)
    for name, part in one.parts.items():
        assert torch.equal(part, other.parts[name]), name
        assert part.dtype == other.parts[name].dtype, name


@pytest.mark.parametrize(
    ("items", "numbers"),
    [
        (slice(1, 3), [1, 2]),
        (slice(-1), [0, 1, 2, 3]),
        (range(4, 0, -2), [4, 2]),
        (range(0), []),
        (torch.tensor([3, 3, 0]), [3, 3, 0]),
        (torch.tensor([True, False, False, True, False]), [0, 3]),
    ],
)
def test_some_samples(items, numbers):
    some = every_part()[items]
    assert len(some) == len(numbers)
    assert some.label.tolist() == numbers
    assert some.attributes.tolist() == [[n + 0.25, n + 0.5] for n in numbers]
    assert some.image.shape == (len(numbers), 3, 2, 2)
    assert some.image[:, 2, 1, 1].tolist() == numbers
    assert some.tokens.tolist() == [[n + 10, n + 20, n + 30] for n in numbers]
    assert by_label(torch.arange(5))[items].parts.keys() == {"label"}


@pytest.mark.parametrize("items", [2, torch.tensor(2), torch.zeros(5, 2, dtype=torch.long)])
def test_one_sample_is_a_slice_of_one(items):
    with pytest.raises(TypeError, match="a slice, a range or a tensor of one dimension"):
        every_part()[items]


def test_joined():
    whole = every_part()
    assert_same(Condition.cat([whole[:2], whole[2:4], whole[4:]]), whole)
    with pytest.raises(ValueError, match=r"same parts can be joined, not label and label \+ attributes"):
        Condition.cat([by_label(whole.label), Condition(label=whole.label, attributes=whole.attributes)])


def test_each_part_is_dropped_to_its_own_none():
    whole, where = every_part(3), torch.tensor([False, True, False])
    for none in (whole.none(10), Condition(label=torch.tensor([10]))):  # the other parts' none is zeros
        dropped = whole.dropped(where, none)
        assert dropped.label.tolist() == [0, 10, 2]
        assert dropped.attributes.tolist() == [[0.25, 0.5], [0, 0], [2.25, 2.5]]
        assert dropped.image[:, 1, 0, 1].tolist() == [0, 0, 2]
        assert dropped.tokens.tolist() == [[10, 20, 30], [0, 0, 0], [12, 22, 32]]
        assert_same(dropped[0:1], whole[0:1])
    assert_same(whole.dropped(~where & where, whole.none(10)), whole)


def test_some_parts_without_the_others():
    whole, where = every_part(3), torch.tensor([False, True, False])
    assert_same(whole.without(), whole)
    only = whole.without("image", "label", no_class=10)
    assert_same(only, Condition(**whole.parts | {name: whole.none(10).parts[name] for name in ("image", "label")}))
    some = whole.without("image", where=where)  # the label needs no class for "none"
    assert some.image[:, 0, 0, 0].tolist() == [0, 0, 2]
    assert_same(Condition(**some.parts | {"image": whole.image}), whole)
    assert_same(by_label(whole.label).without("image"), by_label(whole.label))
    with pytest.raises(ValueError, match=r"condition.label: there is no class"):
        whole.without("label")


def test_noise_on_the_image_keeps_its_variance_and_leaves_unknown_pixels_alone():
    """√(1 − s²) z + s q ε, and √(1 − s²) q for the share q that is known."""
    shown = torch.ones(2, 3, 1, 2)
    shown[..., 1] = 0  # unknown
    eps = torch.randn(2, 2, 1, 2)
    condition = Condition(image=shown, label=torch.arange(2))
    noised = condition.noised(torch.tensor([0.0, 0.6]), eps)
    assert torch.equal(noised.image[0], shown[0])
    torch.testing.assert_close(noised.image[1, :2, 0, 0], 0.8 + 0.6 * eps[1, :, 0, 0])
    torch.testing.assert_close(noised.image[1, 2, 0], torch.tensor([0.8, 0]))
    assert not noised.image[..., 1].any()
    assert torch.equal(noised.label, condition.label)
    assert by_label(torch.arange(2)).noised(torch.ones(2) / 2, eps).label.tolist() == [0, 1]


def test_what_stands_for_none_may_be_given():
    whole = every_part(3)
    none = Condition(
        label=torch.tensor([7]),
        attributes=torch.tensor([[-1.0, -2.0]]),
        image=torch.full((1, 3, 2, 2), 0.5),
        tokens=torch.tensor([[4, 5, 6]]),
    )
    assert_same(whole.dropped(torch.ones(3, dtype=torch.bool), none), Condition.cat([none] * 3))
    one_each = whole.dropped(torch.tensor([True, False, True]), every_part(6)[3:])  # a none of each sample's own
    assert one_each.label.tolist() == [3, 1, 5]


def test_none_of_each_part():
    none = every_part(2).none(no_class=3)
    assert none.label.tolist() == [3, 3]
    for name in PARTS[1:]:
        assert not none.parts[name].any(), name
        assert none.parts[name].shape == every_part(2).parts[name].shape
    assert by_label(torch.tensor([5])).none(0).label.tolist() == [0]
    unlabelled = Condition(tokens=torch.ones(2, 3, dtype=torch.long))
    assert unlabelled.none(None).tokens.tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Condition(), "condition: no part is given; give one, or None"),
        (
            lambda: Condition(label=torch.arange(3), tokens=torch.zeros(2, 4, dtype=torch.long)),
            "its parts must have the same length, not label 3, tokens 2",
        ),
        (
            lambda: Condition(label=torch.zeros(3)),
            "condition.label: must be int64 with 1 dimensions",
        ),
        (lambda: Condition(label=torch.arange(3)[:, None]), r"condition.label: .* torch.int64 \(3, 1\)"),
        (lambda: Condition(attributes=torch.arange(3)[:, None]), "condition.attributes: must be floating point"),
        (lambda: Condition(image=torch.zeros(3, 2, 2)), "condition.image: must be floating point with 4 dimensions"),
        (lambda: Condition(tokens=torch.arange(3)), "condition.tokens: must be int64 with 2 dimensions"),
        (lambda: every_part().none(None), "condition.label: there is no class that stands for none"),
        (lambda: every_part(2).dropped(torch.tensor([True, False])), "condition.label: there is no class that"),
        (lambda: every_part(3).dropped(torch.tensor([True]), every_part(3)), r"3 samples, but `where` has .* \(1,\)"),
        (lambda: every_part(3).dropped(torch.ones(3) > 0, every_part(2)), "3 samples, but 2 in `none`; give 1 or 3"),
    ],
)
def test_refusals_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_nobody_changes_one_in_place():
    with pytest.raises(AttributeError):
        every_part().label = torch.arange(5)


def test_no_classes_is_no_condition():
    assert by_label(None) is None
    assert_same(by_label(torch.arange(3)), Condition(label=torch.arange(3)))


class TestOnItsWay:
    """From a loader's process to the device, inside of a batch."""

    batch = Batch(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), every_part(), 40, targets=torch.ones(5, 8, 8))

    def test_through_pickle(self):
        back = pickle.loads(pickle.dumps(self.batch))
        assert_same(back.condition, every_part())
        assert back.start == 40
        assert torch.equal(back.targets, self.batch.targets)

    def test_to_a_device(self):
        on_it = every_part().to("meta")
        assert [part.device.type for part in on_it.parts.values()] == ["meta"] * 4
        assert_same(every_part().to("cpu"), every_part())

    def test_lightning_moves_all_of_it(self):
        moved = move_data_to_device(self.batch, torch.device("meta"))
        assert type(moved) is Batch
        tensors = [moved.images, moved.targets, *moved.condition.parts.values()]
        assert [tensor.device.type for tensor in tensors] == ["meta"] * 6
        assert moved.start == 40
        assert move_data_to_device(self.batch._replace(condition=None, targets=None), "meta").condition is None

    def test_the_loader_pins_all_of_it(self, monkeypatch):
        """By torch's own function, with a copy instead of pinned memory, which needs a GPU (see test_gpu.py)."""
        pinned = []
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *device: pinned.append(tensor) or tensor.clone())
        given = pin_memory(self.batch)
        assert type(given) is Batch
        assert len(pinned) == 6
        assert_same(given.condition, every_part())

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("num_classes", [None, 3])
    def test_a_loader_hands_it_over(self, num_classes, workers):
        images = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1)
        dataset = Batches(InMemory(images, torch.arange(6) % 3), num_classes)
        order = [(0, torch.tensor([0, 4])), (2, torch.tensor([5, 3]))]
        first, second = Loader(dataset, num_workers=workers, sampler=order)
        assert (first.start, second.start) == (0, 2)
        assert second.images.flatten().tolist() == [5, 3]
        assert first.targets is None
        if num_classes is None:
            assert first.condition is second.condition is None
        else:
            assert_same(first.condition, by_label(torch.tensor([0, 1])))
            assert_same(second.condition, by_label(torch.tensor([2, 0])))


class Recorder(torch.nn.Module):
    """A network for any condition."""

    num_classes = 10

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, time, condition):
        self.seen.append(condition)
        return x


class TestDenoiser:
    def made(self):
        return NetworkDenoiser(Recorder(), SCHEDULES["cosine"], X0(), label_dropout=0.3)

    def test_each_part_is_dropped_independently_as_its_draws_say(self):
        """The label's draw comes first, so a model of labels draws as it always did."""
        denoiser, condition = self.made(), every_part(1000)
        denoiser.dropout |= {"image": 0.2, "tokens": 0.5}
        shown, rng = denoiser.drop_condition(condition, BatchRNG(3)), BatchRNG(3)
        dropped, image_dropped, tokens_dropped = (rng.uniform(1000) < share for share in (0.3, 0.2, 0.5))
        expected = dict(condition.parts)
        expected["label"] = torch.where(dropped, 10, condition.label)
        expected["image"] = torch.where(image_dropped[:, None, None, None], 0, condition.image)
        expected["tokens"] = torch.where(tokens_dropped[:, None], 0, condition.tokens)
        assert_same(shown, Condition(**expected))
        assert 30 < (dropped & image_dropped).sum() < 95
        denoiser.dropout["image"] = 0
        assert torch.equal(denoiser.drop_condition(condition, BatchRNG(3)).image, condition.image)
        assert torch.equal(shown.label, torch.where(dropped, 10, condition.label))
        assert 230 < dropped.sum() < 370
        assert denoiser.eval().drop_condition(condition, BatchRNG(3)) is condition
        assert denoiser.drop_condition(None, BatchRNG(3)) is None

    def test_a_condition_without_label_needs_no_class(self):
        denoiser = self.made()
        denoiser.backbone.num_classes = None
        denoiser.dropout = {"label": 0.1, "attributes": 0.3}
        shown = denoiser.drop_condition(Condition(attributes=torch.ones(1000, 2)), BatchRNG(3))
        assert torch.equal(shown.attributes[:, 0] == 0, BatchRNG(3).uniform(1000) < 0.3)

    def test_guidance_asks_for_the_condition_and_for_none_of_each_part(self):
        denoiser, condition = self.made().eval(), every_part(2)
        x, t = torch.randn(2, 1, 2, 2), torch.tensor(500.0)
        ClassifierFree(denoiser, scale=2.0)(x, t, condition)
        (seen,) = denoiser.backbone.seen
        assert_same(seen, Condition.cat([condition, condition.none(10)]))


class TestNetworks:
    x, time = torch.randn(3, 1, 8, 8), torch.tensor([1.0, 300.0, 900.0])

    def dit(self, **options):
        return DiT(8, 1, patch_size=4, dim=16, depth=1, num_heads=2, **options)

    @pytest.mark.parametrize("name", PARTS)
    def test_a_part_that_a_network_does_not_embed_is_refused(self, name):
        condition = every_part(3)
        only = Condition(**{name: condition.parts[name]})
        plain, without_time = LectureUNet(1, 8, depth=1), LectureUNet(1, 8, depth=1, time=False)
        for network in (self.dit(), plain, without_time):
            with pytest.raises(ValueError, match=f"condition.{name}: this network has no embedding for it"):
                network(self.x, self.time, only)
        if name != "label":
            with pytest.raises(ValueError, match=f"condition.{name}: this network"):
                self.dit(num_classes=10)(self.x, self.time, Condition(label=condition.label, **only.parts))

    def networks(self, **options):
        yield randomized(self.dit(**options))
        yield randomized(UViT(8, 1, patch_size=4, dim=16, depth=1, num_heads=2, **options))
        yield randomized(UNet(8, 1, 8, [1, 2], num_blocks=1, attention_resolutions=[], patch_size=2, **options))
        yield randomized(LectureUNet(1, 8, depth=1, **options))

    def test_an_image_changes_the_output_where_it_is_and_none_is_zeros(self):
        image = torch.randn(3, 3, 8, 8)
        for network in self.networks(condition_channels=2, num_classes=10):
            label = torch.arange(3)
            shown = network(self.x, self.time, Condition(label=label, image=image))
            assert shown.shape == self.x.shape
            none = network(self.x, self.time, Condition(label=label, image=torch.zeros_like(image)))
            assert torch.equal(network(self.x, self.time, by_label(label)), none)
            for given in (-torch.ones(3, 2, 8, 8), torch.zeros(3, 2, 8, 8)):  # black and grey are not none
                known = torch.cat([given, torch.ones(3, 1, 8, 8)], dim=1)
                assert (network(self.x, self.time, Condition(label=label, image=known)) - none).abs().max() > 1e-4
            with pytest.raises(ValueError, match=r"condition.image: this network takes 3 × 8 × 8, not 2 × 8 × 8"):
                network(self.x, self.time, Condition(image=image[:, :2]))
            image.requires_grad_()
            (slope,) = torch.autograd.grad(shown_sum := network(self.x, self.time, Condition(image=image)).sum(), image)
            assert shown_sum.isfinite()
            assert slope.flatten(1).any(dim=1).all()
            image = image.detach()

    def test_an_image_changes_only_the_input_layer(self):
        """The other weights have the same names and shapes as those of a network without image."""
        plain = {type(net): net for net in self.networks()}
        for with_image in self.networks(condition_channels=2):
            shapes = {name: value.shape for name, value in with_image.state_dict().items()}
            others = {name: value.shape for name, value in plain[type(with_image)].state_dict().items()}
            assert shapes.keys() == others.keys()
            assert sum(shapes[name] != others[name] for name in shapes) == 1  # the input layer

    def test_one_compiled_graph_serves_every_condition_of_the_same_parts(self):
        """A condition is new at every step; recompiling each time would cost minutes."""
        network = randomized(self.dit(num_classes=10))
        torch._dynamo.reset()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        one, other = by_label(torch.tensor([0, 1, 2])), by_label(torch.tensor([10, 9, 3]))
        for condition in (None, one):
            expected = network(self.x, self.time, condition)
            torch.testing.assert_close(compiled(self.x, self.time, condition), expected)
        with torch._dynamo.config.patch(error_on_recompile=True):
            expected = network(self.x, self.time, other)
            torch.testing.assert_close(compiled(self.x, self.time, other), expected)
            compiled(self.x, self.time, None)
        assert not torch.equal(expected, network(self.x, self.time, one))

    def test_checkpointing_brings_the_gradient_to_the_classes(self):
        gradients = []
        for checkpointing in (False, True):
            torch.manual_seed(0)
            network = randomized(self.dit(num_classes=10, checkpointing=checkpointing))
            network(self.x, self.time, by_label(torch.tensor([0, 4, 10]))).square().sum().backward()
            gradients.append(network.embedding.classes.weight.grad)
        torch.testing.assert_close(*gradients)
        assert gradients[0].abs().sum(1).nonzero().flatten().tolist() == [0, 4, 10]

    def test_attributes_and_captions_change_the_output_and_none_is_leaving_them_out(self):
        attributes = torch.cat([torch.randn(3, 4), torch.ones(3, 1)], dim=1)
        tokens = torch.tensor([[2, 5, 3], [3, 5, 2], [2, 5, 0]])
        for network in self.networks(num_attributes=4, num_words=7, num_classes=10):
            label = torch.arange(3)
            plain = network(self.x, self.time, by_label(label))
            whole = Condition(label=label, attributes=attributes, tokens=tokens)
            assert torch.equal(network(self.x, self.time, whole.without("attributes", "tokens")), plain)
            only = {name: network(self.x, self.time, whole.without(name)) for name in ("attributes", "tokens")}
            for output in (network(self.x, self.time, whole), *only.values()):
                assert (output - plain).abs().flatten(1).amax(1).min() > 1e-4
            black = Condition(label=label, attributes=attributes * torch.tensor([0, 0, 0, 0, 1.0]))
            assert (network(self.x, self.time, black) - plain).abs().max() > 1e-4  # known zeros are not none
            with pytest.raises(ValueError, match=r"condition.tokens: at most 16 words, not 17"):
                network(self.x, self.time, Condition(tokens=torch.ones(3, 17, dtype=torch.long)))

    def test_they_only_add_weights(self):
        plain = {type(network): network.state_dict() for network in self.networks(num_classes=10)}
        for network in self.networks(num_classes=10, num_attributes=4, num_words=7):
            state, others = network.state_dict(), plain[type(network)]
            assert all(value.shape == state[name].shape for name, value in others.items())
            added = state.keys() - others.keys()
            assert added
            assert all(name.startswith(("embedding.attributes.", "embedding.caption.")) for name in added)


class TestCaptionEncoder:
    encoder = randomized(CaptionEncoder(7, 12)).eval()

    def test_the_order_of_words_matters_and_padding_does_not(self):
        one, other = self.encoder(torch.tensor([[2, 5, 3], [3, 5, 2]]))
        assert (one - other).abs().max() > 1e-3
        padded = self.encoder(torch.tensor([[2, 5, 3, 0, 0]]))[0]
        torch.testing.assert_close(padded, one)
        gap = self.encoder(torch.tensor([[2, 0, 5, 3]]))[0]  # the words' positions count
        assert (gap - one).abs().max() > 1e-3

    def test_no_words_are_zeros_and_leave_finite_gradients(self):
        tokens = torch.tensor([[0, 0, 0], [1, 0, 0]])
        none, one = self.encoder(tokens)
        assert not none.any()
        assert one.any()
        self.encoder(tokens).square().sum().backward()
        slopes = [parameter.grad for parameter in self.encoder.parameters()]
        assert all(slope.isfinite().all() for slope in slopes)
        assert self.encoder.words.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1]
