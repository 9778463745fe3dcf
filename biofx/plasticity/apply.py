"""Where plasticity factors act: on gradients, on updates, or on plain SGD's known update."""

from collections.abc import Hashable

import torch
from torch import Tensor

from biofx.plasticity.engine import Site


def scaled(grad: Tensor, factors: Tensor) -> Tensor:
    """f·g."""
    return grad * factors


def blended(weight: Tensor, before: Tensor, factors: Tensor) -> Tensor:
    """w_before + f·(w − w_before); exactly w where f = 1, exactly w_before where f = 0."""
    return torch.lerp(before, weight, factors.expand_as(weight))


def corrected(weight: Tensor, change: Tensor, factors: Tensor) -> Tensor:
    """w + (f − 1)·change, for an optimizer known to have added `change`."""
    return weight + (factors - 1) * change


class Eager:
    """Applies factors with plain tensor operations; keeps factors that depend on no weight."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], tuple[Hashable, Tensor]] = {}

    def scale(self, site: Site) -> None:
        """g ← f·g."""
        grad = site.grad
        assert grad is not None
        if grad.is_sparse:
            factors = self.factors(site, site.weight).sparse_mask(grad.coalesce())
            grad.copy_(grad.coalesce() * factors)
            return
        grad.copy_(scaled(_wide(grad), self.factors(site, site.weight)))

    def blend(self, site: Site, before: Tensor) -> None:
        """w ← w_before + f·(w − w_before)."""
        factors = self.factors(site, before)
        weight = _wide(site.weight)
        site.weight.copy_(blended(weight, _wide(before), factors.to(weight.dtype)))

    def correct(self, site: Site, rate: Tensor) -> None:
        """w ← w + (f − 1)·Δ after plain SGD has added Δ = rate·g."""
        assert site.grad is not None
        weight = _wide(site.weight)
        change = _wide(site.grad) * rate
        factors = self.factors(site, weight - change)
        site.weight.copy_(corrected(weight, change, factors))

    def factors(self, site: Site, weight: Tensor) -> Tensor:
        """The product of all factors, from the weights before the update."""
        product: Tensor | None = None
        index: Tensor | None = None
        for place, expression in enumerate(site.expressions):
            kept = self._kept.get((site.binding.name, place))
            if expression.token is not None and kept and kept[0] == expression.token:
                value = kept[1]
            else:
                if index is None:
                    index = site.binding.shard.index(weight.device)
                value = expression.function(weight.float(), index, **expression.inputs)
                if expression.token is not None:
                    self._kept[site.binding.name, place] = expression.token, value
            product = value if product is None else product * value
        for value in site.factors:
            product = value if product is None else product * value
        assert product is not None
        return product


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: half-precision types would round the factors themselves."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
