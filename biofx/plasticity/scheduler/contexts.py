"""What the rules see of a parameter, put together when it is first seen."""

import functools
from collections.abc import Iterable

from torch import Tensor, nn

from biofx.plasticity.kernels.base import Kernels
from biofx.plasticity.numerics.shards import Shard, local, shard_of
from biofx.plasticity.rules.rule import Context, Rule
from biofx.synapses import Followed, Neighbours, Synapses, unwrap
from biofx.synapses.initial import initial_law


def contexts_of(
    model: nn.Module,
    followed: Followed,
    rules: Iterable[tuple[str, Rule]],
    *,
    entry: Synapses,
    weight: Tensor,
    shard: Shard,
    seed: int,
    kernels: Kernels,
) -> list[tuple[Rule, Context]]:
    """Each rule that serves a parameter, with its context.

    Args:
        model: a transformed model, wrapped or not.
        followed: its units.
        rules: those that serve it, with their keys.
        entry: the parameter's own synapses.
        weight: its local part.
        shard: where that lies in the whole.
        seed, kernels: as for `Engine`.
    """
    wiring = Neighbours(entry.parameter, followed)
    law = initial_law(unwrap(model).get_submodule(entry.layers[0]), shard.shape)
    lookup = functools.partial(_local_part, model)
    return [
        (
            rule,
            Context(
                synapses=entry,
                rule=key,
                shard=shard,
                weight=weight,
                timing=rule.timing(entry),
                seed=seed,
                initial=law,
                wiring=wiring,
                lookup=lookup,
                kernels=kernels,
            ),
        )
        for key, rule in rules
    ]


def _local_part(model: nn.Module, name: str) -> tuple[Tensor, Shard]:
    """The local part of any parameter or buffer, and where it lies."""
    owner, _, own = name.rpartition(".")
    tensor = getattr(unwrap(model).get_submodule(owner), own)
    return local(tensor), shard_of(tensor, name)


def padding_of(model: nn.Module, entry: Synapses, shard: Shard) -> int | None:
    """The local row of the padding index, which no layer trains: an output layer may share it."""
    layers = [unwrap(model).get_submodule(name) for name in entry.layers]
    place, *others = {getattr(layer, "padding_idx", None) for layer in layers}
    if others or entry.kind != "embedding" or not isinstance(place, int):
        return None
    row = place - shard.offsets[0]
    return row if 0 <= row < shard.size[0] else None
