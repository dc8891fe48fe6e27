"""Cached compositions equal those that Hydra makes each time."""

import hydra
import pytest
from omegaconf import OmegaConf, open_dict

from lightning_diffusion.app.cli import CONF
from tests.once import each_time

LINES = [
    [],
    ["schedule.T=7", "tags=[a,'b c']", "+data.extra={x: 1}", "~trainer.gradient_clip_val"],
    ["experiment=cifar10", "sampler=unipc", "logger=csv", "callbacks=default"],
    ["experiment=fashion_mnist", "model=gan", "game=minimax"],
    ["backbone=dit", "metrics=inception", "~guidance"],
]


def compose(folder, words):
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        try:
            return hydra.compose("train", overrides=words, return_hydra_config=True)
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def facts(config):
    """Return every node with its type and flags and unresolved interpolations, or an error's text."""
    if isinstance(config, str):
        return config
    if OmegaConf.is_config(config) and not config._is_none() and not config._is_missing():
        keys = config.keys() if OmegaConf.is_dict(config) else range(len(config))
        parts = [(key, facts(config._get_node(key))) for key in keys if str(key) != "cwd"]
    else:
        parts = config._value()
    about = config._metadata
    return type(config), about.ref_type, about.object_type, about.optional, about.flags, parts


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_it_is_the_same(words):
    with each_time():
        expected = facts(compose(CONF, words))
    for _ in range(2):
        assert facts(compose(CONF, words)) == expected


@pytest.mark.parametrize("words", [["schedule=nope"], ["nope=1"], ["schedule=[1,2]"], ["schedule.T=("]], ids=" ".join)
def test_a_mistake_is_the_same_each_time(words):
    with each_time():
        expected = compose(CONF, words)
    assert [compose(CONF, words) for _ in range(2)] == [expected] * 2


def test_one_line_leaves_nothing_in_the_next():
    first = compose(CONF, ["schedule.T=7", "+new=1"])
    with open_dict(first):
        first.backbone.clear()
    second = compose(CONF, ["schedule.T=8"])
    assert (second.schedule.T, "new" in second, len(second.backbone) > 0) == (8, False, True)


def test_an_interpolation_in_a_defaults_list_is_resolved(tmp_path):
    (tmp_path / "train.yaml").write_text("defaults: [a: x, b: '${a}', _self_]")
    for group in "ab":
        (tmp_path / group).mkdir()
        for option in "xy":
            (tmp_path / group / f"{option}.yaml").write_text(f"is: {group}{option}")
    assert [compose(tmp_path, words).b["is"] for words in ([], ["a=y"], ["b=x", "a=y"])] == ["bx", "by", "bx"]


def test_a_folder_of_ones_own_is_read_each_time(tmp_path):
    for lr in (1, 2):
        (tmp_path / "train.yaml").write_text(f"lr: {lr}")
        assert compose(tmp_path, []).lr == lr
