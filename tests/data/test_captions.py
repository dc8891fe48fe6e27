"""Captions and attributes of scenes, and the combinations that training never shows."""

import itertools

import pytest
import torch

from lightning_diffusion.data.captions import CLASSES, RELATIONS, Vocabulary, is_held_out_pair, relation
from lightning_diffusion.data.digits import Digits
from lightning_diffusion.data.scenes import OUTLINE, SceneImages, Scenes

OPTIONS = {"channels": 1, "image_size": 32, "num_classes": None, "batch_size": 4}
CLOTHING = Vocabulary(CLASSES["fashion_mnist"])


def splits(**options):
    data = Scenes(**(OPTIONS | {"num_items": [2, 2]} | options))
    data.setup()
    return data.splits["train"], data.splits["val"]


def spoken(first, second):
    """The caption of two items, from their squares and classes."""
    x, y = (
        (other + second.side / 2) - (one + first.side / 2)
        for one, other in ((first.left, second.left), (first.top, second.top))
    )
    across, along = ("left of", "right of")[x <= 0], ("above", "below")[y <= 0]
    where = across if abs(x) >= abs(y) else along
    names = [f"{'an' if item.label == 8 else 'a'} {item.label}" for item in (first, second)]
    return f"{names[0]} {where} {names[1]}"


@pytest.mark.parametrize("overlap", [True, False])
def test_captions_and_attributes_are_those_of_the_items(overlap):
    train, _ = splits(overlap=overlap)
    indices = torch.arange(40)
    attributes, captions = train.sample(indices).description
    found = set()
    for i in indices.tolist():
        first, second = train.items(i)
        text = train.vocabulary.decode(captions[i])
        assert text == spoken(first, second)
        assert attributes[i].nonzero().flatten().tolist() == sorted(
            {item.label for item in (first, second) if item.visible}
        )
        found.add(text.split()[2])
    assert found == {"left", "right", "above", "below"}


def test_only_scenes_of_two_items_have_captions_and_the_others_stay_as_they_are():
    source = Digits(1, 8, 10, 1).read("train")
    plain, few = (SceneImages(30, 32, 32, source, OUTLINE["digits"], 0, *options) for options in ((), ((1, 4),)))
    assert plain.sample(torch.arange(3)).description.captions is None
    assert plain.num_items.min() == 2
    assert few.num_items.min() == 1
    alike = few.num_items == plain.num_items
    assert 0 < alike.sum() < 30
    assert torch.equal(few.compose(torch.arange(30)).images[alike], plain.compose(torch.arange(30)).images[alike])
    assert Scenes(**OPTIONS).vocabulary is None
    assert Scenes(**OPTIONS, num_items=[2, 2]).vocabulary == Vocabulary(CLASSES["digits"])


