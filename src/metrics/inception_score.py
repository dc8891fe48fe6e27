"""The Inception Score, of any classifier's logits."""

import torch
from torch import Tensor


def inception_score(logits: Tensor, num_splits: int = 10) -> tuple[float, float]:
    """exp E_x KL(p(y | x) ‖ p(y)): from 1, where all images are read alike, to the number of classes.

    Args:
        logits: (N, K).
        num_splits: consecutive parts, each with a score of its own.

    Returns:
        Mean and standard deviation (1/n, as published) of the parts' scores.

    Raises:
        ValueError: fewer images than parts.

    Ref: Salimans et al., Improved Techniques for Training GANs, §4
    """
    if len(logits) < num_splits:
        raise ValueError(f"{len(logits)} images do not divide into {num_splits} parts; more are needed")
    scores = []
    for part in logits.double().tensor_split(num_splits):
        log_p = part.log_softmax(1)
        log_marginal = log_p.logsumexp(0, keepdim=True) - torch.tensor(float(len(part))).log()
        scores.append((log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp())
    all_parts = torch.stack(scores)
    return float(all_parts.mean()), float(all_parts.std(correction=0))
