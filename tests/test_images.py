import imageio.v3 as imageio
import numpy as np
import torch
from PIL import Image

from lightning_diffusion.codecs.pixels import to_model, to_uint8
from lightning_diffusion.runs.pictures import grid, square_columns, write_gif, write_png


def test_door_is_exact_both_ways():
    pixels = torch.arange(256, dtype=torch.uint8)
    x = to_model(pixels)
    assert x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert torch.equal(to_uint8(x), pixels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_grid_puts_images_row_by_row():
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 2, 2)
    picture = grid(images, columns=3, least_side=1)
    assert picture.shape == (1, 5, 8)
    assert picture[0, ::3, ::3].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert grid(images, columns=3, least_side=80).shape == (1, 50, 80)


def test_grids_are_about_square_and_keep_classes_in_columns():
    assert [square_columns(n) for n in (1, 4, 64, 80)] == [1, 2, 8, 9]
    assert [square_columns(n, 10) for n in (1, 64, 80, 500)] == [10, 10, 10, 20]


def test_files_hold_the_pixels(tmp_path):
    for channels in (1, 3):
        picture = torch.randint(0, 256, (channels, 6, 9), dtype=torch.uint8)
        write_png(tmp_path / "new" / "a.png", picture)
        read = np.asarray(Image.open(tmp_path / "new" / "a.png")).reshape(6, 9, channels)
        assert (read == picture.permute(1, 2, 0).numpy()).all()
    frames = [torch.full((1, 8, 8), value, dtype=torch.uint8) for value in (0, 100, 200)]
    write_gif(tmp_path / "a.gif", frames)
    assert imageio.imread(tmp_path / "a.gif", index=None)[:, 0, 0, 0].tolist() == [0, 100, 200]
