"""Muon against its definition, torch's own Muon of two-dimensional weights, and torch's AdamW."""

import copy

import pytest
import torch
from torch import nn

from lightning_diffusion.networks.unet import UNet
from lightning_diffusion.training.optimizers.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_orthogonalized_matrices_keep_their_directions_and_lose_their_sizes(shape):
    torch.manual_seed(0)
    rank = min(shape[1:])
    U = torch.linalg.qr(torch.randn(shape[0], shape[1], rank, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(shape[0], shape[2], rank, dtype=torch.float64)).Q
    sizes = torch.logspace(0, -1.3, rank, dtype=torch.float64)  # of the Frobenius norm, 0.02 … 0.6 of it
    found = U.mT @ orthogonalize(1e3 * (U * sizes) @ V.mT) @ V
    singular = found.diagonal(dim1=1, dim2=2)
    assert ((singular > 0.65) & (singular < 1.25)).all()
    torch.testing.assert_close(found, torch.diag_embed(singular), rtol=0, atol=1e-9)


def weights():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in ((24, 36), (24, 36), (40, 16))]


def train(optimizer, parameters, steps=20):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize(("betas", "momentum"), [((0.9, 0.99), 0.95), ((0.0, 0.99), 0.0)])
def test_without_a_given_momentum_it_has_one_only_where_adamw_has(betas, momentum):
    found, expected = weights(), weights()
    train(Muon(found, betas=betas, momentum=None), found)
    train(Muon(expected, betas=betas, momentum=momentum), expected)
    assert all(map(torch.equal, found, expected))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon to compare with")
def test_matrices_go_where_torchs_muon_takes_them():
    ours, theirs = weights(), weights()
    train(Muon(ours, lr=0.01, momentum=0.9, weight_decay=0.1), ours)
    train(torch.optim.Muon(theirs, 0.01, 0.1, 0.9, adjust_lr_fn="match_rms_adamw"), theirs)
    for p, q, start in zip(ours, theirs, weights(), strict=True):
        assert (p - q).norm() < 0.02 * (q - start).norm()  # theirs rounds to bfloat16


def test_kernels_are_matrices_of_one_row_an_output():
    torch.manual_seed(0)
    flat = [nn.Parameter(torch.randn(24, 144)) for _ in range(2)]
    kernels = [nn.Parameter(p.detach().clone().unflatten(1, (16, 3, 3))) for p in flat]
    of_flat, of_kernels = Muon(flat, lr=0.01), Muon(kernels, lr=0.01)
    for _ in range(20):
        for p, kernel in zip(flat, kernels, strict=True):
            p.grad = torch.randn(p.shape)
            kernel.grad = p.grad.view_as(kernel)
        of_flat.step()
        of_kernels.step()
    for p, kernel in zip(flat, kernels, strict=True):
        assert torch.equal(kernel.flatten(1), p)


def test_everything_else_goes_where_adamw_takes_it():
    shapes = ((7,), (24, 4, 3, 3), (4, 24, 3, 3), (11, 64), ())
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = copy.deepcopy(ours)
    train(Muon(ours, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1), ours)
    train(torch.optim.AdamW(theirs, 0.01, (0.8, 0.9), 1e-6, 0.1, fused=True), theirs)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


def test_a_network_has_its_first_and_last_layer_and_its_vectors_with_adamw():
    network = UNet(8, 1, 16, (1, 2), 1, (4,), num_classes=10)
    names = {id(p): name for name, p in network.named_parameters()}
    matrices, others = (group["params"] for group in Muon(network.parameters()).param_groups)
    assert {"stem.weight", "head.weight", "embedding.classes.weight"} <= {names[id(p)] for p in others}
    assert all("weight" in names[id(p)] and p.ndim in (2, 4) for p in matrices)
    assert sum(p.numel() for p in matrices) > 0.95 * sum(p.numel() for p in network.parameters())


def test_it_goes_on_from_its_state_exactly():
    network = [nn.Parameter(torch.randn(shape)) for shape in ((16, 16, 3, 3), (16,))]
    optimizer = Muon(network, lr=0.01)
    train(optimizer, network, 3)
    again = copy.deepcopy(network)
    resumed = Muon(again, lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, network, 3)
    train(resumed, again, 3)
    for p, q in zip(network, again, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"momentum": 1.0}])
def test_values_out_of_range_are_named(options):
    key = next(iter(options))
    with pytest.raises(ValueError, match=f"optimizer.{key}="):
        Muon([nn.Parameter(torch.zeros(3))], **options)
