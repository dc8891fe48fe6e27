"""Judges generated digits by classifiers of real ones, and by their distance from the training images."""

from dataclasses import dataclass

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from lightning_diffusion.data.dataset import InMemory
from lightning_diffusion.data.digits import Digits

CONFIDENT = 0.8


@dataclass
class Reading:
    """By one classifier that was fitted to the training images."""

    accuracy: float  # on held-out real digits
    confident: float  # share of samples given a class with probability above 0.8 …
    confident_real: float  # … and of held-out real digits
    as_asked: float  # share of samples read as the class that was asked for


@dataclass
class Verdict:
    """readings: by a neural network, a support-vector classifier and the five nearest neighbours, which must all agree
    for a probability above 0.8. near_copies: share nearer to a training image than 99% of held-out digits are."""

    readings: dict[str, Reading]
    near_copies: float


def judge(images: np.ndarray, labels: np.ndarray) -> Verdict:
    """images: uint8 (N, 8, 8, 1); labels asked for, (N,)."""
    data = Digits(channels=1, image_size=8, num_classes=10, batch_size=1)
    data.setup()
    (x, y), (x_real, y_real) = (_pixels(data.splits[split]) for split in ("train", "val"))
    x_fake = images.reshape(len(images), -1) / 255.0
    readings = {}
    for name, classifier in {
        "network": MLPClassifier((256,), alpha=1e-3, max_iter=500, random_state=0),
        "support vectors": CalibratedClassifierCV(SVC(), ensemble=False),
        "nearest neighbours": KNeighborsClassifier(5),
    }.items():
        classifier.fit(x, y)
        of_fake, of_real = classifier.predict_proba(x_fake), classifier.predict_proba(x_real)
        readings[name] = Reading(
            accuracy=float((of_real.argmax(1) == y_real).mean()),
            confident=float((of_fake.max(1) > CONFIDENT).mean()),
            confident_real=float((of_real.max(1) > CONFIDENT).mean()),
            as_asked=float((of_fake.argmax(1) == labels).mean()),
        )
    near = np.quantile(_nearest(x_real, x), 0.01)
    return Verdict(readings, near_copies=float((_nearest(x_fake, x) < near).mean()))


def _pixels(images: InMemory) -> tuple[np.ndarray, np.ndarray]:
    return images.images.flatten(1).numpy() / 255.0, images.labels.numpy()


def _nearest(x: np.ndarray, among: np.ndarray) -> np.ndarray:
    squared = (x**2).sum(1)[:, None] - 2 * x @ among.T + (among**2).sum(1)
    return np.sqrt(squared.clip(min=0)).min(1)
