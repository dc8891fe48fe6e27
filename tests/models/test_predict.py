"""src.predict: the masks of pictures of any size, their files, and every mistake in a line."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import lightning_diffusion as ld
from lightning_diffusion.app.prediction import MaskPredictor, inside, nearest, pictures, window_starts
from lightning_diffusion.codecs.masks import overlaid, palette
from lightning_diffusion.data.decoding import LONGEST, UnreadableImage, read_image
from lightning_diffusion.data.paired_folder import PairedFolder
from lightning_diffusion.models.contracts import Model, Predictor
from src.export import main as export
from src.predict import main as predict
from src.train import main as train
from tests.command import in_process
from tests.test_mistakes import check_one_line

H, W, K = 16, 24, 11
SIZES = {"same": (H, W), "twice": (2 * H, 2 * W), "wide": (20, 70), "b/high": (61, 24)}


class Threshold(Model, Predictor):
    """Class 1 where the first channel is brighter than in the middle of the image, else 0: it depends on the window."""

    shape, num_classes, mask_classes, network = (1, H, W), None, 2, torch.nn.Identity()

    def predict(self, images):
        return (images[:, 0] > images[:, :1, H // 2, W // 2, None]).to(torch.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the run of a small network, an export of it with random weights in its last layer, and pictures."""
    folder, rng = tmp_path_factory.mktemp("predict"), np.random.default_rng(0)
    words = [
        "experiment=scenes", f"data.image_size=[{H},{W}]", "backbone.channels=4", "backbone.depth=1", "trainer=cpu",
        "trainer.max_steps=1", "trainer.limit_val_batches=1", "data.batch_size=4", "logger=csv", "hydra.run.dir=run",
    ]  # fmt: skip
    status, _, err = in_process(train, *words, cwd=folder)
    assert status == 0, err
    checkpoint = f"ckpt_path={folder}/run/checkpoints/last.ckpt"
    status, _, err = in_process(export, checkpoint, "format=safetensors", "output_dir=exported", cwd=folder)
    assert status == 0, err
    with safe_open(folder / "exported" / "denoiser.safetensors", "pt") as file:
        weights, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    weights["unet.head.weight"].normal_(generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "model.safetensors", metadata=header)
    for name, size in SIZES.items():
        (path := folder / "pictures" / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return folder


def predicted(run, *words, cwd):
    status, out, err = in_process(predict, f"ckpt_path={run}/model.safetensors", *words, cwd=cwd)
    assert status == 0, err
    return out


def test_a_folder_of_pictures(run, tmp_path):
    out = predicted(run, f"images={run}/pictures", cwd=tmp_path)
    assert out.splitlines()[-1] == ("4 masks: predictions/masks, predictions/overlays, predictions/predictions.png")
    results, model = tmp_path / "predictions", ld.load(run / "model.safetensors").module
    assert Image.open(results / "predictions.png").mode == "RGB"
    colours = palette(K).flatten().tolist()
    for name, size in SIZES.items():
        mask, overlay = (Image.open(results / kind / f"{name}.png") for kind in ("masks", "overlays"))
        assert (mask.mode, mask.size, overlay.mode, overlay.size) == ("P", size[::-1], "RGB", size[::-1])
        assert mask.getpalette() == colours
        assert len(np.unique(mask)) > 1
        grey = read_image(run / "pictures" / f"{name}.png", (1, *size))
        drawn = overlaid(grey[None], torch.tensor(np.asarray(mask))[None], K)[0]
        assert np.array_equal(np.asarray(overlay), drawn.permute(1, 2, 0))
    for name in ("same", "twice"):
        image = read_image(run / "pictures" / f"{name}.png", (1, H, W))
        expected = Image.fromarray(model.predict(image[None])[0].numpy())
        resized = expected.resize(SIZES[name][::-1], Image.Resampling.NEAREST)
        assert np.array_equal(np.asarray(Image.open(results / "masks" / f"{name}.png")), np.asarray(resized))


def test_masks_are_data_to_train_on(run, tmp_path):
    predicted(run, f"images={run}/pictures", f"output_dir={tmp_path}/out", cwd=tmp_path)
    data = PairedFolder(
        str(tmp_path / "out"), mask_classes=K, images=str(run / "pictures"), channels=3, image_size=[H, W],
        num_classes=None, batch_size=2,
    )  # fmt: skip
    data.setup()
    assert len(data.pairs) == len(SIZES)


def test_a_checkpoint_predicts_as_its_export(run, tmp_path):
    folders = {"a": "run/checkpoints/last.ckpt", "b": "exported/denoiser.safetensors"}
    for folder, model in folders.items():
        words = [f"ckpt_path={run}/{model}", f"images={run}/pictures/wide.png", f"output_dir={folder}"]
        status, _, err = in_process(predict, *words, cwd=tmp_path)
        assert status == 0, err
    first, second = (tmp_path / folder / "masks" / "wide.png" for folder in folders)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("size", [(H, W), (H, W + 1), (H, 5 * W - 3), (3 * H, W), (2 * H + 5, W)])
def test_each_pixel_gets_its_class_from_the_window_whose_middle_is_nearest(size):
    image = torch.randint(0, 256, (1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tops, lefts = window_starts(size[0], H).tolist(), window_starts(size[1], W).tolist()
    assert (tops[0], lefts[0]) == (0, 0)
    assert (tops[-1], lefts[-1]) == (size[0] - H, size[1] - W)
    assert (len(tops), len(lefts)) == (-(-size[0] // H), -(-size[1] // W))
    model = Threshold()
    found = MaskPredictor(model).whole(image)
    for y in range(size[0]):
        for x in range(size[1]):
            top = min(tops, key=lambda top: abs(y - top - (H - 1) / 2))
            left = min(lefts, key=lambda left: abs(x - left - (W - 1) / 2))
            window = image[None, :, top : top + H, left : left + W]
            assert found[y, x] == (window[0, 0, y - top, x - left] > window[0, 0, H // 2, W // 2])


def test_windows_cover_every_pixel():
    for length in range(7, 60):
        starts = window_starts(length, 7)
        _, position = inside(torch.arange(length), starts, 7)
        assert position.min() >= 0
        assert position.max() < 7


@pytest.mark.parametrize(("length", "wanted"), [(5, 5), (5, 13), (13, 5), (7, 1), (1, 4), (16, 61)])
def test_a_mask_is_resized_as_pillow_does_by_the_nearest_pixel(length, wanted):
    row = Image.fromarray(np.arange(length, dtype=np.uint8)[None])
    assert nearest(length, wanted).tolist() == np.asarray(row.resize((wanted, 1), Image.Resampling.NEAREST))[0].tolist()


def test_names_are_kept_and_unique(tmp_path):
    for name in ("a.png", "a.jpg", "b.v2.png", "c/a.png", "c/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert set(pictures(tmp_path)) == {"a.png", "a.jpg", "b.v2", "c/a"}
    assert set(pictures(tmp_path / "a.png")) == {"a"}
    (tmp_path / "a.jpg.png").write_bytes(b"")
    with pytest.raises(ld.ConfigError, match=r"images=.*: two results would have the name a.jpg.png; rename one"):
        pictures(tmp_path)


def test_the_overlay_shows_classes_at_half_strength_and_the_background_as_it_is():
    image = torch.tensor([[[[10, 20, 30]]], [[[0, 0, 0]]]], dtype=torch.uint8)
    masks = torch.tensor([[[0, 1, 2]], [[0, 0, 1]]], dtype=torch.uint8)
    found, colours = overlaid(image, masks, 3), palette(3).int()
    assert found[0, :, 0].T.tolist() == [[10] * 3, ((20 + colours[1]) // 2).tolist(), ((30 + colours[2]) // 2).tolist()]
    assert found[1, :, 0, :2].unique().tolist() == [0]


def test_skip_leaves_damaged_files_out(run, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    content = (run / "pictures" / "same.png").read_bytes()
    for name, data in (("a", content), ("b", b"no"), ("c", content[:200]), ("d", content)):
        (folder / f"{name}.png").write_bytes(data)
    out = predicted(run, "images=pictures", "unreadable=skip", cwd=tmp_path)
    assert "images=pictures: 2 of 4 images are unreadable, left out: b.png, c.png" in out
    assert {path.name for path in (tmp_path / "predictions" / "masks").iterdir()} == {"a.png", "d.png"}


def test_a_long_line_is_refused(tmp_path):
    Image.new("L", (LONGEST * 4 + 1, 4)).save(tmp_path / "a.png")
    model = Threshold()
    model.shape = (1, 16, 16)
    with pytest.raises(UnreadableImage, match=r"4×65 pixels, longer and thinner than 16 images of 16×16 in a row"):
        MaskPredictor(model)(tmp_path / "a.png")


MISTAKES = {
    "no-model": ("images=P", "ckpt_path: missing; give ckpt_path=…"),
    "no-images": ("ckpt_path=C", "images: missing; give images=…"),
    "no-such-model": ("ckpt_path=nowhere images=P", "ckpt_path=nowhere: no such file"),
    "a-model-that-draws": ("ckpt_path=D images=P", "ckpt_path: a DiffusionModel predicts no masks; choose a run of"),
    "no-such-images": ("ckpt_path=C images=nowhere", "images=nowhere: no such file or folder"),
    "no-picture": ("ckpt_path=C images=C", "no picture; give a picture file, or a folder of them"),
    "an-empty-folder": ("ckpt_path=C images=E", "no picture; give a picture file, or a folder of them"),
    "unreadable": ("ckpt_path=C images=B", "b.png: not a readable image (the file is empty); repair, shrink or remove"),
    "all-left-out": ("ckpt_path=C images=B unreadable=skip", "no readable image; give others"),
    "existing-files": ("ckpt_path=C images=P output_dir=B", "not empty; give a new folder"),
    "a-file-for-output": ("ckpt_path=C images=P output_dir=C", "is not a folder"),
    "another-policy": ("ckpt_path=C images=P unreadable=ignore", "unreadable='ignore': expected stop or skip"),
    "another-precision": ("ckpt_path=C images=P precision=12", "precision=12: choose"),
    "a-sampler": ("ckpt_path=C images=P sampler=ddim", "sampler"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(run, finished, tmp_path, name):
    words, message = MISTAKES[name]
    (empty := tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "none").mkdir()
    (tmp_path / "bad" / "b.png").write_bytes(b"")
    places = {
        "C": f"{run}/run/checkpoints/last.ckpt", "P": f"{run}/pictures", "D": f"{finished[0]}/checkpoints/last.ckpt",
        "B": tmp_path / "bad", "E": tmp_path / "none",
    }  # fmt: skip
    given = [word.partition("=") for word in words.split()]
    status, _, err = in_process(predict, *(f"{key}={places.get(value, value)}" for key, _, value in given), cwd=empty)
    check_one_line(status, err, message, empty)
