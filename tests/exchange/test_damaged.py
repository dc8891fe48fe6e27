"""Damaged folders either load or are refused in one line with the file and the key."""

import json
import os
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.exchange.pipelines import SMALL, edit, load_pretrained, pipeline

FILES = ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json", "lightning_diffusion.json")
STRANGE = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 10**30, -(10**400), 0.5, -0.5, 1e308, 1e-308, float("nan"),
    float("inf"), float("-inf"), "", "silu", "epsilon", "${oc.env:HOME}", "a\nb", "\ud800", "x" * 5000, [], [[]],
    [None], [0], [-1], [1, 2, 3], [10**30], [16, "16"], [16, 32, 64], ["DownBlock2D"], ["DownBlock2D"] * 2, [1e9] * 2,
    [0.01] * 1000, {}, {"a": 1}, {"_target_": "os.getcwd"}, [True, True], [16.0, 32.0],
)  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """A good folder."""
    pipeline(tmp_path, SMALL)
    (tmp_path / "lightning_diffusion.json").write_text(json.dumps({"num_classes": None, "label_dropout": 0.0}))
    return tmp_path


def refusal(folder):
    """The message of the refusal, or None if the folder loads; only a ValueError of one line passes."""
    try:
        denoiser, _ = load_pretrained(str(folder))
    except ValueError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 600
        message.encode()
        assert message.startswith(f"pretrained={folder}")
        return message
    assert all(parameter.device.type == "cpu" for parameter in denoiser.parameters())
    return None


@pytest.mark.slow
def test_hundreds_of_mutated_settings_load_or_are_refused_in_one_line(made):
    good = {name: json.loads((made / name).read_text()) for name in FILES}
    draw = random.Random(0)
    fates = []
    for i in range(200):
        name = FILES[(0, 0, 0, 1, 1, 1, 2, 3)[i % 8]]
        content = dict(good[name])
        for key in draw.sample(sorted(content), k=min(len(content), draw.choice((1, 1, 1, 2, 5)))):
            if draw.random() < 0.2:
                del content[key]
            else:
                content[key] = draw.choice(STRANGE)
        (made / name).write_text(json.dumps(content))
        message = refusal(made)
        assert message is None or any(file.split("/")[-1] in message for file in FILES), message
        fates.append(message is None)
        (made / name).write_text(json.dumps(good[name]))
    assert 40 < sum(fates) < 270  # the generator reaches both sides


