"""Modules whose forward is a graph."""

import copy
import functools
import importlib
import pickle
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.graph import PythonCode
from torch.fx.graph_module import GraphModule, _loader

from biofx.capture.session import Capture
from biofx.capture.signature import GuardedCodeGen, new_graph
from biofx.capture.world import World
from biofx.errors import ModelError
from biofx.synapses import BioLayer, Cell, Watched, become, rebuild

# What compiling a graph leaves on its module.
_CODE = ("_code", "_lineno_map", "_prologue_start")
_OF_A_CLASS = ("__dict__", "__weakref__")


class Captured(Watched, GraphModule):
    """A user's module whose forward is generated from an FX graph.

    It keeps its class (as a base), attributes, children, hooks and state-dict keys. Calls that do
    not fit the pattern of arguments it was traced for run the class's own forward.
    """

    _one_class_each = True
    _shared = False
    _cell: Cell
    _world: World
    _tracer_cls: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # `self.__class__(…)`, as slicing a Sequential does: a plain module of the user's class
        return cls._base(*args, **kwargs)

    def recompile(self) -> PythonCode:
        """Generate `forward` from the graph; without FX's wrapper that hides tracebacks."""
        self._unshare()
        code = self._graph.python_code(root_module="self")
        self.__dict__.update(
            _code=code.src, _lineno_map=code._lineno_map, _prologue_start=code._prologue_start
        )
        names = dict(code.globals)
        exec(code_of(code.src), names)
        forward: FunctionType = names.pop("forward")
        # A code object of its own, for torch.compile keeps what it makes by those.
        forward.__code__ = forward.__code__.replace()
        type(self).forward = forward
        return code

    @property
    def stale(self) -> str | None:
        """Why the graph does not stand any more: something that it rests on has changed."""
        return self._cell.stale or self._world.moved()

    def fits(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a call with these arguments (by name) would run the graph."""
        codegen = self._graph._codegen
        guard = codegen.call.guard() if isinstance(codegen, GuardedCodeGen) else "True"
        return not self.stale and bool(eval(guard, {"torch": torch}, dict(arguments)))

    def _own_forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.__dict__.get("_needs_graph"):
            raise ModelError(
                f"{type(self)._base.__name__} was split when captured and cannot run otherwise: "
                + (self.stale or "this call passes other kinds of arguments")
                + "; call biofx.transform again on the original model"
            )
        return type(self)._base.forward(self, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Captured":
        type(self)._shared = True
        fresh = object.__new__(type(self))
        memo[id(self)] = fresh
        super(Captured, fresh).__setstate__(copy.deepcopy(super()._state(), memo))
        graph = new_graph()
        graph.output(graph.graph_copy(self._graph, {}, return_output_node=False))
        _copy_output_meta(self._graph, graph)
        graph.set_codegen(copy.copy(self._graph._codegen))
        graph.owning_module = fresh
        fresh.__dict__["_graph"] = graph
        fresh.__dict__.update((name, self.__dict__[name]) for name in _CODE)
        return fresh

    def __copy__(self) -> "Captured":
        fresh = cast("Captured", rebuild(type(self)._base, type(self)._mixins))
        fresh.__setstate__(self._state())
        return fresh

    def _state(self) -> tuple[Any, ...]:
        return (*super()._state(), _flatten(self._graph), self._graph._codegen)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *rest, nodes, codegen = state
        super().__setstate__(tuple(rest))
        graph = _unflatten(nodes)
        graph.set_codegen(codegen)
        self._install(graph)

    def _unshare(self) -> None:
        """Have a class of its own, for a `forward` of its own: a deep copy shares both."""
        cls = type(self)
        if cls._shared:
            names = {name: value for name, value in vars(cls).items() if name not in _OF_A_CLASS}
            self.__class__ = type(cls.__name__, cls.__bases__, {**names, "_shared": False})

    def _install(self, graph: fx.Graph) -> None:
        self.__dict__["_graph"] = graph
        graph.owning_module = self
        self.recompile()


@functools.lru_cache(maxsize=256)
def code_of(source: str) -> CodeType:
    """The code of a graph: the blocks of a deep model have theirs in common.

    Under a file name by which tracebacks and TorchScript find the source.
    """
    return compile(source, _loader.cache(source, {}), "exec", dont_inherit=True)


def install(module: nn.Module, capture: Capture) -> None:
    """Turn a module into a captured one, in place. The caller recompiles when passes are done."""
    mixins = (Captured, BioLayer) if isinstance(module, BioLayer) else (Captured,)
    become(module, *mixins)
    module.__dict__.update(
        _cell=capture.cell,
        _world=capture.world,
        _tracer_cls=None,
        _tracer_extras={},
        meta={},
        _replace_hooks=[],
        _create_node_hooks=[],
        _erase_node_hooks=[],
        _deepcopy_hooks=[],
        shape_env=None,
        _graph=capture.graph,
    )
    capture.graph.owning_module = module  # type: ignore[assignment]


# --- graphs as plain data: FX itself would trace the generated code anew, and lose node.meta ----


class _Ref:
    def __init__(self, name: str) -> None:
        self.name = name


def _encode_target(target: Any) -> Any:
    if isinstance(target, str):
        return target
    name = fx.node._get_qualified_name(target)
    module, _, attribute = name.rpartition(".")
    module = module or "builtins"
    try:
        if getattr(importlib.import_module(module), attribute) is target:
            return ("function", module, attribute)
    except (ImportError, AttributeError):
        pass
    return ("pickle", pickle.dumps(target))


def _decode_target(target: Any) -> Any:
    if isinstance(target, str):
        return target
    if target[0] == "function":
        return getattr(importlib.import_module(target[1]), target[2])
    return pickle.loads(target[1])


def _flatten(graph: fx.Graph) -> list[tuple[Any, ...]]:
    def encode(value: Any) -> Any:
        return fx.node.map_arg(value, lambda node: _Ref(node.name))  # type: ignore[arg-type,return-value]

    return [
        (node.op, node.name, _encode_target(node.target), encode(node.args), encode(node.kwargs),
         node.type, {key: value for key, value in node.meta.items() if key.startswith("biofx")})
        for node in graph.nodes
    ]  # fmt: skip


def _unflatten(nodes: list[tuple[Any, ...]]) -> fx.Graph:
    graph = new_graph()
    made: dict[str, fx.Node] = {}

    def decode(value: Any) -> Any:
        if isinstance(value, _Ref):
            return made[value.name]
        if type(value) is dict or isinstance(value, dict):
            return {key: decode(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(decode(value.start), decode(value.stop), decode(value.step))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(decode(item) for item in value))
        if isinstance(value, list | tuple):
            return type(value)(decode(item) for item in value)
        return value

    for op, name, target, args, kwargs, kind, meta in nodes:
        node = graph.create_node(
            op, _decode_target(target), decode(args), decode(kwargs), name, kind
        )
        node.meta.update(meta)
        made[name] = node
    return graph


def _copy_output_meta(source: fx.Graph, target: fx.Graph) -> None:
    for old, new in zip(source.nodes, target.nodes, strict=True):
        new.meta = dict(old.meta)
