import pytest
import torch

from lightning_diffusion.metrics.sample_mean import SampleMean


def test_mean_and_its_standard_error():
    values = 3 + torch.randn(1000, generator=torch.Generator().manual_seed(0))
    found = SampleMean()
    for batch in values.split([1, 499, 500]):
        found.add(batch)
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.standard_error == pytest.approx(float(values.double().std()) / 1000**0.5)


def test_too_few_have_none():
    assert SampleMean().mean != SampleMean().mean  # NaN
    one = SampleMean()
    one.add(torch.ones(1))
    assert one.mean == 1
    assert one.standard_error != one.standard_error


def test_equal_values_have_no_error():
    same = SampleMean()
    same.add(torch.full((7,), 0.1))
    assert same.standard_error == pytest.approx(0, abs=1e-9)
