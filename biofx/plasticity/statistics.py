"""Global statistics of weights, over all shards, with as few collectives as there are groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from biofx.errors import PlasticityError
from biofx.plasticity.kernels import Kernels
from biofx.plasticity.shards import Shard, all_sum

SOURCES = {
    "mean_abs": ("sum_abs",),
    "max_abs": ("max_abs",),
    "log_mean": ("count", "log_sum", "log_square"),
    "log_std": ("count", "log_sum", "log_square"),
}


@dataclass
class Request:
    """Statistics wanted of one parameter; `found` receives them as float32 tensors of shape ().

    Attributes:
        name: the parameter's name, for messages.
        weight: the local weights.
        shard: where they lie in the whole.
        names: keys of `SOURCES`.
        rule: who asks, for messages.
    """

    name: str
    weight: Tensor
    shard: Shard
    names: tuple[str, ...]
    rule: str
    found: dict[str, Tensor]


def measure(requests: Sequence[Request], kernels: Kernels) -> None:
    """Fill in `found` of every request.

    Sums are taken in float64, so that shards and whole parameters agree after rounding.

    Raises:
        PlasticityError: a parameter holds values that are not finite; all are named.
    """
    families: dict[tuple[int, ...], list[Request]] = {}
    for request in requests:
        families.setdefault(tuple(map(id, request.shard.groups)), []).append(request)
    results = [value for family in families.values() for value in _measure_family(family, kernels)]
    if results and not bool(torch.isfinite(torch.stack(results)).all()):
        _refuse(requests)


def _measure_family(requests: Sequence[Request], kernels: Kernels) -> list[Tensor]:
    """Statistics of parameters that are split over the same groups."""
    sums: list[Tensor] = []
    maxima: list[Tensor] = []
    places: list[dict[str, int]] = []
    for request in requests:
        wanted = {source for name in request.names for source in SOURCES[name]}
        place: dict[str, int] = {}
        for source, value in _partial(request.weight, sorted(wanted), kernels).items():
            target = maxima if source == "max_abs" else sums
            place[source] = len(target)
            target.append(value)
        places.append(place)
    shard = requests[0].shard
    totals = all_sum(torch.stack(sums), shard).unbind() if sums else ()
    largest = torch.stack(maxima) if maxima else torch.empty(0)
    for group in shard.groups if maxima else ():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    results = []
    for request, place in zip(requests, places, strict=True):
        values = {
            source: (largest if source == "max_abs" else totals)[index]
            for source, index in place.items()
        }
        for name in request.names:
            request.found[name] = _finish(name, values, request.shard.numel).float()
            results.append(request.found[name])
    return results


def _partial(weight: Tensor, wanted: Sequence[str], kernels: Kernels) -> dict[str, Tensor]:
    wide = torch.float32 if weight.device.type == "mps" else torch.float64
    values: dict[str, Tensor] = {}
    if "sum_abs" in wanted:
        values["sum_abs"] = kernels.sum_abs(weight)
    if "max_abs" in wanted:
        # Many times as fast as the norm, without a copy of |w|.
        low, high = torch.aminmax(weight) if weight.numel() else (weight.sum(), weight.sum())
        values["max_abs"] = torch.maximum(-low, high).to(wide)
    if "count" in wanted:
        size = weight.float().abs()
        logs = torch.where(size > 0, size.log(), 0.0)
        values["count"] = torch.count_nonzero(size).to(wide)
        values["log_sum"] = logs.sum(dtype=wide)
        values["log_square"] = logs.square().sum(dtype=wide)
    return values


def _finish(name: str, values: dict[str, Tensor], numel: int) -> Tensor:
    if name == "mean_abs":
        return values["sum_abs"] / max(numel, 1)
    if name == "max_abs":
        return values["max_abs"]
    mean = values["log_sum"] / values["count"].clamp(min=1)
    if name == "log_mean":
        return mean
    return (values["log_square"] / values["count"].clamp(min=1) - mean * mean).clamp(min=0).sqrt()


def _refuse(requests: Sequence[Request]) -> None:
    problems = []
    for request in requests:
        if all(bool(torch.isfinite(value)) for value in request.found.values()):
            continue
        bad = (~torch.isfinite(request.weight)).sum()
        count = int(all_sum(bad, request.shard))
        problems.append(
            f"{request.name} holds {count} of {request.shard.numel} weights that are not finite "
            f"({request.rule} needs them)"
        )
    raise PlasticityError(
        "; ".join(problems) + "; nothing was written. Lower the learning rate, or clip gradients"
    )
