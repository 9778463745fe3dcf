"""Sums over the synapses of a parameter, and over all processes that hold some of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from biofx.plasticity.kernels.base import Kernels
from biofx.plasticity.numerics.shards import all_sum
from biofx.plasticity.rules.rule import Context, Rule, Stage
from biofx.plasticity.scheduler.binding import ParameterStep


def add_up(
    sites: Sequence[ParameterStep],
    stage: Stage,
    kinds: tuple[type[Rule], ...],
    kernels: Kernels,
) -> None:
    """Find the totals that rules need to change weights at a stage: `Context.total`."""
    families: dict[tuple[Any, ...], list[tuple[Context, Tensor]]] = {}
    for site in sites:
        for rule, context in site.due(stage, kinds) if site.binding.adding else ():
            if context not in site.binding.adding:
                continue
            site.finish(kernels)
            context.total = rule.total(context)
            groups = site.binding.shard.groups
            if context.total is not None and groups:
                key = (context.total.device, *map(id, groups))
                families.setdefault(key, []).append((context, context.total))
    for family in families.values():
        totals = all_sum(torch.stack([total for _, total in family]), family[0][0].shard)
        for (context, _), total in zip(family, totals.unbind(), strict=True):
            context.total = total
