"""What `GradScheduler.metrics` tells of each parameter."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from biofx.errors import PlasticityError
from biofx.plasticity.numerics.shards import sample, sample_places
from biofx.plasticity.scheduler.binding import Binding

SHOWN = 8  # parameters that a message lists
QUANTILES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float32)
EDGES = tuple(round(0.1 * tick, 1) for tick in range(21))


def summarise(
    binding: Binding, weight: Tensor, *, lr: float | None = None, factors: bool = True
) -> dict[str, Any]:
    """Statistics of the last step's factors, and what the rules report.

    Args:
        binding: a parameter that has taken a step.
        weight: its local weights, as they are now.
        lr: the learning rate of its param group.
        factors: whether to draw a sample of the factors, which takes most of the time.
    """
    found = _statistics(sampled_factors(binding, weight), lr) if factors else {}
    for name, number in binding.numbers.items():
        found[name] = float(number)
    for rule, context in binding.pairs:
        context.weight = weight  # of a parameter in an arena, what it was when it was bound
        told = rule.report(context)
        if not isinstance(told, Mapping):
            raise PlasticityError(
                f"{rule.name}.report gave {told!r} for {context.synapses.parameter}; give a dict "
                "of names and numbers"
            )
        found.update(told)
    return found


def _statistics(factors: Tensor, lr: float | None) -> dict[str, Any]:
    low, middle, high = torch.quantile(factors, QUANTILES).tolist()
    # The last bin holds everything from 2 on.
    bins = (factors * 10).int().clamp_(0, len(EDGES) - 1)
    shares = torch.bincount(bins, minlength=len(EDGES)).float() / factors.numel()
    std, mean = torch.std_mean(factors, correction=0)
    found: dict[str, Any] = {
        "factor_mean": float(mean),
        "factor_std": float(std),
        "factor_q05": low,
        "factor_q50": middle,
        "factor_q95": high,
        "rate_histogram": {"edges": EDGES, "share": shares.tolist()},
    }
    if lr is not None:
        found["rate_mean"] = lr * found["factor_mean"]
    return found


def sampled_factors(binding: Binding, weight: Tensor) -> Tensor:
    """The product of all factors on a sample of the local synapses, float32 on the CPU."""
    if not weight.numel():
        return torch.ones(1, dtype=torch.float32, device="cpu")
    return factors_at(binding, weight, sample_places(weight)).reshape(-1).cpu()


def factors_at(binding: Binding, weight: Tensor, place: tuple[Tensor, ...] | None) -> Tensor:
    """The product of all factors at some places of the local weight; None is all, row by row."""
    if binding.product is not None:
        return sample(binding.product, weight.shape, place).float()
    shard = binding.shard
    if place is None:
        index = shard.index(weight.device).reshape(-1)
    else:
        index = torch.zeros((), dtype=torch.int64, device=weight.device)
        for line, offset, whole in zip(place, shard.offsets, shard.shape, strict=True):
            index = index * whole + line + offset
        if shard.numel < 2**31:
            index = index.to(torch.int32)
    chosen = sample(weight, weight.shape, place).float()
    product = torch.ones_like(chosen)
    for expression in binding.expressions:
        inputs = {
            name: sample(value, weight.shape, place) for name, value in expression.inputs.items()
        }
        product = product * expression.function(chosen, index, **inputs)
    for factor in binding.factors:
        product = product * sample(factor, weight.shape, place)
    return product.float()


def applied_factors(binding: Binding, weight: Tensor) -> Tensor:
    """The product of the factors of the last step, float32, of the local weight's shape."""
    product = torch.ones(weight.shape, dtype=torch.float32, device=weight.device)
    index = binding.shard.index(weight.device) if binding.expressions else weight
    for expression in binding.expressions:
        product *= expression.function(weight.float(), index, **expression.inputs)
    for factor in binding.factors:
        product *= factor
    return product


def expect(name: str, synapses: Iterable[str]) -> None:
    """Refuse the name of a parameter without synapses.

    Raises:
        PlasticityError: it has none; the message names parameters that have.
    """
    known = list(synapses)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=SHOWN, cutoff=0.4)
        shown = [*near, *(other for other in known if other not in near)][:SHOWN]
        more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
        raise PlasticityError(
            f"no parameter {name!r} carries synapses; those that do: {', '.join(shown)}{more}"
        )


def tag(parameter: str) -> str:
    """What loggers call a parameter: by its layer.

    One that is not called ``weight`` keeps its own name: a recurrent layer has several.
    """
    return f"plasticity/{parameter.removesuffix('.weight')}"


def flat(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The numbers among metrics, as ``plasticity/<layer>/<metric>``."""
    return {
        f"{tag(parameter)}/{name}": float(value)
        for parameter, found in metrics.items()
        for name, value in found.items()
        if isinstance(value, int | float)
    }
