"""A transformed model: the user's own class and forward, with a graph that describes them."""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import PythonCode

from biofx.capture.capture import Captured
from biofx.copying.clone import clone
from biofx.errors import ModelError
from biofx.modules import graphs
from biofx.modules.plain import plain
from biofx.synapses import Derived, become, mixins_of, original_class, record_of
from biofx.synapses.classes import REPLACED, derive, rebuild

_CONSTANTS = "_graph_constants"
_RUNS = "_graph_runs"
_GRAPH_NAMES = ("_graph", "_code", "_lineno_map", "_prologue_start")


class Described(Derived):
    """A model with a graph in ``_graph``, whose class has other uses for GraphModule's names."""

    _private = (*_GRAPH_NAMES, _CONSTANTS, _RUNS, REPLACED)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        fresh = clone(self, tensor=lambda tensor: copy.deepcopy(tensor, memo))
        memo[id(self)] = fresh
        set_graph(fresh, graphs.copied(graph_of(self), fresh))
        if self.__dict__.get(_RUNS):
            recompile(fresh)
        return fresh

    def __reduce_ex__(self, protocol: Any) -> Any:
        made, arguments, state = super().__reduce_ex__(protocol)
        own = self.__dict__.get(REPLACED, {}).get("_graph")
        if own is None:
            return made, arguments, state
        # Each GraphModule has a class of its own, which no name leads to.
        nodes = [(*node, {}) for *node, _ in graphs.to_data(own)]
        name = original_class(self).__name__
        return _rebuild, (name, nodes, own._codegen, mixins_of(self)), state

    def _state(self) -> tuple[Any, ...]:
        graph = graph_of(self)
        held = {name: self.__dict__.get(name) for name in (_CONSTANTS, _RUNS)}
        return (*super()._state(), graphs.to_data(graph), graph._codegen, held)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *rest, nodes, codegen, held = state
        super().__setstate__(tuple(rest))
        graph = graphs.from_data(nodes, self)
        graph.set_codegen(codegen)
        set_graph(self, graph)
        self.__dict__.update(held)
        if held[_RUNS]:
            recompile(self)

    def __prepare_scriptable__(self) -> nn.Module:
        return plain(self)


class Transformed(Described, fx.GraphModule):  # type: ignore[misc]
    """A `torch.fx.GraphModule` of the user's own class that runs the user's own forward.

    `graph` describes that forward. `recompile` makes the graph the forward, as in FX.
    """

    # What `torch.compile` asks every GraphModule for.
    _lineno_map: Mapping[int, int | None] = MappingProxyType({})
    _prologue_start = 0

    @property
    def code(self) -> str:
        """Python code of the graph."""
        return str(self._graph.python_code(root_module="self").src)

    def recompile(self) -> PythonCode:
        """Make the graph the forward, for the arguments and the mode that it was captured for.

        On other arguments, and in the other mode, the forward raises `ModelError`.

        Raises:
            ModelError: hooks act on gradients in the model's own forward, which a graph does not
                call.
        """
        lost = lost_hooks(self)
        if lost:
            raise ModelError(
                f"the graph does not call {', '.join(lost[:5])}, so that it would give other "
                "gradients than the model; remove the hooks, or keep the model's own forward"
            )
        return recompile(self)

    def __str__(self) -> str:
        return nn.Module.__repr__(self)


# What `torch.fx.GraphModule` adds to a module. Where the user's class or object has one of these
# names for something else, the user's meaning stays.
_NAMES = frozenset(
    name
    for name in vars(fx.GraphModule)
    if not name.startswith("_") and name not in vars(nn.Module)
)


def install(model: nn.Module, captured: Captured) -> None:
    """Give a model its graph, in place."""
    kind = original_class(model)
    taken = not issubclass(kind, fx.GraphModule) and (
        any(hasattr(kind, name) for name in _NAMES)
        or any(
            name in registry
            for registry in (model.__dict__, model._modules, model._parameters, model._buffers)
            for name in _NAMES
        )
    )
    held = vars(model)
    held[REPLACED] = {name: held[name] for name in _GRAPH_NAMES if name in held}
    kept = [mixin for mixin in mixins_of(model) if not issubclass(mixin, Described)]
    become(model, Described if taken else Transformed, *kept)
    model.__dict__.update(captured.constants)
    model.__dict__[_CONSTANTS] = tuple(captured.constants)
    model.__dict__[_RUNS] = False
    if not taken:
        model.__dict__.update(
            _tracer_cls=None, _tracer_extras={}, meta={}, shape_env=None, _replace_hooks=[],
            _create_node_hooks=[], _erase_node_hooks=[], _deepcopy_hooks=[],
        )  # fmt: skip
    graphs.call_forwards(captured.graph)
    set_graph(model, captured.graph)


def _rebuild(name: str, nodes: graphs.Nodes, codegen: Any, mixins: Any) -> Any:
    """An empty transformed GraphModule, for pickle."""
    graph = graphs.from_data(nodes)
    graph.set_codegen(codegen)
    base: Any = type(name, (fx.GraphModule,), {"forward": graphs.compiled(graph)[0]})
    fresh = rebuild(base, mixins)
    fresh.__dict__[REPLACED] = {"_graph": graph}
    return fresh


def graph_of(model: nn.Module) -> fx.Graph:
    """The graph of a transformed model."""
    graph: fx.Graph = model.__dict__["_graph"]
    return graph


def set_graph(model: nn.Module, graph: fx.Graph) -> None:
    """Give a model another graph, without running it."""
    model.__dict__["_graph"] = graph
    graph.owning_module = model  # type: ignore[assignment]


def lost_hooks(model: nn.Module) -> list[str]:
    """What acts on gradients in a model's forward, and not in its graph."""
    called = {
        id(inner)
        for node in graph_of(model).find_nodes(op="call_module")
        for inner in model.get_submodule(str(node.target)).modules()
    }
    called.add(id(model))  # its own hooks stay outside of its forward
    lost = [
        f"the backward hooks of {name!r}"
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        and (module._backward_hooks or module._backward_pre_hooks)
        and id(module) not in called
    ]
    hooks = [a for a in record_of(model).assumptions if a.kind == "hook"]
    return lost + [f"a hook on a tensor ({assumption.where})" for assumption in hooks]


def recompile(model: nn.Module) -> PythonCode:
    """Make the graph of a transformed model its forward."""
    forward, code = graphs.compiled(graph_of(model))
    shared: Any = derive(original_class(model), mixins_of(model))
    names = {"_base": shared._base, "_mixins": shared._mixins, "__module__": shared.__module__}
    kind: Any = type(shared)(shared.__name__, (shared,), names)  # its forward is the graph's
    model.__class__ = kind
    kind.forward = forward
    model.__dict__.update(
        {_RUNS: True}, _code=code.src, _lineno_map=code._lineno_map,
        _prologue_start=code._prologue_start,
    )  # fmt: skip
    return code
