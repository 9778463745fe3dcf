"""Γ synapses for each of a parameter's: the wider parameter, and loading the plain one into it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from biofx.modules.lowering import group_repeat
from biofx.synapses import Entries, Population, Synapses

_BUNDLES = "_biofx_bundles"  # {parameter: (Γ, axis)}


def expand_parameter(module: nn.Module, name: str, axis: int, synapses: Synapses) -> Synapses:
    """Give a layer a parameter with Γ neighbouring entries along an axis for each of the old one.

    They sum to the old entry. A state dict of the plain layer can still be loaded.

    Args:
        module: the layer.
        name: of the parameter.
        axis: along which it grows.
        synapses: of the parameter.

    Returns:
        The synapses of the new parameter.
    """
    gamma = synapses.config.weight_splitting_Gamma
    old = module.get_parameter(name)
    with torch.no_grad():
        wide = group_repeat(old.detach(), gamma, axis) / gamma
    module._parameters[name] = nn.Parameter(wide, requires_grad=old.requires_grad)
    if _BUNDLES not in module.__dict__:
        module.__dict__[_BUNDLES] = {}
        module.register_load_state_dict_pre_hook(_load_plain_weights)
    module.__dict__[_BUNDLES][name] = gamma, axis
    return replace(synapses, gamma=gamma, split="expand", shape=tuple(wide.shape))


def _load_plain_weights(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object
) -> None:
    for name, (gamma, axis) in module.__dict__[_BUNDLES].items():
        wide, plain = module.get_parameter(name).shape, state_dict.get(prefix + name)
        if plain is None or plain.dim() != len(wide):
            continue
        if plain.shape[axis] * gamma == wide[axis]:
            state_dict[prefix + name] = group_repeat(plain, gamma, axis) / gamma


def widened(units: Iterable[Population], wide: Mapping[str, Synapses]) -> tuple[Population, ...]:
    """Populations whose entries follow parameters that have been expanded.

    Args:
        units: as they were before.
        wide: {parameter: its synapses} of those that have been.
    """

    def moved(entries: Entries) -> Iterator[Entries]:
        synapses = wide.get(entries.name)
        if synapses is None or entries.axis != synapses.post_axis:
            yield entries
            return
        gamma = synapses.gamma
        for entry in range(entries.count):  # each of them has become Γ neighbours
            start = (entries.start + entry * entries.step) * gamma
            yield replace(entries, start=start, stride=entries.stride * gamma, count=gamma, step=1)

    return tuple(
        replace(
            population,
            incoming=tuple(new for old in population.incoming for new in moved(old)),
            readers=tuple(
                replace(reader, weight=new)
                for reader in population.readers
                for new in moved(reader.weight)
            ),
        )
        for population in units
    )
