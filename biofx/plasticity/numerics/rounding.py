"""Stochastic rounding to half precision: the mean of what is stored is the value itself.

A weight of type bfloat16 has 8 significant bits. A move of a few units in the last place, times a
factor of 0.3 or 1.5, rounds to the same units again and again, and the factor is lost. Rounded up
with the probability of the part that is cut off, it acts in the mean: Connolly, Higham and Mary
(2021), Stochastic rounding and its probabilistic backward error analysis.
"""

import torch
from torch import Tensor

from biofx.plasticity.numerics import random

NARROW = (torch.bfloat16, torch.float16)


def stochastic(value: Tensor, key: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """A value of type `dtype` next to each element, above or below it, equal to it in the mean.

    Args:
        value: float32; what `dtype` can hold, infinities and NaN among them, stays as it is. What
            rounds to its largest number or to infinity, as `Tensor.to` does it, always does so.
        key, index: of the random bits, as `random.bits` takes them.
        dtype: bfloat16 or float16.

    Returns:
        float32 of `value`'s shape, whose conversion to `dtype` rounds nothing.
    """
    noise = random.bits(key, index)
    if dtype == torch.bfloat16:
        found = _cut(value, noise, 16)
    elif dtype == torch.float16:
        # Below its smallest normal number, its numbers are evenly spaced: there is no exponent.
        small = value.abs() < 2.0**-14
        unit = (noise & 0x1FFF).to(torch.float32) * 2.0**-13
        even = ((value * 2.0**24 + unit).floor() * 2.0**-24).copysign(value)
        found = torch.where(small, even, _cut(value, noise, 13))
    else:
        raise TypeError(f"there is no stochastic rounding to {dtype}")
    # Halfway between the largest number and the next, if there were one.
    kind = torch.finfo(dtype)
    end = kind.max * (2 - kind.eps / 2) / (2 - kind.eps)
    return torch.where(value.abs() < end, found.clamp(-kind.max, kind.max), value)


def _cut(value: Tensor, noise: Tensor, bits: int) -> Tensor:
    """The lowest bits of a float32 cut off, after something random has been added to them."""
    mask = (1 << bits) - 1
    return ((value.view(torch.int32) + (noise & mask)) & ~mask).view(torch.float32)
