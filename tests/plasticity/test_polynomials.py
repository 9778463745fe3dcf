"""Functions made of sums and products are as exact as documented."""

import pytest
import torch

from biofx.plasticity.numerics import polynomials


def test_exp() -> None:
    x = torch.cat([torch.linspace(-87, 88, 100_001), torch.linspace(-1, 1, 10_001)])
    exact = x.double().exp()
    assert float(((polynomials.exp(x) - exact) / exact).abs().max()) < 2e-7


def test_expm1() -> None:
    x = -torch.cat([torch.logspace(-30, 1.9, 100_001), torch.linspace(0.3, 0.4, 10_001)])
    exact = x.double().expm1()
    assert float(((polynomials.expm1(x) - exact) / exact).abs().max()) < 3e-7
    assert polynomials.expm1(torch.tensor([-torch.inf, -0.0, 0.0])).tolist() == [-1, 0, 0]


def test_exp_at_its_ends() -> None:
    infinity = float("inf")
    x = torch.tensor([-infinity, -200.0, -88.5, 0.0, -0.0, 88.6, 200.0, infinity])
    assert polynomials.exp(x).tolist() == [0, 0, 0, 1, 1, infinity, infinity, infinity]
    assert bool(polynomials.exp(torch.tensor(float("nan"))).isnan())


@pytest.mark.parametrize("terms", range(1, 9))
def test_polynomial(terms: int) -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    coefficients = [1.5, -2.0, 0.5, 3.0, -1.0, 0.25, 2.0, -0.5][:terms]
    expected = sum((c * x**power for power, c in enumerate(coefficients)), torch.zeros(9))
    torch.testing.assert_close(polynomials.polynomial(coefficients, x) + 0 * x, expected.double())


@pytest.mark.parametrize(("limit", "error"), [(2, 3e-7), (16, 1.5e-6)])
def test_exp_near_zero(limit: float, error: float) -> None:
    x, rate = torch.linspace(0, 1, 100_001), torch.tensor(float(limit))
    for sign in (-1, 1):
        exact = (x.double() * sign * limit).exp()
        found = polynomials.exp_near_zero(x, sign * rate)
        assert float(((found - exact) / exact).abs().max()) < error
        assert float(found[0]) == 1


def test_erfc() -> None:
    x = torch.cat([torch.linspace(0, 12, 100_001), torch.tensor([1e3, 1e30, torch.inf])])
    assert (polynomials.erfc(x) - torch.erfc(x)).abs().max() < 3e-6
    small = x[x < 3].double()
    assert (polynomials.erfc(small) / torch.erfc(small) - 1).abs().max() < 0.01
    assert polynomials.erfc(torch.tensor(0.0)) == 1
    assert polynomials.erfc(torch.tensor(torch.nan)).isnan()
