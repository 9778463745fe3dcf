"""Populations of chains of layers, written down by hand: what the units pass is to find."""

from dataclasses import replace
from typing import Any

from torch import nn

from biofx.synapses import Entries, Population, Reader, record_of, unwrap
from biofx.synapses.record import RECORD

WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def populate(model: nn.Module, *chains: tuple[str, ...], flat: int = 1) -> nn.Module:
    """Give a transformed model the populations of some chains of its layers.

    Args:
        model: a model made by `biofx.transform`.
        chains: names of layers, each of which reads the one before; norms in between belong to the
            layer before them.
        flat: positions per channel where a linear layer reads a flattened convolution.
    """
    core = unwrap(model)
    found = []
    for chain in chains or (
        tuple(name for name, m in core.named_children() if list(m.parameters())),
    ):
        layers = [(name, core.get_submodule(name)) for name in chain]
        for place, (name, layer) in enumerate(layers):
            if not isinstance(layer, WEIGHTS):
                continue
            vectors: dict[str, Any] = {}
            if layer.bias is not None:
                vectors["bias"] = (Entries(name=f"{name}.bias"),)
            reader = None
            for following, module in layers[place + 1 :]:
                if isinstance(module, NORMS):
                    keys = {"scale": "weight", "shift": "bias"}
                    keys |= {"running_mean": "running_mean", "running_var": "running_var"}
                    for key, own in keys.items():
                        vectors[key] = (Entries(name=f"{following}.{own}"),)
                elif reader is None:
                    count = (
                        flat
                        if isinstance(module, nn.Linear) and isinstance(layer, nn.Conv2d)
                        else 1
                    )
                    weight = Entries(name=f"{following}.weight", axis=1, stride=count, count=count)
                    bias = f"{following}.bias" if module.bias is not None else None
                    reader = Reader(layer=following, weight=weight, bias=bias)
                    break
            if reader is not None:
                found.append(
                    Population(
                        layer=name,
                        size=layer.weight.shape[0],
                        incoming=(Entries(name=f"{name}.weight"),),
                        vectors=vectors,
                        readers=(reader,),
                    )
                )
    core.__dict__[RECORD] = replace(
        record_of(core), wiring=replace(record_of(core).wiring, units=tuple(found))
    )
    return model
