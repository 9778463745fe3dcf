"""Global statistics of weights, over all shards, with as few collectives as there are groups."""

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from biofx.errors import PlasticityError
from biofx.plasticity.kernels.arena import SMALL, Arena, total_of
from biofx.plasticity.kernels.base import Kernels
from biofx.plasticity.numerics.shards import Shard, all_sum

LISTED = 8  # parameters that an error names; of a large model all may be at fault
SOURCES = {
    "mean_abs": ("sum_abs",),
    "max_abs": ("max_abs",),
    "log_mean": ("count", "log_sum", "log_square"),
    "log_std": ("count", "log_sum", "log_square"),
}


# Sources that are combined by the largest.
MAXIMA = frozenset({"max_abs", "bound"})
# Not finite where a weight is not: whoever asks for one need not ask for "finite" too.
LARGEST = frozenset({"mean_abs", "max_abs"})


@dataclass
class Request:
    """Statistics wanted of one parameter; `found` receives them as float32 tensors of shape ().

    Attributes:
        name: the parameter's name, for messages; of an arena, those of all its parameters.
        weight: the local weights.
        shard: where they lie in the whole.
        names: keys of `SOURCES`, or "finite".
        rule: who asks, for messages.
    """

    name: str | Sequence[str]
    weight: Tensor
    shard: Shard | Arena
    names: tuple[str, ...]
    rule: str
    found: dict[str, Tensor]


def measure(requests: Sequence[Request], kernels: Kernels) -> None:
    """Fill in `found` of every request.

    Sums are taken in float64, so that shards and whole parameters agree after rounding.

    Raises:
        PlasticityError: a parameter holds values that are not finite; all are named.
    """
    families: dict[tuple[Any, ...], list[Request]] = {}
    bad: list[Request] = []
    for request in requests:
        if isinstance(request.shard, Arena):
            if not _measure_arena(request, request.shard):
                bad.append(request)
            continue
        key = (request.weight.device, *map(id, request.shard.groups))
        families.setdefault(key, []).append(request)
    for family in families.values():
        bad += _measure_family(family, kernels)
    if bad:
        _refuse(bad)


def _measure_family(requests: Sequence[Request], kernels: Kernels) -> list[Request]:
    """Serve parameters of one device and the same groups; returns those that are not finite."""
    parts = [_partial(request.weight, _sources(request.names), kernels) for request in requests]
    shards = [request.shard for request in requests if isinstance(request.shard, Shard)]
    numbers = _numbers(parts, shards[0])
    results = [
        (request, name, _finish(name, known, shard.numel))
        for request, known, shard in zip(requests, numbers, shards, strict=True)
        for name in request.names
    ]
    found = _scalars([x for _, _, x in results], requests[0].weight.device)
    for (request, name, _), value in zip(results, found, strict=True):
        request.found[name] = value
    bad = {id(request) for request, _, number in results if not math.isfinite(number)}
    return [request for request in requests if id(request) in bad]


def _sources(names: Collection[str]) -> set[str]:
    """The sums and maxima that statistics are made of."""
    wanted = {source for name in names if name != "finite" for source in SOURCES[name]}
    if "finite" in names and LARGEST.isdisjoint(names):
        wanted.add("bound")
    return wanted


def _measure_arena(request: Request, arena: Arena) -> bool:
    """Fill in `found` with one value per row; False if one is not finite."""
    finite = True
    weight, found = request.weight, request.found
    if request.names == ("finite",):
        # What is in the padding can only make them seem not to be.
        return _finite(weight) or _finite(arena.clear(weight))
    arena.clear(weight)
    logs: tuple[Tensor, Tensor] | None = None
    for name in request.names:
        if name == "finite":
            if LARGEST.isdisjoint(request.names):
                finite &= _finite(weight)
            continue
        if name == "mean_abs":
            table = arena.total(weight.abs()) / arena.numbers
        elif name == "max_abs":
            table = arena.largest(weight.abs())
        else:
            logs = logs or _log_moments(weight, arena)
            table = logs[name == "log_std"]
        finite &= all(map(math.isfinite, table.tolist()))
        found[name] = arena.spread(table.float())
    return finite


def _finite(weight: Tensor) -> bool:
    return math.isfinite(_sum(weight)) or all(
        math.isfinite(bound.item()) for bound in torch.aminmax(weight)
    )


def _sum(weight: Tensor) -> float:
    """Not finite if a weight is not; four times as fast as the largest, which cannot overflow."""
    return weight.sum(dtype=torch.promote_types(weight.dtype, torch.float32)).item()


