"""torch-fidelity's InceptionV3 with the weights of published FID."""

import hashlib
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from lightning_diffusion.metrics.extractors.base import Extractor, Features, ImageSet, as_colour

FILE = URL_INCEPTION_V3.rsplit("/", 1)[-1]
CHECKSUM = "6726825d"  # the beginning of the file's SHA-256, which is part of its name
PUBLISHED = {"fd": "fid", "kd": "kid", "is": "inception_score"}


class Inception(Extractor):
    """FID, KID and Inception Score as published, in 2,048 features.

    Images of any size are resized by TensorFlow 1's bilinear rule. Grey images get three equal channels. With weights
    other than the published ones no score is called FID.

    Args:
        weights: path of the file; None takes it from torch's cache, or downloads it (95 MB).

    Ref: Heusel et al., GANs Trained by a Two Time-Scale Update Rule, §2; Obukhov et al., torch-fidelity
    """

    resize = "299×299, TensorFlow 1's bilinear rule"
    any_size = colour = True

    def __init__(self, cache_dir: str, weights: str | None = None) -> None:
        super().__init__(cache_dir)
        self.weights = weights
        self._published = True

    @property
    def name(self) -> str:
        return "inception" if self._published else "other_inception"

    def label(self, score: str) -> str:
        return PUBLISHED[score] if self._published and score in PUBLISHED else super().label(score)

    def check(self, train: ImageSet) -> None:
        super().check(train)
        path = self._file()
        with path.open("rb") as file:
            self._published = hashlib.file_digest(file, "sha256").hexdigest().startswith(CHECKSUM)

    def load(self, train: ImageSet, held_out: ImageSet | None) -> nn.Module:
        self.check(train)
        path = self._file()
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity would execute code in the file
            return _Network(FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path)))
        except Exception as error:
            raise ValueError(f"metrics.weights={path}: not the weights of torch-fidelity's InceptionV3") from error

    def _file(self) -> Path:
        if self.weights is not None:
            path = Path(self.weights).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"metrics.weights={self.weights}: no such file; {_where(path)}")
            return path
        path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
        if not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), CHECKSUM)
            except (URLError, OSError, RuntimeError) as error:
                raise FileNotFoundError(
                    f"metrics=inception: its weights cannot be downloaded; {_where(path)}"
                ) from error
        return path


def _where(path: Path) -> str:
    return (
        f"save {URL_INCEPTION_V3} (its SHA-256 begins with {CHECKSUM}) as {path}, or choose another file with "
        "metrics.weights=FILE; metrics=imagenet_lite needs no download"
    )


class _Network(nn.Module):
    """uint8 (B, C, H, W) -> Features."""

    def __init__(self, inception: FeatureExtractorInceptionV3) -> None:
        super().__init__()
        self.inception = inception

    def forward(self, images: Tensor) -> Features:
        return Features(*self.inception(as_colour(images)))
