"""Conversion between UNet2DModel and this project's U-Net, compared with diffusers itself."""

import inspect

import diffusers
import pytest
import torch

from lightning_diffusion.checkpoints.diffusers import folder, network
from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.denoiser import NetworkDenoiser
from lightning_diffusion.diffusion.parameterization import EDM, Eps, V
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.time_grid import Trailing
from lightning_diffusion.models.diffusion.model import DiffusionModel
from lightning_diffusion.networks.unet import UNet
from tests.exchange.pipelines import ADM, CIFAR10, CONDITIONAL, SMALL, edit, load_pretrained, ours, pipeline

CONFIGS = {"cifar10": CIFAR10, "conditional": CONDITIONAL, "adm": ADM}


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
    N = K or 2
    x = torch.randn(N, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    t = torch.randint(1, 1001, (N,), generator=generator)
    labels = None if K is None else torch.arange(N)
    theirs = network(x, t - 1, class_labels=labels).sample  # diffusers counts its steps from 0
    ours = denoiser.predict(x, t.float(), by_label(labels))
    if ours.share is None:
        torch.testing.assert_close(ours.output, theirs, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(torch.cat([ours.output, 2 * ours.share - 1], 1), theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "num_steps"),
    [pytest.param(CIFAR10, 50, marks=pytest.mark.slow), (CONDITIONAL, 10)],
    ids=["cifar10", "conditional"],
)
def test_steps_of_ddim_agree(tmp_path, config, num_steps):
    network = pipeline(tmp_path, config)
    denoiser, known = load_pretrained(str(tmp_path))
    labels = None if known["data"]["num_classes"] is None else torch.tensor([3])
    shape = (1, config["in_channels"], config["sample_size"], config["sample_size"])
    x_T = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t, class_labels=labels).sample, t, x, eta=0.0).prev_sample
    *_, ours = DDIM(Trailing(), num_steps).walk(denoiser, lambda: x_T, by_label(labels))
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3 * float(x.abs().max()))


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
    folder.write(tmp_path, DiffusionModel(denoiser, 1, 8))
    back, known = load_pretrained(str(tmp_path))
    assert known["denoiser"]["label_dropout"] == 0.1
    for name, value in denoiser.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    t = torch.arange(1001, dtype=torch.float64)
    assert torch.equal(back.schedule.alpha(t), denoiser.schedule.alpha(t))
    assert type(back.parameterization) is V
    x, time, labels = torch.randn(4, 1, 8, 8), torch.tensor([1.0, 20.0, 500.0, 1000.0]), torch.tensor([0, 3, 9, 10])
    labels = labels if "num_classes" in options else None
    condition = by_label(labels)
    assert torch.equal(back(x, time, condition), denoiser(x, time, condition))

    network = diffusers.DDPMPipeline.from_pretrained(tmp_path).unet
    assert network.config.dropout == options.get("dropout", 0.0)
    theirs = network(x, time - 1, class_labels=labels).sample
    expected = denoiser.backbone(x, time - 1, condition)
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_images_that_are_not_square(tmp_path):
    denoiser = NetworkDenoiser(UNet([8, 12], 2, 16, (1, 2), 1, (6,)), schedules.linear(), Eps())
    for parameter in denoiser.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    folder.write(tmp_path, DiffusionModel(denoiser, 2, [8, 12]))
    back, known = load_pretrained(str(tmp_path))
    assert known["data"]["image_size"] == [8, 12]
    assert known["denoiser"]["backbone"]["attention_resolutions"] == [6]
    x = torch.randn(2, 2, 8, 12)
    time = torch.tensor([1.0, 700.0])
    assert torch.equal(back(x, time), denoiser(x, time))
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    expected = denoiser.backbone(x, time - 1)
    torch.testing.assert_close(loaded.unet(x, time - 1).sample, expected, rtol=1e-4, atol=1e-5)
    loaded.set_progress_bar_config(disable=True)
    assert loaded(batch_size=1, num_inference_steps=2, output_type="np").images.shape == (1, 8, 12, 2)


@torch.no_grad()
def test_a_pipeline_samples_a_class_that_is_baked_in(tmp_path):
    denoiser = ours(num_classes=10)
    folder.write(tmp_path, DiffusionModel(denoiser, 1, 8), label=3)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    images = loaded(batch_size=2, num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0))
    assert images.images.shape == (2, 8, 8, 1)
    x = torch.randn(2, 1, 8, 8)
    expected = denoiser.backbone(x, torch.full((2,), 7.0), by_label(torch.full((2,), 3)))
    theirs = loaded.unet(x, 7).sample
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_files_with_the_former_names_are_read(tmp_path):
    """google/ddpm-cifar10-32 is a pickle whose attention weights are named query, key, value, proj_attn."""
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


def test_every_setting_of_the_network_is_decided_and_its_default_is_the_librarys():
    theirs = {name: p.default for name, p in inspect.signature(diffusers.UNet2DModel.__init__).parameters.items()}
    theirs.pop("self")
    assert set(theirs) <= {*network.ONLY, *network.READ, *network.IGNORED}
    for key, value in {**network.ONLY, **network.READ}.items():
        assert (tuple(value) if isinstance(value, list) else value) == theirs[key], key


