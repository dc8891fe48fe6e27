"""The scripts behind the figures of the documentation compare what they say they compare."""

import ast
import dataclasses
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import __main__ as listing
from benchmarks import (
    backbones,
    digits,
    emoji,
    exact,
    fingerprint,
    judge,
    label_efficiency,
    mnist_subset,
    rounding,
    stock,
)
from benchmarks.contenders import ours, theirs
from benchmarks.peers import PEERS, Diffusers
from benchmarks.recipes import steps_within
from benchmarks.sampling import pair
from benchmarks.scaling import exponent
from benchmarks.sizes import Size, forward_flops
from benchmarks.turns import Table, in_turns, speed_up
from lightning_diffusion.codecs.pixels import to_uint8
from lightning_diffusion.data.dataset import InMemory
from lightning_diffusion.data.digits import Digits
from lightning_diffusion.data.mnist import MNIST
from lightning_diffusion.metrics.distances.frechet import frechet_distance, moments

BENCHMARKS = [path for path in Path(emoji.__file__).parent.glob("[!_]*.py") if "def main()" in path.read_text()]
TINY = Size(image_size=8, channels=16, mults=(1, 2), num_blocks=1, attends_at=(4,), batch_size=4)


def test_the_list_has_one_line_for_each_benchmark(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    listing.main()
    lines = [line.split(None, 3)[2:] for line in capsys.readouterr().out.split("\n\n")[0].splitlines()]
    assert [name for name, _ in lines] == sorted(f"benchmarks.{path.stem}" for path in BENCHMARKS)
    assert all(summary.endswith(".") for _, summary in lines)


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: p.stem)
def test_a_benchmark_s_help_states_its_command_its_needs_its_output_and_its_time(path):
    """--help prints the docstring of the file."""
    code = path.read_text()
    text = ast.get_docstring(ast.parse(code))
    assert any(
        parser in code for parser in ("parser_of(__doc__)", "options(__doc__", "ArgumentParser(description=__doc__")
    )
    for part in (f"\npython -m benchmarks.{path.stem}", "\nNeeds:  ", "\nPrints: ", "\nTakes:  "):
        assert text.count(part) >= 1, part


def test_contenders_train_the_same_network():
    mine, their_own = ours(TINY), theirs(Diffusers, TINY)
    counts = [sum(p.numel() for p in contender.network.parameters()) for contender in (mine, their_own)]
    assert counts[0] == counts[1]
    assert forward_flops(mine.network, TINY) == pytest.approx(forward_flops(their_own.network, TINY), rel=0.02)
    for contender in (mine, their_own):
        before = [p.detach().clone() for p in contender.network.parameters()]
        for _ in range(4):  # layers that start at zero block the gradient of those before them
            contender.step()
        moved = [not torch.equal(p, old) for p, old in zip(contender.network.parameters(), before, strict=True)]
        assert sum(moved) / len(moved) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_learns_what_it_is_shown_and_draws_it(name, monkeypatch):
    """Grey images, after a few dozen steps and with a learning rate for so few."""
    pytest.importorskip(name.replace("-", "_"))
    torch.manual_seed(0)
    peer = PEERS[name](dataclasses.replace(TINY, channels=32))  # torchcfm has 32 groups everywhere
    monkeypatch.setattr(peer, "lr_at", lambda number, share: 2e-3)
    before = peer.draw(8, 10, averaged=False)
    stock.train(peer, lambda: torch.full((16, 1, 8, 8), 0.5), steps=60)
    after = peer.draw(8, 10, averaged=False)
    assert after.shape == (8, 1, 8, 8)
    assert (after - 0.75).abs().mean() < 0.5 * (before - 0.75).abs().mean()
    assert not torch.equal(peer.draw(8, 10, averaged=True), after)


def test_samplers_that_are_timed_put_out_the_same_images():
    mine, theirs, apart = pair(TINY, batch_size=3)
    assert apart < 1e-4
    assert mine().shape == theirs().shape == (3, 1, 8, 8)


def test_turns_take_each_case_once_a_round():
    order = []
    seconds = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, warm_up=2)
    assert order == ["a", "b"] * 5
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_speed_up_is_the_median_of_the_rounds_own_ratios():
    """A round that was slow for all changes nothing."""
    assert speed_up({"fast": [1.0, 10.0, 1.0], "slow": [2.0, 20.0, 2.0]}, "fast", over="slow") == 2


def test_exponent():
    work = [1.0, 2.0, 4.0]
    assert exponent(work, [3 * w**1.5 for w in work]) == pytest.approx(1.5)


def test_a_table_is_kept_as_csv_and_drawn(tmp_path):
    table = Table("name", "what", "value", drawn=["value"])
    table.add("a", 1.23456)
    table.write(tmp_path / "new")
    figure = table._figure()
    assert [bar.get_width() for bar in figure.axes[0].patches] == [1.23]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a"]
    assert (tmp_path / "new" / "name.png").stat().st_size > 1000
    assert (tmp_path / "new" / "name.csv").read_text().splitlines() == ["what,value", "a,1.23"]


