"""`Synapses`: what biofx knows about all synapses of one parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from biofx.config import BioConfig
from biofx.errors import ModelError
from biofx.synapses.population import Population
from biofx.synapses.wiring import Wiring


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
        fed: its input units are units of the network (those of weight layers, its own too), and no
            inputs of the model.
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
    fed: bool = False
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
        opaque: {module name: reason} of modules that could not be traced; "" is the model itself.
        assumptions: what the graph and the passes take for granted, in words.
        wiring: which layer feeds which.
        whole: every operation of a run on example inputs is in the graph.
        training: the mode in which the model was captured.
        unmatched: globs of the configuration that match no layer, in words.
    """

    config: BioConfig
    layers: Mapping[str, Layer]
    synapses: Mapping[str, Synapses]
    opaque: Mapping[str, str]
    assumptions: tuple[Any, ...]
    wiring: Wiring
    whole: bool
    training: bool
    unmatched: tuple[str, ...] = ()

    @property
    def populations(self) -> Sequence[Population]:
        """The units of every layer whose place in the graph is known; see `Wiring.units`."""
        return self.wiring.units


RECORD = "_biofx"
# What wrappers call the model inside: torch.compile; DDP, Accelerate and others; Opacus; Fabric.
WRAPPED = ("_orig_mod", "module", "_module", "_forward_module")


def unwrap(model: nn.Module) -> nn.Module:
    """The transformed module inside the wrappers of `torch.compile`, DDP, Opacus and their like.

    Raises:
        ModelError: there is none, or it is a part of another model.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a model made by biofx.transform, got {type(model).__name__}")
    while RECORD not in vars(model):
        children = model._modules
        inner = next((children[name] for name in WRAPPED if children.get(name) is not None), None)
        if inner is None:
            raise ModelError(_not_transformed(model))
        model = inner
    return model


def _not_transformed(model: nn.Module) -> str:
    kind = type(model).__name__
    for name, module in model.named_modules():
        if RECORD in vars(module):
            return (
                f"{kind} holds a model made by biofx.transform (at {name}), but is none itself. If "
                "it changes layers of that model (PEFT's adapters do), apply it first and "
                f"transform the result; if it only calls that model, pass .{name} of it"
            )
    return (
        f"{kind} was not made by biofx.transform; transform the model first and pass the result "
        "(wrapped or not)"
    )


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
