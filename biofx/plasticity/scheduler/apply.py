"""Where plasticity factors act: on gradients, on updates, or on plain SGD's known update."""

import functools
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from biofx.plasticity.kernels.base import (
    Function,
    KernelCall,
    Kernels,
    KernelSpec,
    Tensors,
    kernel_spec,
    wide,
)
from biofx.plasticity.numerics.rounding import NARROW, stochastic
from biofx.plasticity.rules.rule import Context
from biofx.plasticity.scheduler.binding import ParameterStep

# product(weight, index, inputs) -> the factors
Product = Callable[[Tensor, Tensor, Tensors], Tensor]


def scaled(grad: Tensor, factors: Tensor) -> Tensor:
    """f·g."""
    return wide(grad) * factors


def blended(weight: Tensor, before: Tensor, factors: Tensor) -> Tensor:
    """w_before + f·(w − w_before), at least float32; exactly w or w_before where f is 1 or 0."""
    weight = wide(weight)
    return torch.lerp(wide(before), weight, factors.expand_as(weight).to(weight.dtype))


def corrected(weight: Tensor, change: Tensor, factors: Tensor) -> Tensor:
    """w + (f − 1)·change, for an optimizer known to have added `change`.

    Exactly w where f = 1; where f = 0, w_before but for the rounding of `change` and its return.
    """
    return wide(weight) + (factors - 1) * change


class Applier:
    """Applies the factors of a `ParameterStep`.

    Factors that depend on no weight are kept rather than drawn again where that costs more: if no
    kernels are compiled, and for costly expressions.

    Args:
        kernels: how functions are evaluated.
    """

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self._kept: dict[Context, tuple[Hashable, Tensor]] = {}
        self._compiled = kernels.compiled

    def forget(self) -> None:
        """Drop kept factors: the states that they were drawn from have changed."""
        self._kept.clear()

    def scale(self, site: ParameterStep) -> None:
        """g ← f·g, and what rules have left to be done with it."""
        grad = site.grad
        assert grad is not None
        site.see(gradient=not site.resting)
        if site.resting or grad.is_sparse:
            self.finish(site)
        if site.resting:
            return
        if grad.is_sparse:
            factors = self._factors(site).sparse_mask(grad.coalesce())
            grad.copy_(grad.coalesce() * factors)
        else:
            self._map(_scale, site, "grad", {"weight": site.weight, "grad": grad})
            site.finish(self.kernels)

    def finish(self, site: ParameterStep) -> None:
        """Do what rules have left to be done with the factors, and nothing else."""
        site.finish(self.kernels)

    def blend(self, site: ParameterStep, before: Tensor, due: KernelCall | None = None) -> None:
        """w ← w_before + f·(w − w_before), left to be done by `ParameterStep.finish`.

        Args:
            site: a parameter whose weights have moved.
            before: its weights before that.
            due: what is to be done to w first.
        """
        if site.work:
            site.work[:] = [_with_before(work, site.weight, before) for work in site.work]
            site.judged()
        if due is not None:
            site.work.append(due)
        tensors = {"weight": site.weight, "before": before}
        if site.weight.dtype in NARROW:
            self._map(_blend, site, "weight", tensors, rounding=_rounding_key(site))
        else:
            self._map(_blend, site, "weight", tensors)

    def factors(self, site: ParameterStep, before: Tensor) -> Tensor:
        """The product of all factors, at the weights before the update.

        What rules have left to be done is done first.
        """
        site.work[:] = [_with_before(work, site.weight, before) for work in site.work]
        self.finish(site)
        after, site.weight = site.weight, before
        try:
            return self._factors(site)
        finally:
            site.weight = after

    def correct(self, site: ParameterStep, rate: Tensor) -> None:
        """w ← w + (f − 1)·Δ after plain SGD has added Δ = rate·g; otherwise as `blend`."""
        grad = site.judged()
        site.work[:] = [_with_undone(work, site.weight, grad, rate) for work in site.work]
        tensors = {"weight": site.weight, "grad": grad}
        self._map(_correct, site, "weight", tensors, rate=rate)

    def _map(
        self,
        compose: Callable[..., Function],
        site: ParameterStep,
        target: str,
        tensors: Tensors,
        **more: Tensor,
    ) -> None:
        if self.kernels.compiled and not self._compiled:
            self._compiled = True
            self.forget()  # what compiled code draws again
        factors: list[Tensor] = []
        drawn: list[tuple[Callable[..., Tensor], tuple[str, ...], bool]] = []
        leaves = [*tensors.values()]
        for place, expression in enumerate(site.expressions):
            function, inputs, token, costly, rounded = expression
            if token is not None and (costly or not self.kernels.compiled):
                factors.append(self._value(site, place))
            else:
                drawn.append((function, tuple(inputs), rounded))
                leaves += inputs.values()
        factors += site.factors
        known = _composed(compose, tuple(drawn), len(factors), (*tensors, target), tuple(more))
        site.work.append(KernelCall(known, (*leaves, *factors, *more.values())))

    def _factors(self, site: ParameterStep) -> Tensor:
        """The product of all factors."""
        values = [self._value(site, place) for place in range(len(site.expressions))]
        return functools.reduce(torch.mul, [*values, *site.factors])

    def _value(self, site: ParameterStep, place: int) -> Tensor:
        """The factors of one expression, kept if they depend on no weight."""
        expression, source = site.expressions[place], site.sources[place]
        kept = self._kept.get(source)
        if expression.token is not None and kept is not None and kept[0] == expression.token:
            return kept[1]
        index = site.binding.shard.index(site.weight.device)
        value = expression.function(site.weight.float(), index, **expression.inputs)
        if expression.token is not None:
            self._kept[source] = expression.token, value
        return value