def _log_moments(weight: Tensor, arena: Arena) -> tuple[Tensor, Tensor]:
    size = weight.float().abs()
    logs = torch.where(size > 0, size.log(), 0.0)
    count = arena.total((size > 0).double()).clamp(min=1.0)
    mean = arena.total(logs) / count
    variance = arena.total(logs.square()) / count - mean * mean
    return mean, variance.clamp(min=0.0).sqrt()


# What follows from sums and maxima is worked out with plain numbers, and on a CPU nothing is put
# together that needs no sending: of a small model's step, each operation on a tensor, however
# short, is a noticeable part.


def _numbers(parts: Sequence[Mapping[str, Tensor]], shard: Shard) -> list[dict[str, float]]:
    """Sums and maxima over all shards, after one look at the device."""
    if not shard.groups and _near(next(iter(parts[0].values())).device):
        return [{source: value.item() for source, value in part.items()} for part in parts]
    known = [(source, place) for place, part in enumerate(parts) for source in part]
    order = [one for one in known if one[0] not in MAXIMA]
    sums = len(order)
    order += [one for one in known if one[0] in MAXIMA]
    totals = torch.stack([parts[place][source] for source, place in order])
    if sums:
        all_sum(totals[:sums], shard)
    if shard.groups:  # a maximum of several processes may pass over NaN
        totals[sums:].nan_to_num_(nan=math.inf, posinf=math.inf)
    for group in shard.groups if sums < len(order) else ():
        dist.all_reduce(totals[sums:], op=dist.ReduceOp.MAX, group=group)
    numbers: list[dict[str, float]] = [{} for _ in parts]
    for (source, place), number in zip(order, totals.tolist(), strict=True):
        numbers[place][source] = number
    return numbers


def _scalars(values: list[float], device: torch.device) -> Sequence[Tensor]:
    """Numbers as float32 tensors of shape ()."""
    if _near(device):
        return [torch.scalar_tensor(x, dtype=torch.float32, device=device) for x in values]
    return torch.tensor(values, dtype=torch.float32, device=device).unbind()


def _near(device: torch.device) -> bool:
    return device.type == "cpu"


def _partial(weight: Tensor, wanted: set[str], kernels: Kernels) -> dict[str, Tensor]:
    """Sums and maxima of the local weights, of shape ()."""
    wide = torch.float32 if weight.device.type == "mps" else torch.float64
    values: dict[str, Tensor] = {}
    if "sum_abs" in wanted:
        values["sum_abs"] = kernels.sum_abs(weight)
    if "max_abs" in wanted:
        values["max_abs"] = kernels.max_abs(weight).to(wide)
    if "bound" in wanted:  # finite if all weights are
        quickly = weight.numel() and _near(weight.device) and math.isfinite(_sum(weight))
        bound = weight.new_zeros(()) if quickly else kernels.max_abs(weight)
        values["bound"] = bound.to(wide)
    if "count" in wanted:
        size = weight.float().abs()
        logs = torch.where(size > 0, size.log(), 0.0)
        values["count"] = torch.count_nonzero(size).to(wide)
        add: Callable[[Tensor], Tensor] = functools.partial(torch.sum, dtype=wide)
        if 0 < weight.numel() <= SMALL and wide == torch.float64:
            add = total_of
        values["log_sum"] = add(logs)
        values["log_square"] = add(logs.square())
    return values


def _finish(name: str, totals: dict[str, float], numel: int) -> float:
    if name == "finite":
        return next(
            totals[source] for source in ("bound", "sum_abs", "max_abs") if source in totals
        )
    if name == "mean_abs":
        return totals["sum_abs"] / max(numel, 1)
    if name == "max_abs":
        return totals["max_abs"]
    count = max(totals["count"], 1.0)
    mean = totals["log_sum"] / count
    if name == "log_mean":
        return mean
    return math.sqrt(max(totals["log_square"] / count - mean * mean, 0.0))


def _refuse(requests: Sequence[Request]) -> None:
    problems = []
    for request in requests:
        arena = request.shard
        if isinstance(arena, Arena):
            parts = zip(request.name, arena.views(request.weight), strict=True)
            counts = [(n, int((~torch.isfinite(part)).sum()), part.numel()) for n, part in parts]
        else:
            bad = all_sum((~torch.isfinite(request.weight)).sum(), arena)
            counts = [(str(request.name), int(bad), arena.numel)]
        problems += [
            f"{name} holds {count} of {numel} weights that are not finite "
            f"({request.rule} needs them)"
            for name, count, numel in counts
            if count or not isinstance(arena, Arena)
        ]
    if len(problems) > LISTED:
        problems[LISTED:] = [f"and {len(problems) - LISTED} more"]
    raise PlasticityError(
        "; ".join(problems)
        + "; the rules have written nothing. Lower the learning rate, or clip gradients"
    )
