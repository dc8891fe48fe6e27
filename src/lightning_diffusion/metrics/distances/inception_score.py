"""The Inception Score from the logits of any classifier."""

import itertools
import math

import torch
from torch import Tensor


def inception_score(logits: Tensor, num_splits: int = 10) -> tuple[float, float]:
    """exp E_x KL(p(y | x) ‖ p(y)), from 1, if all images get the same prediction, to the number of classes.

    Args:
        logits: (N, K).
        num_splits: number n of consecutive parts, each with its own score; part i begins at image ⌊i N/n⌋, as in
            torch-fidelity.

    Returns:
        Mean and standard deviation (divisor n, as published) of the parts' scores.

    Raises:
        ValueError: fewer images than parts.

    Ref: Salimans et al., Improved Techniques for Training GANs, §4
    """
    if len(logits) < num_splits:
        raise ValueError(f"{len(logits)} images are too few for {num_splits} parts")
    starts, scores = [i * len(logits) // num_splits for i in range(num_splits + 1)], []
    for start, end in itertools.pairwise(starts):
        log_p = logits[start:end].double().log_softmax(1)
        log_marginal = log_p.logsumexp(0, keepdim=True) - math.log(end - start)
        scores.append((log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp())
    all_parts = torch.stack(scores)
    return float(all_parts.mean()), float(all_parts.std(correction=0))