@torch.no_grad()
@pytest.mark.parametrize("config", [SMALL | {"attention_head_dim": 8}, SMALL | {"freq_shift": 0, "dropout": 0.0}])
def test_a_setting_that_is_left_out_has_the_librarys_default(tmp_path, config):
    theirs = pipeline(tmp_path, config)
    kept = {"sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels"}
    left_out = set(theirs.config) - kept - {"norm_num_groups", "layers_per_block"}
    edit(tmp_path / "unet" / "config.json", without=left_out)
    denoiser, _ = load_pretrained(str(tmp_path))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 800.0])
    torch.testing.assert_close(denoiser.predict(x, t).output, theirs(x, t - 1).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "key", "value", "reason"),
    [
        (ADM, "act_fn", "gelu", "act_fn='gelu': this project can express only 'silu'"),
        (ADM, "center_input_sample", True, "center_input_sample=True"),
        (ADM, "down_block_types", ["SkipDownBlock2D", "AttnDownBlock2D"], "down_block_types="),
        (ADM, "up_block_types", ["ResnetUpsampleBlock2D", "AttnUpBlock2D"], "up_block_types="),
        (ADM, "block_out_channels", [32, 48], r"block_out_channels=\[32, 48\]: expected multiples"),
        (ADM, "norm_num_groups", 16, "attn_norm_num_groups=32"),
        (ADM, "layers_per_block", 2, "its weights do not fit its config.json"),
        (ADM, "upsample_type", "conv", "upsample_type='conv'"),
        (SMALL, "downsample_type", "pool", "downsample_type='pool': expected 'conv' or 'resnet'"),
        (SMALL, "_class_name", "UNet2DConditionModel", "model_index.json has 'UNet2DModel'"),
        (SMALL, "freq_shift", 0.5, "freq_shift=0.5: expected a whole number"),
        (SMALL, "time_embedding_type", "fourier", "time_embedding_type='fourier'"),
        (SMALL, "time_embedding_dim", 65, "time_embedding_dim=65: expected 64"),
        (SMALL, "sample_size", 7, "sample_size=7: expected a multiple of 2"),
        (SMALL, "sample_size", [8], r"sample_size=\[8\]: expected one side, or \[height, width\]"),
        (SMALL, "sample_size", [8, 7], r"sample_size=\[8, 7\]: expected a multiple of 2"),
        (SMALL, "sample_size", 2, "sample_size=2: expected a multiple of 2, and more than 2, for 2 levels"),
        (SMALL, "attention_head_dim", 5, r"attention_head_dim=5: expected a divisor of \[32, 32\] channels"),
        (SMALL, "norm_num_groups", 3, "norm_num_groups=3: expected a divisor of 16 channels"),
        (SMALL, "block_out_channels", [5, 10], "expected multiples of the first, which is even"),
        (SMALL, "sample_size", [8, 8, 8], r"sample_size=\[8, 8, 8\]: expected 1 to 2 whole numbers"),
        (SMALL, "layers_per_block", True, "layers_per_block=True: expected a whole number"),
        (SMALL, "sample_size", None, "sample_size=None"),
        (SMALL, "out_channels", 3, "out_channels=3: expected 1 or 2"),
        (SMALL, "mid_block_type", None, "mid_block_type=None"),
        (SMALL, "quantization_config", {}, "'quantization_config': unknown setting"),
    ],
)
def test_a_network_that_cannot_be_expressed_is_named(tmp_path, config, key, value, reason):
    pipeline(tmp_path, config)
    edit(tmp_path / "unet" / "config.json", {key: value})
    with pytest.raises(ValueError, match=reason):
        load_pretrained(str(tmp_path))


def test_another_network_is_refused_whatever_the_index_says(tmp_path):
    pipeline(tmp_path, SMALL)
    edit(tmp_path / "unet" / "config.json", {"_class_name": "UNet2DConditionModel"})
    edit(tmp_path / "model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]})
    with pytest.raises(ValueError, match="_class_name='UNet2DConditionModel': expected 'UNet2DModel'"):
        load_pretrained(str(tmp_path))


def test_a_pipeline_with_other_parts_is_refused(tmp_path):
    """A U-Net of latents needs their decoder to draw."""
    pipeline(tmp_path, SMALL)
    edit(tmp_path / "model_index.json", {"vqvae": ["diffusers", "VQModel"]})
    with pytest.raises(ValueError, match="model_index.json: 'vqvae': unknown part of a pipeline"):
        load_pretrained(str(tmp_path))


def test_a_square_and_a_plain_folder_are_read(tmp_path):
    pipeline(tmp_path, SMALL)
    expected = load_pretrained(str(tmp_path))[1]["denoiser"]
    edit(tmp_path / "unet" / "config.json", {"sample_size": [8, 8], "time_embedding_dim": 64})
    (tmp_path / "scheduler" / "scheduler_config.json").rename(tmp_path / "unet" / "scheduler_config.json")
    assert load_pretrained(str(tmp_path / "unet"))[1]["denoiser"] == expected


def test_what_diffusers_cannot_express_is_refused(tmp_path):
    plain = ours()
    for denoiser, size, reason in (
        (NetworkDenoiser(plain.backbone, schedules.cosine(T=100), V()), 8, "only schedules with T = 1000"),
        (NetworkDenoiser(plain.backbone, schedules.cosine(), EDM()), 8, "no prediction like EDM"),
        (NetworkDenoiser(torch.nn.Identity(), schedules.cosine(), Eps()), 8, "no network like Identity"),
        (NetworkDenoiser(UNet(7, 1, 16, (1, 2), 1, ()), schedules.cosine(), Eps()), 7, "data.image_size=7"),
        (ours(num_heads=2, attention_resolutions=(8,)), 8, "the heads differ in width"),
        (ours(patch_size=2), 8, "does not fold pixels"),
    ):
        with pytest.raises(ValueError, match=reason):
            folder.write(tmp_path / "out", DiffusionModel(denoiser, 1, size))
    assert not (tmp_path / "out").exists()