def test_recipes_get_the_steps_that_their_speed_allows(monkeypatch):
    def turns(cases, rounds, warm_up):
        cases["step"]()
        return {"step": [8.0, 0.25, 0.5]}

    monkeypatch.setattr("benchmarks.recipes.in_turns", turns)
    words = ["experiment=digits", "logger=csv", "callbacks=default", "backbone.channels=8", "data.batch_size=4"]
    assert [steps_within(seconds, words) for seconds in (0.1, 1.0, 100.0)] == [1, 2, 200]


def test_labels_are_counted_for_both_starts(monkeypatch, tmp_path, capsys):
    """Each number of scenes once from the checkpoint and once from nothing, in runs that are equal otherwise."""
    found = []

    def trained(command, check, cwd):
        words = dict(word.split("=", 1) for word in command[3:])
        found.append(words)
        Path(words["run_dir"]).mkdir(parents=True)
        score = 0.1 + int(words["data.num_images"]) / 1000 + 0.2 * ("pretrained" in words)
        (Path(words["run_dir"]) / "metrics.json").write_text(json.dumps({"val/mean_iou": score}))

    monkeypatch.setattr(label_efficiency.subprocess, "run", trained)
    arguments = ["x", str(tmp_path / "out"), "last.ckpt", "--labels", "16", "64", "--steps", "7", "--", "backbone=unet"]
    monkeypatch.setattr(sys, "argv", arguments)
    label_efficiency.main()
    assert [(words["data.num_images"], "pretrained" in words) for words in found] == [
        ("16", True), ("16", False), ("64", True), ("64", False),
    ]  # fmt: skip
    same = [{key: value for key, value in words.items() if key not in ("pretrained", "run_dir", "data.num_images")}
            for words in found]  # fmt: skip
    assert all(words == same[0] for words in same)
    assert (same[0]["backbone"], same[0]["trainer.max_steps"], same[0]["trainer.val_check_interval"]) == (
        "unet",
        "7",
        "7",
    )
    rows = (tmp_path / "out" / "label_efficiency.csv").read_text().split()
    assert rows[-2:] == ["16,0.316,0.116", "64,0.364,0.164"]
    assert Image.open(tmp_path / "out" / "label_efficiency.png").size[0] > 300


def test_sizes_compose():
    assert dataclasses.replace(TINY, bf16=True).words[-1] == "trainer.precision=bf16-mixed"


def test_a_fingerprint_is_of_values_and_their_order():
    """Names and memory layout do not count; one ulp of one value does, as do dtype, shape and the sign of 0."""
    w, b = torch.linspace(0.5, 2, 6).view(2, 3), torch.tensor(0.0)
    known = fingerprint.weights({"old.w": w, "count": torch.tensor(3), "old.b": b})
    assert known == fingerprint.weights({"new.w": w.T.contiguous().T, "new.b": b})
    ulp = w.clone()
    ulp[1, 2] = torch.nextafter(w[1, 2], torch.tensor(9.0))
    for changed in ([ulp, b], [w, -b], [w.view(3, 2), b], [w.double(), b], [w.view(torch.int32), b], [b, w], [w]):
        assert exact.digest(changed) != known


def test_an_exact_hash_sees_what_pixels_hide():
    """A change of 2.4e-7 in one place: in an image that is rounded, and through a layer of a network."""
    image, changed = torch.full((1, 1, 8, 8), 0.5), torch.full((1, 1, 8, 8), 0.5)
    changed[0, 0, 3, 3] += 2**-22
    assert torch.equal(to_uint8(image), to_uint8(changed))
    for through in (to_uint8, torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(8, 4)):
        found = []
        for given in (image, image.clone(), changed):
            with exact.Recorder() as recorder:
                through(given)
            assert len(recorder.found) == 1
            found += recorder.found
        assert found[0] == found[1] != found[2]


def test_a_fingerprint_ends_with_the_message_of_a_program_that_fails(tmp_path):
    with pytest.raises(SystemExit, match="No module named not_there"):
        fingerprint.run("not_there", "", tmp_path)


@pytest.mark.slow
def test_digits_are_read_as_what_they_are_and_copies_are_found():
    """Half held-out digits with their labels, half training images with wrong ones."""
    data = Digits(channels=1, image_size=8, num_classes=10, batch_size=1)
    data.setup()
    train, held_out = data.splits["train"], data.splits["val"]
    images = torch.cat([held_out.images[:200], train.images[:200]]).permute(0, 2, 3, 1).numpy()
    labels = torch.cat([held_out.labels[:200], (train.labels[:200] + 1) % 10]).numpy()
    verdict = digits.judge(images, labels)
    assert 0.5 <= verdict.near_copies < 0.53
    for name, reading in verdict.readings.items():
        assert 0.47 < reading.right < 0.51, name
        assert min(reading.accuracy, reading.sure, reading.sure_real) > 0.9, name