def _rounding_key(site: ParameterStep) -> Tensor:
    """Of the random bits that decide which way a parameter's weights are rounded at a step."""
    return site.binding.pairs[0][1].key("rounding")


def _with_before(work: KernelCall, weight: Tensor, before: Tensor) -> KernelCall:
    """A call that was meant for the weights before the update, on a copy of them."""
    return KernelCall(
        work.spec, tuple([before if leaf is weight else leaf for leaf in work.leaves])
    )


def _with_undone(work: KernelCall, weight: Tensor, grad: Tensor, rate: Tensor) -> KernelCall:
    """A call that was meant for the weights before plain SGD's step, on those that it made."""
    places = {id(leaf): name for name, leaf in zip(work.spec.names, work.leaves, strict=True)}
    name = places.get(id(weight))
    if name is None:
        return work
    leaves = (weight, grad, *work.leaves, rate)
    return KernelCall(_undoing(work.spec, name), leaves)


@functools.cache
def _undoing(later: KernelSpec, weight: str) -> KernelSpec:
    """What a spec does, with plain SGD's step taken back from the tensor of this name first."""
    moved, grad, rate = "undone weight", "undone grad", "undone rate"

    def undone(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
        before = wide(tensors[moved]) - wide(tensors[grad]) * inputs[rate]
        own, given = (
            {name: before if name == weight else part[name] for name in names}
            for names, part in ((later.tensors, tensors), (later.inputs, inputs))
        )
        return later.function(index, own, given)

    tensors, inputs = (moved, grad, *later.tensors), (*later.inputs, rate)
    return kernel_spec(undone, tensors, inputs, later.writes, later.rounded)


# Each list of factor functions makes one spec, and so one kernel, for each way of applying.


@functools.cache
def _composed(
    compose: Callable[..., Function],
    drawn: tuple[tuple[Callable[..., Tensor], tuple[str, ...], bool], ...],
    factors: int,
    tensors: tuple[str, ...],
    more: tuple[str, ...],
) -> KernelSpec:
    """What applies the factors that functions give, and some that are known.

    Args:
        compose: makes a function of another, that of the product of all factors.
        drawn: functions of expressions, the names of their inputs, and whether they are rounded.
        factors: how many there are besides.
        tensors: names of the tensors; the last one is the one to be written.
        more: names of what else the function needs.
    """

    def product(weight: Tensor, index: Tensor, given: Tensors) -> Tensor:
        weight = weight.float()
        values = [given[f"f{place}"] for place in range(factors)]
        for place, (function, inputs, _) in enumerate(drawn):
            own = {name: given[f"{place} {name}"] for name in inputs}
            values.append(function(weight, index, **own))
        return functools.reduce(torch.mul, values)

    names = [f"{place} {name}" for place, (_, own, _) in enumerate(drawn) for name in own]
    names += [f"f{place}" for place in range(factors)]
    *read, target = tensors
    rounded = any(rounded for _, _, rounded in drawn)
    return kernel_spec(compose(product), tuple(read), (*names, *more), (target,), rounded)


def _scale(product: Product) -> Function:
    def scale(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
        return (scaled(tensors["grad"], product(tensors["weight"], index, inputs)),)

    return scale


def _blend(product: Product) -> Function:
    def blend(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
        before = tensors["before"]
        moved = blended(tensors["weight"], before, product(before, index, inputs))
        if "rounding" in inputs:
            moved = stochastic(moved, inputs["rounding"], index, before.dtype)
        return (moved,)

    return blend


def _correct(product: Product) -> Function:
    def correct(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
        weight, change = tensors["weight"], wide(tensors["grad"]) * inputs["rate"]
        factors = product(wide(weight) - change, index, inputs)
        return (corrected(weight, change, factors),)

    return correct
