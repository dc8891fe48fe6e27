"""Muon: update steps of equal size in every direction of a weight matrix."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer

from lightning_diffusion.training.sharding import shard_like, unshard

LEAST_SIDE = 16  # of a matrix; AdamW updates smaller ones, such as those of an image's few channels
QUINTIC = (3.4445, -4.7750, 2.0315)  # of Newton–Schulz, by Jordan; brings singular values of 0.01 … 1 near 1 in 5 steps
MOMENTUM = 0.95
RMS = 0.2  # of AdamW's updates, so that one learning rate fits both


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximates U Vᵀ for each U S Vᵀ of a batch (n, r, c) in 5 iterations, with singular values of 0.7 … 1.2.

    X ← aX + (b XXᵀ + c (XXᵀ)²) X ,   X_0 = G/‖G‖

    Ref: Jordan et al., Muon: An optimizer for hidden layers in neural networks
    """
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """Updates the weights of convolutions and linear layers by Muon, everything else by AdamW.

    M ← μ M + (1 − μ) g ,   W ← (1 − ηλ) W − η · 0.2 √max(r, c) · orthogonalize((1 − μ) g + μ M)

    A kernel (out, in, h, w) is a matrix of r = out rows and c = in · h · w columns. AdamW updates weights with fewer
    than 16 rows (out) or input channels (in).

    Args:
        params: parameters of a module.
        lr: η, for both.
        momentum: μ in [0, 1). None: 0 if β_1 is 0, which excludes momentum everywhere, else 0.95.
        betas, eps: for AdamW.
        weight_decay: λ, for both.
        fused: runs AdamW as one kernel.

    Raises:
        ValueError: a value out of range.

    Ref: Jordan et al. 2024; Liu et al., Muon is Scalable for LLM Training, Eq. 4
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-2,
        momentum: float | None = MOMENTUM,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fused: bool = True,
    ) -> None:
        if momentum is None:
            momentum = MOMENTUM if betas[0] else 0.0
        for key, value, high in (("lr", lr, float("inf")), ("momentum", momentum, 1.0)):
            if not 0 <= value < high:
                raise ValueError(f"optimizer.{key}={value}: choose 0 <= {key} < {high:g}")
        matrices, others = list[nn.Parameter](), list[nn.Parameter]()
        for parameter in params:
            sides = parameter.shape[:2]
            (matrices if len(sides) == 2 and min(sides) >= LEAST_SIDE else others).append(parameter)
        groups = [{"params": matrices, "matrices": True}, {"params": others, "matrices": False}]
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults | {"fused": fused})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if group["matrices"]:
                self._muon(parameters, group)
            else:
                self._adamw(parameters, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Updates matrices of equal shape together."""
        alike: dict[torch.Size, list[Tensor]] = {}
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            alike.setdefault(p.shape, []).append(p)
        mu, lr = group["momentum"], group["lr"]
        for shape, ps in alike.items():
            gradients = [p.grad for p in ps if p.grad is not None]
            averages = [self.state[p]["momentum"] for p in ps]
            torch._foreach_lerp_(averages, gradients, 1 - mu)
            wanted = torch.stack([unshard(g.lerp(m, mu)).flatten(1) for g, m in zip(gradients, averages, strict=True)])
            if wanted.is_cuda:
                wanted = wanted.bfloat16()
            updates = orthogonalize(wanted).to(ps[0].dtype).unflatten(2, shape[1:])
            parts = [shard_like(p, update) for p, update in zip(ps, updates, strict=True)]
            torch._foreach_mul_(ps, 1 - lr * group["weight_decay"])
            torch._foreach_sub_(ps, parts, alpha=lr * RMS * max(wanted.shape[1:]) ** 0.5)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p].update(step=step, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        states = [self.state[p] for p in parameters]
        first, second = group["betas"]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=first,
            beta2=second,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
