"""The door to diffusers, both ways, against the real library; and files of this project's own."""

import json

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from src.backbones.unet import UNet
from src.checkpoints.seal import seal
from src.diffusion import beta as schedules
from src.diffusion.denoiser import NetworkDenoiser
from src.diffusion.parameterization import EDM, Eps, V
from src.diffusion.samplers.ddim import DDIM
from src.diffusion.time_grid import Trailing
from src.evaluate import main as evaluate
from src.exchange import folder
from src.export import main as export
from src.pretrained import load_pretrained
from src.sample import main as sample
from src.train import main as train
from tests.backbones.test_unet import randomized
from tests.command import in_process
from tests.runs import TINY
from tests.test_mistakes import check_one_line

CIFAR10 = {  # google/ddpm-cifar10-32
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip
CONDITIONAL = {  # the library's own defaults, on 28×28 with ten classes
    "sample_size": 28, "in_channels": 1, "out_channels": 1, "layers_per_block": 2, "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "num_class_embeds": 10,
}  # fmt: skip
ADM = {
    "sample_size": 16, "in_channels": 1, "out_channels": 2, "layers_per_block": 1, "block_out_channels": (32, 64),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
}  # fmt: skip
CONFIGS = {"cifar10": CIFAR10, "conditional": CONDITIONAL, "adm": ADM}


def pipeline(path, config, scheduler=None, **save):
    """A randomly initialized pipeline, written by diffusers itself."""
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**config).eval()
    scheduler = scheduler or diffusers.DDPMScheduler()
    diffusers.DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(path, **save)
    return network


@pytest.fixture(scope="module", params=CONFIGS)
def both(request, tmp_path_factory):
    """(diffusers' network, this project's denoiser, number of classes, folder)."""
    path = tmp_path_factory.mktemp(request.param)
    network = pipeline(path, CONFIGS[request.param])
    denoiser, known = load_pretrained(str(path))
    return network, denoiser, known["data"]["num_classes"], path


@torch.no_grad()
def test_imported_outputs_agree(both):
    network, denoiser, K, _ = both
    generator = torch.Generator().manual_seed(1)
    config = network.config
    x = torch.randn(10, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    t = torch.randint(1, 1001, (10,), generator=generator)
    labels = None if K is None else torch.arange(10)
    theirs = network(x, t - 1, class_labels=labels).sample  # diffusers counts its steps from 0
    ours = denoiser.predict(x, t.float(), labels)
    if ours.share is None:
        torch.testing.assert_close(ours.output, theirs, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(torch.cat([ours.output, 2 * ours.share - 1], 1), theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "config", [pytest.param(CIFAR10, marks=pytest.mark.slow), CONDITIONAL], ids=["cifar10", "conditional"]
)
def test_fifty_steps_of_ddim_agree(tmp_path, config):
    network = pipeline(tmp_path, config)
    denoiser, known = load_pretrained(str(tmp_path))
    labels = None if known["data"]["num_classes"] is None else torch.tensor([3])
    shape = (1, config["in_channels"], config["sample_size"], config["sample_size"])
    x_T = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t, class_labels=labels).sample, t, x, eta=0.0).prev_sample
    *_, ours = DDIM(Trailing(), 50).walk(denoiser, lambda: x_T, labels)
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3 * float(x.abs().max()))