@pytest.mark.parametrize("name", FILES)
def test_every_value_of_every_setting_is_checked(made, name):
    """One change at a time: a file that loads gives the same model, or another valid one."""
    good = json.loads((made / name).read_text())
    for key in good:
        for value in (None, [], {}, "x", -1, 10**400, float("nan"), [10**9] * 3):
            (made / name).write_text(json.dumps(good | {key: value}))
            message = refusal(made)
            read = key not in ("_diffusers_version", "_name_or_path")
            assert message is None or (read and name.split("/")[-1] in message)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a JSON file"),
        (b"{", "not a JSON file"),
        (b"[]", r"\[\] instead of a JSON object"),
        (b"null", "None instead of a JSON object"),
        (b"\xff\xfe", "not a text file"),
        (b"\0" * 100, "not a text file"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "not a JSON file"),
        (b'{"in_channels": ' + b"[" * 500 + b"]" * 500 + b"}", "json: "),
        (b'{"in_channels": ' + b"9" * 5000 + b"}", "not a JSON file"),
        (b'{"a": "' + b"x" * 2**20 + b'"}', "bytes, more than"),
        (b'{"a\\n\\ud800": 1}', ": unknown (setting|part)"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_what_is_no_settings_file_is_refused(made, name, content, reason):
    (made / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        load_pretrained(str(made))
    assert name.split("/")[-1] in refusal(made)


@pytest.mark.parametrize("name", [*FILES, "unet/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_regular_file_is_refused_at_once(made, name, make):
    (made / name).unlink()
    make(made / name)
    assert refusal(made) is not None


def test_a_huge_file_is_not_read(made):
    with (made / FILES[0]).open("wb") as file:
        file.truncate(10**8)
    assert "100,000,000 bytes" in refusal(made)


@pytest.mark.parametrize(
    "changes",
    [
        {"block_out_channels": [2**14, 2**14]},
        {"layers_per_block": 32, "block_out_channels": [256, 512]},
        {"in_channels": 2**14, "out_channels": 2**14},
        {"num_class_embeds": 2**20, "block_out_channels": [4096, 4096]},
    ],
)
def test_a_network_larger_than_its_weights_is_never_allocated(made, changes, monkeypatch):
    monkeypatch.setattr("lightning_diffusion.checkpoints.diffusers.folder.load_file", None)  # not even read
    edit(made / "unet/config.json", changes)
    assert "bytes cannot hold the" in refusal(made)


@pytest.mark.parametrize("changes", [{"layers_per_block": 10**9}, {"sample_size": 2**40}, {"in_channels": 2**40}])
def test_a_number_without_bounds_is_refused(made, changes):
    edit(made / "unet/config.json", changes)
    assert f"{next(iter(changes))}=" in refusal(made)


def weights_with(folder, change):
    """Changes the weights in the folder."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.pop("conv_in.bias"), "'conv_in.bias' is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "'extra' is unexpected"),
        (lambda w: w.update({"a\nb" * 99: torch.zeros(1)}), r"'a\\nba"),
        (lambda w: w.update({"conv_out.weight": w["conv_out.weight"].transpose(0, 1).contiguous()}), "has the shape"),
        (
            lambda w: w.update({"conv_in.weight": w["conv_in.weight"].transpose(1, 3).contiguous()}),
            r"has the shape \[16, 3, 3, 1\]",
        ),
        (lambda w: w.update({"conv_in.bias": w["conv_in.bias"].reshape(4, 4)}), r"has the shape \[4, 4\], not \[16\]"),
        (lambda w: w.update({"conv_in.bias": torch.tensor(1.0)}), r"has the shape \[\], not \[16\]"),
        (lambda w: w.update({"conv_in.bias": w["conv_in.bias"].long()}), "has the type torch.int64"),
        (lambda w: w.update({"conv_in.bias": w["conv_in.bias"] > 0}), "has the type torch.bool"),
        (lambda w: w["conv_in.bias"].fill_(float("nan")), "conv_in.bias has values that are not finite"),
        (lambda w: w.update({"conv_in.bias": w["conv_in.bias"].double() + 1e300}), "not finite in float32"),
        (lambda w: w.update({"mid_block.attentions.0.query.bias": torch.zeros(32)}), "under an old and a new name"),
    ],
)
def test_weights_that_do_not_fit_are_named(made, change, reason):
    weights_with(made, change)
    with pytest.raises(ValueError, match=f"safetensors: its weights do not fit its config.json .*{reason}"):
        load_pretrained(str(made))
    assert refusal(made)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read(made, dtype):
    expected = load_pretrained(str(made))[0].state_dict()
    weights_with(made, lambda w: w.update({name: value.to(dtype) for name, value in w.items()}))
    for name, value in load_pretrained(str(made))[0].state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name].to(dtype).float()), name


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(2)], {1: torch.zeros(2)}, {"conv_in.bias": 1}, {}, None, {"conv_in.bias": "${x}"},
        {"conv_in.bias": torch.zeros(1).expand(10**12)}, {"conv_in.bias": torch.zeros(16).to_sparse()},
    ],
)  # fmt: skip
def test_a_pickle_of_anything_but_named_tensors_is_refused(made, content):
    path = made / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    path.unlink()
    whole = weights | content if isinstance(content, dict) and content else content
    torch.save(whole, path.with_suffix(".bin"))
    if not isinstance(content, dict) or not content:
        with path.with_suffix(".bin").open("ab") as file:
            file.write(b"\0" * 10**6)  # as large as the weights' file
    assert "diffusion_pytorch_model.bin: " in refusal(made)


@pytest.mark.parametrize("content", [b"", b"\0" * 10**6, b"\xff" * 10**6, b"\x80\x04" + b"(" * 10**6])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_damaged_weights_are_one_line(made, content, suffix):
    (made / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (made / "unet" / f"diffusion_pytorch_model.{suffix}").write_bytes(content)
    assert f"diffusion_pytorch_model.{suffix}: " in refusal(made)