@pytest.mark.slow
def test_networks_are_compared_in_one_row_each(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["backbones", "0.5"])
    monkeypatch.setattr(backbones, "BACKBONES", ("unet_lecture",))
    monkeypatch.setattr(backbones, "SAMPLES", 20)
    backbones.main()
    header, _, row = capsys.readouterr().out.strip().splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == len(header.strip("|").split("|"))
    assert cells[:2] == ["`unet_lecture`", "529,377"]
    assert 0 <= float(cells[-2]) <= 1


def test_pairs_that_amplify_rounding_are_marked():
    """The limit is 2¹⁷ = 1.3e5: eps exceeds it on a linear chain of 20 steps, but not on one of 21."""
    eps, mean = (rounding.option("parameterization", name) for name in ("eps", "mean"))
    chains = {steps: rounding.option("schedule", "linear", T=steps) for steps in (13, 20, 21)}
    flow = rounding.option("schedule", "flow")
    assert [rounding.amplification(eps, chain) for chain in chains.values()] == ["1.2e+09 *", "1.9e+05 *", "1.6e+04"]
    assert [rounding.amplification(mean, schedule) for schedule in (chains[13], flow)] == ["1.2e+06 *", "–"]
    assert rounding.amplification(eps, flow) == "inf *"


def test_the_judge_learns_what_it_is_shown_and_tells_images_from_noise(monkeypatch):
    monkeypatch.setattr(judge, "STEPS", 40)
    monkeypatch.setattr(judge, "BATCH", 32)
    labels = torch.arange(600) % 10
    images = torch.zeros(600, 1, 28, 28, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):  # a class is a height, the same in the mirror
        image[:, 2 * label + 4 : 2 * label + 8] = 200
    images += (20 * torch.rand(images.shape)).to(torch.uint8)
    network = judge.fit(InMemory(images, labels))
    with torch.inference_mode():
        read_as = network.head(judge.features(network, images)).argmax(1)
    assert (read_as == labels).float().mean() > 0.9
    half, other = (moments(judge.features(network, part)) for part in images.split(300))
    noise = moments(judge.features(network, torch.randint(256, images.shape, dtype=torch.uint8)))
    assert frechet_distance(noise, other) > 10 * frechet_distance(half, other)


@pytest.mark.skipif(not Path(emoji.FONT).exists(), reason="apt-get install fonts-noto-color-emoji")
def test_emoji_are_told_apart_by_kind():
    """A character's picture, on white, is listed under its kind; faces are yellow."""
    found = {text: (kind, picture) for kind, text, picture in itertools.islice(emoji.emoji(emoji.FONT), 400)}
    assert [emoji.kind_of(ord(text)) for text in "😀🐶🍎🚗💜🕐♈👩🔑"] == [
        "faces", "animals", "food", "places", "hearts", "clocks", "signs", "people", "objects",
    ]  # fmt: skip
    assert all(emoji.squared(picture, 32).size == (32, 32) for _, picture in found.values())
    smile = emoji.squared(emoji._picture("😀", emoji.font_of(emoji.FONT)), 32)
    red, green, blue = smile.getpixel((16, 8))
    assert min(red, green) > 150 > blue
    assert smile.getpixel((0, 0)) == (255, 255, 255)


def test_uneven_pictures_have_many_sizes_and_shapes():
    sizes = {emoji.uneven(Image.new("RGB", emoji.CANVAS, "red"), number).size for number in range(39)}
    assert len(sizes) == 39
    assert {(width > height) - (width < height) for width, height in sizes} == {-1, 0, 1}
    assert min(map(min, sizes)) >= 24
    assert max(map(max, sizes)) <= 200


def test_digits_of_the_package_become_mnist_s_files(tmp_path, monkeypatch):
    folder = tmp_path / "package" / "src" / "digits"
    folder.mkdir(parents=True)
    for label in range(10):  # four of each class, of one grey
        greys = [round((20 * label + number) / 255, 3) for number in range(4)]
        (folder / f"{label}.json").write_text(json.dumps({"data": [grey for grey in greys for _ in range(784)]}))
    words = ["mnist_subset", str(tmp_path / "package"), str(tmp_path / "mnist"), "--held-out", "10"]
    monkeypatch.setattr(sys, "argv", words)
    mnist_subset.main()
    data = MNIST(str(tmp_path / "mnist"), channels=1, image_size=28, num_classes=10, batch_size=1)
    data.setup()
    for split, numbers in (("train", [0, 1, 2]), ("val", [3])):
        images, labels = data.splits[split].images, data.splits[split].labels
        whole = [(20 * label + number, label) for label in range(10) for number in numbers]
        assert sorted(zip(images[:, 0, 5, 5].tolist(), labels.tolist(), strict=True)) == whole
        assert labels.tolist() != sorted(labels.tolist())