def test_held_out_pairs_never_occur_in_training_and_in_every_held_out_scene():
    """By the table of classes, which `test_captions_and_attributes_are_those_of_the_items` compares with the items."""
    held_out = {frozenset((k, (k + 3) % 10)) for k in range(10)}
    train, val = splits(hold_out_pairs=True, overlap=False)
    assert (len(train), len(val)) == (10_000, 1_000)
    for dataset, wanted in ((train, False), (val, True)):
        captions = dataset.captions(torch.arange(len(dataset)))
        subjects, relations, objects = dataset.vocabulary.parts(captions)
        pairs = [frozenset(pair) for pair in zip(subjects.tolist(), objects.tolist(), strict=True)]
        assert all((pair in held_out) == wanted for pair in pairs)
        assert len(set(pairs)) == (10 if wanted else 45)  # all of them: 35 of two classes, and 10 of the same twice
        assert relations.unique().tolist() == [0, 1, 2, 3]
        for i in range(0, len(dataset), len(dataset) // 20):
            first, second = dataset.items(i)
            assert pairs[i] == {first.label, second.label}
            gaps = [abs(one - other) for one, other in ((first.left, second.left), (first.top, second.top))]
            assert max(gaps) >= min(first.side, second.side) - 1e-4
            assert min(first.visible, second.visible) > 0
    several, _ = splits(hold_out_pairs=True, num_items=[2, 4])
    for i in range(0, 10_000, 500):
        labels = [item.label for item in several.items(i)]
        assert not any(frozenset(pair) in held_out for pair in itertools.combinations(labels, 2))


def test_a_scene_of_a_pair_depends_on_its_seed_and_number_only():
    source = Digits(1, 8, 10, 1).read("train")
    many, few = (SceneImages(n, 32, 32, source, 96, 4, (2, 2), False, True, CLOTHING) for n in (200, 30))
    order = torch.tensor([7, 0, 29])
    for one, other in zip(many.compose(order), few.compose(order), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(many.captions(order), few.captions(order))


def test_relations_by_the_larger_offset():
    dx = torch.tensor([2.0, -2, 1, -1, 2, 0])
    dy = torch.tensor([1.0, -1, 2, -2, 2, 0])
    found = [RELATIONS[k] for k in relation(dx, dy).tolist()]
    assert found == ["left of", "right of", "above", "below", "left of", "right of"]


def test_each_class_is_in_two_held_out_pairs():
    k = torch.arange(10)
    table = is_held_out_pair(k[:, None], k)
    assert torch.equal(table, table.T)
    assert table.sum(1).tolist() == [2] * 10
    assert table[0].nonzero().flatten().tolist() == [3, 7]
    assert is_held_out_pair(torch.tensor(8), torch.tensor(5))  # a bag and a sandal


def test_words_and_text():
    caption = CLOTHING.encode("a bag left of a sandal")
    assert caption.tolist() == [9, 11, 6]
    assert CLOTHING.decode(caption) == "a bag left of a sandal"
    assert CLOTHING.encode(" Ankle  boot above an t-shirt ").tolist() == [10, 13, 1]
    assert CLOTHING.decode(torch.tensor([10, 14, 1])) == "an ankle boot below a T-shirt"
    assert CLOTHING.decode(torch.zeros(3, dtype=torch.long)) == ""
    assert Vocabulary(CLASSES["digits"]).encode("an 8 right of a 3").tolist() == [9, 12, 4]
    for vocabulary in (CLOTHING, Vocabulary(CLASSES["digits"])):
        each = torch.cartesian_prod(torch.arange(10), torch.arange(4), torch.arange(10))
        captions = vocabulary.of(*each.T)
        assert torch.equal(torch.stack(vocabulary.parts(captions), dim=1), each)
        assert len(captions.unique(dim=0)) == 400
        assert all(torch.equal(vocabulary.encode(vocabulary.decode(caption)), caption) for caption in captions[::7])
    assert len(CLOTHING) == 15


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a bag", "caption=a bag: it has no relation, left of, right of, above or below; write 'a T-shirt left of"),
        ("", "caption=: it has no relation"),
        (
            "a hat left of a bag",
            "caption=a hat left of a bag: 'hat' is no class; choose T-shirt, .* or ankle",
        ),
        ("a bag left of", "caption=a bag left of: '' is no class"),
        ("a bag left of a bag above a bag", "'bag above a bag' is no class"),
        ("a bag\nleft of\na h\x1bt", r"'h\\x1bt' is no class"),
    ],
)
def test_other_sentences_are_refused_in_one_line(text, says):
    with pytest.raises(ValueError, match=says) as caught:
        CLOTHING.encode(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_items": [2]}, r"data.num_items=\[2\]: choose the least and the largest number, 1 to 4, such as \[2,2\]"),
        ({"num_items": [0, 2]}, r"data.num_items=\[0,2\]: choose"),
        ({"num_items": [3, 2]}, r"data.num_items=\[3,2\]: choose"),
        ({"num_items": [2, 5]}, r"data.num_items=\[2,5\]: choose"),
        ({"num_items": [2, 3], "overlap": False}, r"data.num_items=\[2,3\] and data.overlap=false: at most two items"),
        ({"num_items": [1, 2], "hold_out_pairs": True}, r"\[1,2\] and data.hold_out_pairs=true: a pair needs two"),
        ({"num_attributes": 9}, "data.num_attributes=9: scenes have 10; leave it out"),
    ],
)
def test_values_out_of_range(options, says):
    with pytest.raises(ValueError, match=says):
        Scenes(**(OPTIONS | options))
