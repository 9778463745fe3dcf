"""A transformed model as an ordinary one: torch's and the user's own classes only."""

import operator

from torch import fx, nn

from biofx.copying.clone import clone
from biofx.modules import graphs
from biofx.modules.graph_layer import GraphLayer, PackedGraphLayer, layer_graph
from biofx.modules.lowering import group_repeat, group_sum, lower, safe_target
from biofx.synapses import Derived, mixins_of, original_class, revert, unwrap
from biofx.synapses.classes import SAVED, private_names
from biofx.synapses.layers import stop_tracking


def plain(bio: nn.Module) -> nn.Module:
    """A copy of a transformed model without any class of biofx, over the same parameters.

    It is for tools that ask for exact types: quantizers, counters of operations, converters. The
    layers are of the user's own classes; a split layer is a `torch.fx.GraphModule` of plain
    operations, a split recurrent or attention layer one of torch's with weights of its own, the
    sums as they are now. It carries no plasticity.

    Args:
        bio: made by `biofx.transform`, wrapped or not; it is not changed.

    Returns:
        A module of the user's class in the same mode, which shares parameters and buffers.

    Raises:
        ModelError: the model was not made by `biofx.transform`.
    """
    model = clone(unwrap(bio))
    for module in list(model.modules()):
        if isinstance(module, Derived):
            stop_tracking(module)
            if isinstance(module, GraphLayer):
                turn_into(module, _plain_layer(module))
            else:
                revert(module)
    return model


def turn_into(module: nn.Module, other: nn.Module) -> None:
    """Make a module what another one is: lists and closures may hold it, too."""
    module.__dict__.clear()
    module.__dict__.update(other.__dict__)
    module.__class__ = other.__class__
    if isinstance(module, fx.GraphModule):
        module._graph.owning_module = module


def _plain_layer(layer: nn.Module) -> nn.Module:
    if isinstance(layer, PackedGraphLayer):
        return _summed_layer(layer)
    graph = graphs.copied(layer_graph(layer))
    targets = [str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")]
    return graph_module(
        layer, graph, {target: operator.attrgetter(target)(layer) for target in targets}
    )


def _summed_layer(layer: nn.Module) -> nn.Module:
    """A recurrent or attention layer of torch's, whose weights are a split one's sums."""
    kind = original_class(layer)
    fresh: nn.Module = object.__new__(kind)
    fresh.__dict__.update(
        (name, value.copy() if isinstance(value, dict | list) else value)
        for name, value in layer.__dict__.items()
        if name not in {*SAVED, *private_names(mixins_of(layer))}
    )
    for node in layer_graph(layer).nodes:
        parameter = layer._parameters.get(str(node.target)) if node.op == "get_attr" else None
        if parameter is None:
            continue
        value, last = parameter.detach(), node
        while len(last.users) == 1 and next(iter(last.users)).target in (group_sum, group_repeat):
            last = next(iter(last.users))
            value = last.target(value, *last.args[1:])
        made = nn.Parameter(value.clone(), requires_grad=parameter.requires_grad)
        setattr(fresh, str(node.target), made)
    return fresh


def graph_module(layer: nn.Module, graph: fx.Graph, held: dict[str, object]) -> fx.GraphModule:
    """A module of plain operations that stands for a split layer.

    Args:
        layer: the split layer, or such a module of it; its plain attributes (``in_features``, …),
            mode and hooks are taken.
        graph: what it computes; changed in place.
        held: {target of the graph: parameter, buffer or module}.
    """
    graph.set_codegen(fx.graph.CodeGen())
    lower(graph)
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            node.target = safe_target(str(node.target))
    held = {safe_target(target): value for target, value in held.items()}
    made = fx.GraphModule(held, graph, original_class(layer).__name__)
    made.train(layer.training)
    for name, value in vars(layer).items():  # code above may ask for these: `self.fc.in_features`
        public = isinstance(value, tuple) and not name.startswith("_")
        if public or isinstance(value, bool | int | float | str):
            made.__dict__.setdefault(name, value)
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
                  "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"):  # fmt: skip
        getattr(made, hooks).update(getattr(layer, hooks))
    return made
