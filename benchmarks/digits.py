"""Judges generated digits by classifiers of real ones, and by their distance from the training images.

python -m benchmarks.digits SAMPLES …     # samples.npz files of src.sample, drawn from a run of experiment=digits

Needs:  nothing beyond this project.
Prints: for each file, the shares of sure readings and of readings as the right class, and the share of near-copies.
Takes:  seconds.

"Sure" is the share of samples that are read with a probability above 0.8, divided by that of held-out digits.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from benchmarks.turns import Table, parser_of
from lightning_diffusion.data.dataset import InMemory
from lightning_diffusion.data.digits import Digits

SURE = 0.8  # probability
NETWORK, VECTORS, NEIGHBOURS = "network", "support vectors", "nearest neighbours"


@dataclass
class Reading:
    """How one classifier, fitted to the training images, reads the samples."""

    accuracy: float  # on held-out real digits
    sure: float  # share of samples given a class with probability above 0.8 …
    sure_real: float  # … and of held-out real digits
    right: float  # share of samples read as the requested class


@dataclass
class Verdict:
    """readings: of a neural network, a support-vector classifier and the five nearest neighbours, which must all agree
    for a probability above 0.8. near_copies: share nearer to a training image than 99% of held-out digits are.
    """

    readings: dict[str, Reading]
    near_copies: float


def judge(images: np.ndarray, labels: np.ndarray) -> Verdict:
    """images: uint8 (N, 8, 8, 1); labels: the requested classes, (N,)."""
    data = Digits(channels=1, image_size=8, num_classes=10, batch_size=1)
    data.setup()
    (x, y), (x_real, y_real) = (_pixels(data.splits[split]) for split in ("train", "val"))
    x_fake = images.reshape(len(images), -1) / 255.0
    readings = {}
    for name, classifier in {
        NETWORK: MLPClassifier((256,), alpha=1e-3, max_iter=500, random_state=0),
        VECTORS: CalibratedClassifierCV(SVC(), ensemble=False),
        NEIGHBOURS: KNeighborsClassifier(5),
    }.items():
        classifier.fit(x, y)
        of_fake, of_real = classifier.predict_proba(x_fake), classifier.predict_proba(x_real)
        readings[name] = Reading(
            accuracy=float((of_real.argmax(1) == y_real).mean()),
            sure=float((of_fake.max(1) > SURE).mean()),
            sure_real=float((of_real.max(1) > SURE).mean()),
            right=float((of_fake.argmax(1) == labels).mean()),
        )
    near = np.quantile(_nearest(x_real, x), 0.01)
    return Verdict(readings, near_copies=float((_nearest(x_fake, x) < near).mean()))


def _pixels(images: InMemory) -> tuple[np.ndarray, np.ndarray]:
    assert images.labels is not None
    return images.images.flatten(1).numpy() / 255.0, images.labels.numpy()


def _nearest(x: np.ndarray, among: np.ndarray) -> np.ndarray:
    squared = (x**2).sum(1)[:, None] - 2 * x @ among.T + (among**2).sum(1)
    return np.asarray(np.sqrt(squared.clip(min=0)).min(1))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("samples", nargs="+", type=Path, help="samples.npz of src.sample")
    parser.add_argument("--out", type=Path, help="folder for the table as CSV")
    given = parser.parse_args()
    readers = (VECTORS, NEIGHBOURS)
    table = Table(
        "digits",
        "samples",
        *(f"sure, {reader}" for reader in readers),
        *(f"right class, {reader}" for reader in readers),
        "near-copies",
    )
    for path in given.samples:
        with np.load(path) as samples:
            verdict = judge(samples["images"], samples["labels"])
        readings = [verdict.readings[reader] for reader in readers]
        figures = [r.sure / r.sure_real for r in readings] + [r.right for r in readings] + [verdict.near_copies]
        table.add(path, *(f"{figure:.3f}" for figure in figures))
    table.write(given.out)


if __name__ == "__main__":
    main()
