"""A transformed model: the user's own class and forward, with a graph that describes them."""

import copy
from collections.abc import Callable, Mapping
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
from biofx.synapses.classes import REPLACED, derive, has_any, rebuild

_GRAPH = "_biofx_graph"
_CONSTANTS = "_biofx_constants"
_RUNS = "_biofx_runs"
# What FX keeps of a graph on its GraphModule.
_GRAPH_NAMES = ("_graph", "_code", "_lineno_map", "_prologue_start")


class Described(Derived):
    """A model with a graph, whose class or attributes have GraphModule's names for other things."""

    _biofx_private: tuple[str, ...] = (_GRAPH, _CONSTANTS, _RUNS, REPLACED)

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

    def _biofx_state(self) -> tuple[Any, ...]:
        graph = graph_of(self)
        held = {name: self.__dict__.get(name) for name in (_CONSTANTS, _RUNS)}
        return (*super()._biofx_state(), graphs.to_data(graph), graph._codegen, held)

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

    _biofx_private = (*Described._biofx_private, *_GRAPH_NAMES)
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
            ModelError: hooks or autograd functions act on gradients in the model's own forward,
                and the graph does not call them.
        """
        lost = lost_hooks(self)
        if lost:
            raise ModelError(
                f"the graph does not call {', '.join(lost[:5])}, so that it would give other "
                "gradients than the model; remove the hooks, or keep the model's own forward "
                "(a graph that is captured with example_inputs calls autograd functions "
                "that the forward calls as Function.apply(x), where x holds no function)"
            )
        return recompile(self)

    def __str__(self) -> str:
        return nn.Module.__repr__(self)


# What a `torch.fx.GraphModule` has besides what every module has: attributes of its class, and of
# each object. Where the user's class or object has one of these names for something else, the
# user's meaning stays.
_OF_OBJECTS: Mapping[str, Callable[[], Any]] = {
    "_tracer_cls": lambda: None, "_tracer_extras": dict, "meta": dict, "shape_env": lambda: None,
    "_replace_hooks": list, "_create_node_hooks": list, "_erase_node_hooks": list,
    "_deepcopy_hooks": list,
}  # fmt: skip
_NAMES = {*vars(fx.GraphModule), *_OF_OBJECTS, *_GRAPH_NAMES} - set(dir(nn.Module))


def install(model: nn.Module, captured: Captured) -> None:
    """Give a model its graph, in place."""
    taken = not issubclass(original_class(model), fx.GraphModule) and has_any(model, _NAMES)
    held = vars(model)
    kept = [mixin for mixin in mixins_of(model) if not issubclass(mixin, Described)]
    become(model, Described if taken else Transformed, *kept)
    held.update(captured.constants)
    held[_CONSTANTS] = tuple(captured.constants)
    held[_RUNS] = False
    if not taken:
        held[REPLACED] = {name: held[name] for name in _GRAPH_NAMES if name in held}
        for name, make in _OF_OBJECTS.items():
            held.setdefault(name, make())
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
    graph: fx.Graph = model.__dict__[_graph_name(model)]
    return graph


def _graph_name(model: nn.Module) -> str:
    """Where a model keeps its graph: in FX's place if it is a GraphModule: code may set that."""
    return "_graph" if isinstance(model, Transformed) else _GRAPH


def set_graph(model: nn.Module, graph: fx.Graph) -> None:
    """Give a model another graph, without running it."""
    model.__dict__[_graph_name(model)] = graph
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
    found = {"hook": "a hook on a tensor", "backward": "the backward of an autograd function"}
    assumed = [a for a in record_of(model).assumptions if a.kind in found]
    return lost + [f"{found[assumption.kind]} ({assumption.where})" for assumption in assumed]


def recompile(model: nn.Module) -> PythonCode:
    """Make the graph of a transformed model its forward."""
    forward, code = graphs.compiled(graph_of(model))
    shared: Any = derive(original_class(model), mixins_of(model))
    names = {
        "_biofx_base": shared._biofx_base,
        "_biofx_mixins": shared._biofx_mixins,
        "__module__": shared.__module__,
    }
    kind: Any = type(shared)(shared.__name__, (shared,), names)  # its forward is the graph's
    model.__class__ = kind
    kind.forward = forward
    model.__dict__[_RUNS] = True
    if isinstance(model, Transformed):
        model.__dict__.update(
            _code=code.src, _lineno_map=code._lineno_map, _prologue_start=code._prologue_start
        )
    return code
