"""Judges generated digits by a classifier of real ones, and by their distance from the training images."""

from dataclasses import dataclass

import numpy as np
from sklearn.neural_network import MLPClassifier

from src.data.digits import Digits

CONFIDENT = 0.8


@dataclass
class Verdict:
    accuracy: float  # of the judge on held-out real digits
    confident: float  # share of samples given a class with probability above 0.8 …
    confident_real: float  # … and of held-out real digits
    as_asked: float  # share of samples read as the class that was asked for
    near_copies: float  # share nearer to a training image than 99% of held-out real digits are
    class_shares: np.ndarray  # (10,), by the judge


def judge(images: np.ndarray, labels: np.ndarray) -> Verdict:
    """images: uint8 (N, 8, 8, 1); labels asked for, (N,)."""
    data = Digits(channels=1, image_size=8, num_classes=10, batch_size=1)
    data.setup()
    train, held_out = data.splits["train"], data.splits["val"]
    x, y = train.images.flatten(1).numpy() / 255.0, train.labels.numpy()
    x_real, y_real = held_out.images.flatten(1).numpy() / 255.0, held_out.labels.numpy()
    x_fake = images.reshape(len(images), -1) / 255.0
    classifier = MLPClassifier((256,), alpha=1e-3, max_iter=500, random_state=0).fit(x, y)
    probabilities = classifier.predict_proba(x_fake)
    read_as = probabilities.argmax(1)
    nearest_real, nearest_fake = _nearest(x_real, x), _nearest(x_fake, x)
    return Verdict(
        accuracy=float(classifier.score(x_real, y_real)),
        confident=float((probabilities.max(1) > CONFIDENT).mean()),
        confident_real=float((classifier.predict_proba(x_real).max(1) > CONFIDENT).mean()),
        as_asked=float((read_as == labels).mean()),
        near_copies=float((nearest_fake < np.quantile(nearest_real, 0.01)).mean()),
        class_shares=np.bincount(read_as, minlength=10) / len(images),
    )


def _nearest(x: np.ndarray, among: np.ndarray) -> np.ndarray:
    squared = (x**2).sum(1)[:, None] - 2 * x @ among.T + (among**2).sum(1)
    return np.sqrt(squared.clip(min=0)).min(1)
