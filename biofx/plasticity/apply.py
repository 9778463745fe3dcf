"""Where plasticity factors act: on gradients, on updates, or on plain SGD's known update."""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from biofx.plasticity.engine import Site
from biofx.plasticity.kernels import Function, Kernels


def scaled(grad: Tensor, factors: Tensor) -> Tensor:
    """f·g."""
    return wide(grad) * factors


def blended(weight: Tensor, before: Tensor, factors: Tensor) -> Tensor:
    """w_before + f·(w − w_before); exactly w where f = 1, exactly w_before where f = 0."""
    weight = wide(weight)
    return torch.lerp(wide(before), weight, factors.expand_as(weight).to(weight.dtype))


def corrected(weight: Tensor, change: Tensor, factors: Tensor) -> Tensor:
    """w + (f − 1)·change, for an optimizer known to have added `change`."""
    return wide(weight) + (factors - 1) * change


def wide(tensor: Tensor) -> Tensor:
    """At least float32: half-precision types would round the factors themselves."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Applier:
    """Applies the factors of a `Site`.

    Without compiled kernels, factors that depend on no weight are kept rather than drawn again:
    such models are small, or slow anyway.

    Args:
        kernels: how functions are evaluated.
    """

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self._kept: dict[tuple[str, int], tuple[Hashable, Tensor]] = {}

    def scale(self, site: Site) -> None:
        """g ← f·g."""
        grad = site.grad
        assert grad is not None
        if grad.is_sparse:
            factors = self._factors(site, site.weight).sparse_mask(grad.coalesce())
            grad.copy_(grad.coalesce() * factors)
        elif self.kernels.compiled:
            self._map(_scale, site, "grad", {"weight": site.weight, "grad": grad})
        else:
            grad.copy_(scaled(grad, self._factors(site, site.weight)))

    def blend(self, site: Site, before: Tensor) -> None:
        """w ← w_before + f·(w − w_before)."""
        if self.kernels.compiled:
            self._map(_blend, site, "weight", {"weight": site.weight, "before": before})
        else:
            site.weight.copy_(blended(site.weight, before, self._factors(site, before)))

    def correct(self, site: Site, rate: Tensor) -> None:
        """w ← w + (f − 1)·Δ after plain SGD has added Δ = rate·g."""
        assert site.grad is not None
        if self.kernels.compiled:
            tensors = {"weight": site.weight, "grad": site.grad}
            self._map(_correct, site, "weight", tensors, rate)
        else:
            change = wide(site.grad) * rate
            factors = self._factors(site, wide(site.weight) - change)
            site.weight.copy_(corrected(site.weight, change, factors))

    def _map(
        self,
        compose: Callable[..., Function],
        site: Site,
        target: str,
        tensors: Mapping[str, Tensor],
        *more: Tensor,
    ) -> None:
        functions = tuple(expression.function for expression in site.expressions)
        inputs = (tuple(e.inputs for e in site.expressions), tuple(site.factors), more)
        function = compose(functions)
        self.kernels.map(
            function, tensors, writes=(target,), shard=site.binding.shard, inputs=inputs
        )

    def _factors(self, site: Site, weight: Tensor) -> Tensor:
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


# Each list of factor functions makes one function, and so one kernel, for each way of applying.


@functools.cache
def _scale(functions: tuple[Callable[..., Tensor], ...]) -> Function:
    def scale(index: Tensor, tensors: Mapping[str, Tensor], inputs: Any) -> tuple[Tensor, ...]:
        factors = _product(functions, index, tensors["weight"], inputs)
        return (scaled(tensors["grad"], factors),)

    return scale


@functools.cache
def _blend(functions: tuple[Callable[..., Tensor], ...]) -> Function:
    def blend(index: Tensor, tensors: Mapping[str, Tensor], inputs: Any) -> tuple[Tensor, ...]:
        factors = _product(functions, index, tensors["before"], inputs)
        return (blended(tensors["weight"], tensors["before"], factors),)

    return blend


@functools.cache
def _correct(functions: tuple[Callable[..., Tensor], ...]) -> Function:
    def correct(index: Tensor, tensors: Mapping[str, Tensor], inputs: Any) -> tuple[Tensor, ...]:
        change = wide(tensors["grad"]) * inputs[2][0]
        factors = _product(functions, index, wide(tensors["weight"]) - change, inputs)
        return (corrected(tensors["weight"], change, factors),)

    return correct


def _product(
    functions: tuple[Callable[..., Tensor], ...], index: Tensor, weight: Tensor, inputs: Any
) -> Tensor:
    weight = weight.float()
    product: Tensor | None = None
    for function, own in zip(functions, inputs[0], strict=True):
        value = function(weight, index, **own)
        product = value if product is None else product * value
    for value in inputs[1]:
        product = value if product is None else product * value
    assert product is not None
    return product
