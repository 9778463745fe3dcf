"""One layer as a model of its own, for `BioModule`."""

from torch import nn

from biofx.config import BioConfig
from biofx.errors import ModelError
from biofx.synapses import Axes, BioLayer, axes_of, original_class
from biofx.synapses.classes import SAVED, mixins_of, private_names
from biofx.synapses.registry import known
from biofx.transform import transform


class Unknown(nn.Module):
    """Stands for a layer of a type that biofx does not know: its weight, without units."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


@known(Unknown)
def _unknown(module: Unknown) -> list[Axes]:
    return [Axes("weight", "unknown", post=0, pre=-1, whole="its type is not known")]


def transformed(layer: nn.Module, config: BioConfig) -> nn.Module:
    """The layer, transformed; of an unknown type, only its `weight`."""
    try:
        return transform(_bare(layer), config)
    except ModelError:
        weight = layer._parameters.get("weight")
        if weight is None or axes_of(layer):
            raise
        return transform(Unknown(weight), config.replace(apply_dales_principle=False))


def _bare(layer: nn.Module) -> nn.Module:
    """The layer as it was before it was augmented, over the same parameters; else the layer."""
    if not isinstance(layer, BioLayer):
        return layer
    base = original_class(layer)
    bare = base.__new__(base)
    added = {*SAVED, *private_names(mixins_of(layer)), "bio_mod"}
    for name, value in vars(layer).items():
        if name not in added:
            bare.__dict__[name] = dict(value) if isinstance(value, dict) else value
    return bare