def ours(**options):
    defaults = {"channels": 16, "channel_mults": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)}
    network = randomized(UNet(8, 1, **(defaults | options)))
    return NetworkDenoiser(network, schedules.cosine(), V(), label_dropout=0.1).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 10},
        {"head_dim": 8, "scale_shift": True, "resampling": "residual", "outputs": 2},
        {"resampling": "symmetric_conv", "frequency_shift": 0, "norm_eps": 1e-5, "dropout": 0.2},
    ],
)
@torch.no_grad()
def test_export_followed_by_import_is_exact_and_diffusers_agrees(tmp_path, options):
    denoiser = ours(**options)
    folder.write(tmp_path, denoiser, image_size=8, channels=1)
    back, known = load_pretrained(str(tmp_path))
    assert known["denoiser"]["label_dropout"] == 0.1
    for name, value in denoiser.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    t = torch.arange(1001, dtype=torch.float64)
    assert torch.equal(back.schedule.alpha(t), denoiser.schedule.alpha(t))
    assert type(back.parameterization) is V
    x, time, labels = torch.randn(4, 1, 8, 8), torch.tensor([1.0, 20.0, 500.0, 1000.0]), torch.tensor([0, 3, 9, 10])
    cond = labels if "num_classes" in options else None
    assert torch.equal(back(x, time, cond), denoiser(x, time, cond))

    network = diffusers.DDPMPipeline.from_pretrained(tmp_path).unet
    assert network.config.dropout == options.get("dropout", 0.0)
    theirs = network(x, time - 1, class_labels=cond).sample
    expected = denoiser.backbone(x, time - 1, cond)
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_a_pipeline_samples_a_class_that_is_baked_in(tmp_path):
    denoiser = ours(num_classes=10)
    folder.write(tmp_path, denoiser, image_size=8, channels=1, label=3)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    images = loaded(batch_size=2, num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0))
    assert images.images.shape == (2, 8, 8, 1)
    x = torch.randn(2, 1, 8, 8)
    expected = denoiser.backbone(x, torch.full((2,), 7.0), torch.full((2,), 3))
    theirs = loaded.unet(x, 7).sample
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_files_from_before_the_names_of_today(tmp_path):
    """google/ddpm-cifar10-32 itself holds a pickle and attention weights named query, key, value, proj_attn."""
    pipeline(tmp_path, CONDITIONAL, safe_serialization=False)
    path = tmp_path / "unet" / "diffusion_pytorch_model.bin"
    assert path.exists()
    expected = load_pretrained(str(tmp_path))[0].state_dict()
    old = {}
    for name, value in torch.load(path, weights_only=True).items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"{new}.", f"{before}.")
        old[name] = value
    torch.save(old, path)
    again = load_pretrained(str(tmp_path))[0].state_dict()
    assert all(torch.equal(again[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({}, schedules.linear),
        ({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}, schedules.cosine),
        ({"beta_schedule": "sigmoid"}, schedules.sigmoid),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.01}, schedules.quadratic),
        ({"trained_betas": [0.001 + i * 1e-5 for i in range(1000)]}, None),
    ],
)
def test_schedules_are_diffusers(tmp_path, options, make):
    scheduler = diffusers.DDPMScheduler(**options)
    pipeline(tmp_path, ADM, scheduler)
    denoiser, known = load_pretrained(str(tmp_path))
    assert known["schedule"]["_target_"].endswith(make.__name__ if make else "custom")
    alpha_bar = denoiser.schedule.alpha(torch.arange(1, 1001, dtype=torch.float64)) ** 2
    torch.testing.assert_close(alpha_bar, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("act_fn", "gelu", "act_fn='gelu'"),
        ("center_input_sample", True, "center_input_sample=True"),
        ("down_block_types", ["SkipDownBlock2D", "AttnDownBlock2D"], "down_block_types="),
        ("up_block_types", ["ResnetUpsampleBlock2D", "AttnUpBlock2D"], "up_block_types="),
        ("block_out_channels", [32, 48], r"block_out_channels=\[32, 48\]"),
        ("norm_num_groups", 16, "attn_norm_num_groups=32"),
        ("layers_per_block", 2, "its weights do not fit its config.json"),
    ],
)
def test_a_network_that_cannot_be_expressed_is_named(tmp_path, key, value, says):
    pipeline(tmp_path, ADM)
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=says):
        load_pretrained(str(tmp_path))


def test_what_diffusers_cannot_express_is_refused(tmp_path):
    plain = ours()
    for denoiser, size, says in (
        (NetworkDenoiser(plain.backbone, schedules.cosine(T=100), V()), 8, "only schedules with T = 1000"),
        (NetworkDenoiser(plain.backbone, schedules.cosine(), EDM()), 8, "no prediction like EDM"),
        (NetworkDenoiser(torch.nn.Identity(), schedules.cosine(), Eps()), 8, "no network like Identity"),
        (NetworkDenoiser(UNet(7, 1, 16, (1, 2), 1, ()), schedules.cosine(), Eps()), 7, "data.image_size=7"),
        (ours(num_heads=2, attention_resolutions=(8,)), 8, "its heads differ in width"),
        (ours(patch_size=2), 8, "does not fold pixels"),
    ):
        with pytest.raises(ValueError, match=says):
            folder.write(tmp_path / "out", denoiser, size, 1)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def checkpoint(finished, tmp_path_factory):
    """The finished run's checkpoint, on a clock of 1000 steps as diffusers knows it."""
    content = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    content["hyper_parameters"]["denoiser"]["schedule"]["T"] = 1000
    path = tmp_path_factory.mktemp("exchange") / "a.ckpt"
    torch.save(content, path)
    seal(path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint):
    for kind in ("diffusers", "safetensors"):
        output_dir = checkpoint.parent / kind
        options = [f"ckpt_path={checkpoint}", f"format={kind}", f"output_dir={output_dir}"]
        status, out, err = in_process(export, *options, cwd=checkpoint.parent)
        assert status == 0, err
        assert str(output_dir) in out
    home = checkpoint.parent
    return {"diffusers": home / "diffusers", "file": home / "safetensors" / "denoiser.safetensors"}


