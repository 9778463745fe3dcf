"""`Synapses`: what biofx knows about all synapses of one parameter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from biofx.config import BioConfig
from biofx.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Synapses:
    """All synapses of one `Parameter`, found by its qualified name.

    The parameter itself is never held: `fully_shard`, `.to()` and `load_state_dict(assign=True)`
    replace parameters. Look it up with `parameter_of`. A tied parameter is one `Synapses`.

    Attributes:
        parameter: qualified name in the transformed model, e.g. ``"layer1.0.conv1.weight"``.
        kind: what the parameter is to its layer, e.g. ``"linear"``, ``"conv2d"``, ``"embedding"``.
        shape: global shape of the parameter.
        post_axis: axis that runs over output (post-synaptic) units.
        pre_axis: axis that runs over input (pre-synaptic) units, of one connection group.
        groups: connection groups of a grouped convolution; output units of group k see only
            the k-th share of the input units. 1 elsewhere.
        bundles: names of equal blocks along `post_axis` that belong to different functions:
            ``("q", "k", "v")`` of a packed attention projection, gates of an LSTM.
        layers: qualified names of the modules that use the parameter; the first one owns it.
        config: effective configuration (overrides applied).
        depth: longest path of weight layers before this one, 0 for the first.
        rank: position in topological order among the weight layers, from 0 to `ranks` − 1.
        ranks: number of weight layers ranked.
        output: no weight layer lies downstream.
        gamma: Γ synapses stand for one connection (1: not split).
        split: how it was split, or None.
    """

    parameter: str
    kind: str
    shape: tuple[int, ...]
    post_axis: int
    pre_axis: int
    config: BioConfig
    layers: tuple[str, ...]
    groups: int = 1
    bundles: tuple[str, ...] = ()
    depth: int = 0
    rank: int = 0
    ranks: int = 1
    output: bool = False
    gamma: int = 1
    split: Literal["group", "expand"] | None = None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One weight layer and what became of it.

    Attributes:
        name: qualified name of the module.
        old_type, new_type: class names before and after.
        action: "augmented", "split" or "skipped".
        reason: why it was skipped, or why an augmented layer was not split although Γ > 1.
        parameters: names of the parameters whose synapses it carries.
        depth, rank, output: as in `Synapses`.
    """

    name: str
    old_type: str
    new_type: str
    action: Literal["augmented", "split", "skipped"]
    reason: str | None = None
    parameters: tuple[str, ...] = ()
    depth: int = 0
    rank: int = 0
    output: bool = False


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a transformation did; `biofx.transform` leaves it on the model.

    Attributes:
        config: the configuration given.
        layers: {layer name: Layer} of every module with weights, in topological order.
        synapses: {parameter name: Synapses}.
        opaque: {module name: reason} of modules that stay Python; "" is the model itself.
        partly: {module name: reason} of modules some of whose calls stay Python.
        weights_in_graphs: share of the synapses whose layer a graph calls, 0 to 1.
        nodes: number of nodes in all graphs.
        shapes: {module name: {node name: shape of its value}} where example inputs were given.
        unmatched: globs of the configuration that match no layer, in words.
    """

    config: BioConfig
    layers: Mapping[str, Layer]
    synapses: Mapping[str, Synapses]
    opaque: Mapping[str, str]
    partly: Mapping[str, str]
    weights_in_graphs: float
    nodes: int
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    unmatched: tuple[str, ...] = ()


RECORD = "_biofx"


def unwrap(model: nn.Module) -> nn.Module:
    """The transformed module inside `torch.compile`'s and `DistributedDataParallel`'s wrappers."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a model made by biofx.transform, got {type(model).__name__}")
    while RECORD not in vars(model):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            raise ModelError(
                f"{type(model).__name__} was not made by biofx.transform; transform the model "
                "first and pass the result (wrapped or not)"
            )
        model = inner
    return model


def record_of(model: nn.Module) -> Record:
    """The record that `biofx.transform` left on the model (wrappers are looked through)."""
    record: Record = getattr(unwrap(model), RECORD)
    return record


def synapses_of(model: nn.Module) -> Mapping[str, Synapses]:
    """{parameter name: Synapses} of a transformed model.

    Raises:
        ModelError: the model was not made by `biofx.transform`.
    """
    return record_of(model).synapses


def parameter_of(model: nn.Module, synapses: Synapses) -> nn.Parameter:
    """The parameter as it stands now (a DTensor after `fully_shard`)."""
    return unwrap(model).get_parameter(synapses.parameter)
