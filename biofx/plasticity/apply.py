"""Where plasticity factors act: on gradients, on updates, or on plain SGD's known update."""

import functools
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from biofx.plasticity.engine import Site
from biofx.plasticity.kernels import Function, Kernels, Tensors, Work, joined


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

    Factors that depend on no weight are kept rather than drawn again where that costs more: if no
    kernels are compiled, and for costly expressions.

    Args:
        kernels: how functions are evaluated.
    """

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self._kept: dict[tuple[str, int], tuple[Hashable, Tensor]] = {}

    def forget(self) -> None:
        """Drop kept factors: the states that they were drawn from have changed."""
        self._kept.clear()

    def scale(self, site: Site) -> None:
        """g ← f·g, and what rules have left to be done with it."""
        grad = site.grad
        assert grad is not None
        if site.resting or grad.is_sparse:
            for work in site.work:
                self.kernels.do(work, shard=site.binding.shard)
            site.work.clear()
        if site.resting:
            return
        if grad.is_sparse:
            factors = self._factors(site).sparse_mask(grad.coalesce())
            grad.copy_(grad.coalesce() * factors)
        else:
            self._map(_scale, site, "grad", {"weight": site.weight, "grad": grad})

    def blend(self, site: Site, before: Tensor) -> None:
        """w ← w_before + f·(w − w_before)."""
        self._map(_blend, site, "weight", {"weight": site.weight, "before": before})

    def correct(self, site: Site, rate: Tensor) -> None:
        """w ← w + (f − 1)·Δ after plain SGD has added Δ = rate·g."""
        assert site.grad is not None
        tensors = {"weight": site.weight, "grad": site.grad}
        self._map(_correct, site, "weight", tensors, rate=rate)

    def _map(
        self,
        compose: Callable[..., Function],
        site: Site,
        target: str,
        tensors: Tensors,
        **more: Tensor,
    ) -> None:
        kept, drawn = [], []
        for place, expression in enumerate(site.expressions):
            if expression.token is not None and (expression.costly or not self.kernels.compiled):
                kept.append(self._value(site, place))
            else:
                drawn.append(expression)
        functions = tuple(expression.function for expression in drawn)
        inputs = {f"{n} {name}": t for n, e in enumerate(drawn) for name, t in e.inputs.items()}
        inputs |= {f"f{n}": factor for n, factor in enumerate((*kept, *site.factors))}
        inputs |= more
        work = Work(compose(functions), tensors, (target,), inputs)
        for earlier in reversed(site.work):
            work = joined(earlier, work)
        site.work.clear()
        self.kernels.do(work, shard=site.binding.shard)

    def _factors(self, site: Site) -> Tensor:
        """The product of all factors."""
        values = [self._value(site, place) for place in range(len(site.expressions))]
        return functools.reduce(torch.mul, [*values, *site.factors])

    def _value(self, site: Site, place: int) -> Tensor:
        """The factors of one expression, kept if they depend on no weight."""
        expression = site.expressions[place]
        kept = self._kept.get((site.binding.name, place))
        if expression.token is not None and kept is not None and kept[0] == expression.token:
            return kept[1]
        index = site.binding.shard.index(site.weight.device)
        value = expression.function(site.weight.float(), index, **expression.inputs)
        if expression.token is not None:
            self._kept[site.binding.name, place] = expression.token, value
        return value


# Each list of factor functions makes one function, and so one kernel, for each way of applying.


@functools.cache
def _scale(functions: tuple[Callable[..., Tensor], ...]) -> Function:
    def scale(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
        factors = _product(functions, index, tensors["weight"], inputs)
        return (scaled(tensors["grad"], factors),)

    return scale


@functools.cache
def _blend(functions: tuple[Callable[..., Tensor], ...]) -> Function:
    def blend(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
        factors = _product(functions, index, tensors["before"], inputs)
        return (blended(tensors["weight"], tensors["before"], factors),)

    return blend


@functools.cache
def _correct(functions: tuple[Callable[..., Tensor], ...]) -> Function:
    def correct(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
        change = wide(tensors["grad"]) * inputs["rate"]
        factors = _product(functions, index, wide(tensors["weight"]) - change, inputs)
        return (corrected(tensors["weight"], change, factors),)

    return correct


def _product(
    functions: tuple[Callable[..., Tensor], ...], index: Tensor, weight: Tensor, inputs: Tensors
) -> Tensor:
    weight = weight.float()
    values = [value for name, value in inputs.items() if name.startswith("f")]
    for place, function in enumerate(functions):
        prefix = f"{place} "
        own = {n.removeprefix(prefix): t for n, t in inputs.items() if n.startswith(prefix)}
        values.append(function(weight, index, **own))
    return functools.reduce(torch.mul, values)