def test_exported_models_sample_as_the_checkpoint_does(checkpoint, exported, tmp_path):
    images = []
    for i, source in enumerate([f"ckpt_path={checkpoint}", *(f"pretrained={path}" for path in exported.values())]):
        options = [source, "num_samples=4", "sampler.num_steps=3", f"output_dir=out{i}"]
        status, _, err = in_process(sample, *options, cwd=tmp_path)
        assert status == 0, err
        images.append(np.load(tmp_path / f"out{i}" / "samples.npz")["images"])
    assert (images[0] == images[1]).all()
    assert (images[0] == images[2]).all()


def test_an_imported_model_is_trained_further_and_evaluated(exported, tmp_path):
    source = f"pretrained={exported['diffusers']}"
    tiny = [option for option in TINY if not option.startswith("backbone")]
    options = ["trainer.max_steps=1", "optimizer.lr=1e-9", "hydra.run.dir=run", "schedule=linear"]
    status, _, err = in_process(train, *tiny, source, *options, cwd=tmp_path)
    assert status == 0, err
    before = load_pretrained(str(exported["diffusers"]))
    after = load_pretrained(str(tmp_path / "run" / "checkpoints" / "last.ckpt"))
    assert after[1]["schedule"]["_target_"] == before[1]["schedule"]["_target_"]
    for name, value in before[0].state_dict().items():
        torch.testing.assert_close(after[0].state_dict()[name], value, rtol=0, atol=1e-6)
    likelihood = ("metrics=likelihood", "num_images=1", "metrics.tolerance=1e-2")
    status, out, err = in_process(evaluate, source, "data=digits", *likelihood, "output_dir=out", cwd=tmp_path)
    assert status == 0, err
    assert "bits/dim" in out


@pytest.mark.parametrize(
    ("program", "options", "says"),
    [
        (sample, "", "ckpt_path: missing; give ckpt_path=… or pretrained=…"),
        (sample, "pretrained=nowhere", "pretrained=nowhere: no such file"),
        (sample, "pretrained=nowhere.safetensors", "pretrained=nowhere.safetensors: no such file"),
        (sample, "pretrained=EMPTY", "not a readable JSON file"),
        (train, "pretrained=FOLDER data.num_classes=null", "data.num_classes=None: this model was made for 10"),
        (evaluate, "pretrained=FOLDER", "data: missing; a pretrained model does not say"),
        (evaluate, "pretrained=FOLDER data=mnist", "data.image_size=28: this model was made for 8"),
        (export, "ckpt_path=FINISHED output_dir=new", "format=diffusers: diffusers' clock has steps 0 … 999"),
        (export, "ckpt_path=CHECKPOINT output_dir=FOLDER", "not empty; name a new folder"),
        (export, "ckpt_path=CHECKPOINT format=onnx", "format=onnx: choose diffusers or safetensors"),
        (export, "ckpt_path=CHECKPOINT label=10", "label=10: one class can be baked in by format=diffusers"),
    ],
)
def test_mistakes(finished, checkpoint, exported, tmp_path, program, options, says):
    empty = checkpoint.parent / "empty"
    empty.mkdir(exist_ok=True)
    for word, path in (
        ("FOLDER", exported["diffusers"]),
        ("EMPTY", empty),
        ("FINISHED", finished[0] / "checkpoints" / "last.ckpt"),
        ("CHECKPOINT", checkpoint),
    ):
        options = options.replace(word, str(path))
    status, _, err = in_process(program, *options.split(), cwd=tmp_path)
    check_one_line(status, err, says, tmp_path)


def test_a_file_that_calls_foreign_code_is_refused(exported, tmp_path):
    node = {"_target_": "src.diffusion.denoiser.NetworkDenoiser", "backbone": {"_target_": "os.mkdir", "path": "made"}}
    save_file(load_file(exported["file"]), tmp_path / "a.safetensors", metadata={"denoiser": json.dumps(node)})
    with pytest.raises(ValueError, match="its configuration calls os.mkdir"):
        load_pretrained(str(tmp_path / "a.safetensors"))
    assert not (tmp_path / "made").exists()
