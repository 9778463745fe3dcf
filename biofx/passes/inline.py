"""Inline: nested graphs become one flat graph each, as far as their arguments certainly fit."""

import dataclasses
import inspect
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from biofx.capture import Captured
from biofx.capture.code import facts
from biofx.capture.pattern import Pattern
from biofx.capture.signature import Call, GuardedCodeGen, new_graph
from biofx.errors import ExportError
from biofx.passes.draft import join
from biofx.passes.entrance import Entrance, entrance_of
from biofx.passes.specialise import Captures, Specialist
from biofx.synapses import original_class
from biofx.synapses.layers import count_activity

# node.meta key: qualified name of the module that a node calls, or whose graph it comes from
PATH = "biofx_path"


class Inline(PassBase):
    """Turns a transformed model (a copy of it, in evaluation mode) into plain graph modules.

    A child with a graph is inlined where the arguments of the call certainly fit the pattern that
    its graph was traced for, so that no guard is needed. For any other call it is captured anew;
    where that fails too, it stays a module that runs its own Python forward, which computes the
    same. Parameters keep their qualified names. `self.training` becomes a constant: what it is now.

    The result takes the pattern of arguments that the model was captured for, and checks it.

    Args:
        islands: below a module that stays Python, keep graphs of the modules that take only
            tensors. Otherwise they run their own Python forward, and only split layers are graphs.
    """

    def __init__(self, *, islands: bool = True) -> None:
        self.islands = islands

    def requires(self, graph_module: nn.Module) -> None:
        assert not any(module.training for module in graph_module.modules()), "call eval() first"

    def call(self, graph_module: nn.Module) -> PassResult:
        return PassResult(_Inliner(graph_module, self.islands).replace(graph_module, ""), True)

    def ensures(self, graph_module: nn.Module) -> None:
        for module in graph_module.modules():
            if isinstance(module, fx.GraphModule) and not isinstance(module, Captured):
                module.graph.lint()


class _Inliner:
    def __init__(self, root: nn.Module, islands: bool) -> None:
        self.islands = islands
        self.specialist = Specialist(root)
        self.done: dict[nn.Module, nn.Module] = {}

    def replace(self, module: nn.Module, name: str) -> nn.Module:
        """What stands for a module that is called as a module."""
        if module not in self.done:
            self.done[module] = module  # a child may refer back to it
            if isinstance(module, Captured) and self._stands_alone(module, is_root=not name):
                self.done[module] = _Flat(self, module, name).build()
            elif not isinstance(module, torch.jit.ScriptModule):
                for key, child in module._modules.items():
                    if child is not None:
                        module._modules[key] = self.replace(child, join(name, key))
        return self.done[module]

    def _stands_alone(self, module: Captured, *, is_root: bool) -> bool:
        if module.__dict__.get("_needs_graph"):
            return True
        if module.stale:
            return False
        # Python code calls it: with tensors only, there is but one way to call it
        patterns = call_of(module).patterns.values()
        return is_root or (self.islands and all(pattern.form == "tensor" for pattern in patterns))


class _Flat:
    """One flat graph in the making, of `top` and all that can be inlined into it."""

    def __init__(self, inliner: _Inliner, top: Captured, name: str) -> None:
        self.inliner = inliner
        self.top = top
        self.name = name
        self.graph = new_graph()
        self.held: dict[str, Any] = {}  # what the graph's targets stand for

    def build(self) -> fx.GraphModule:
        entrance = entrance_of(call_of(self.top), self.graph)
        result = self._emit(self.top, self.top.graph, "", entrance.values, {})
        self.graph.output(result)
        self.graph.set_codegen(Entrance(entrance.checks))
        flat = fx.GraphModule(self.held, self.graph, original_class(self.top).__name__)
        flat.eval()
        _keep_hooks(self.top, flat)
        for key, value in self.top.__dict__.items():  # a Python parent may read them
            if not key.startswith("_") and isinstance(value, bool | int | float | str):
                flat.__dict__.setdefault(key, value)
        return flat

    def _emit(
        self,
        owner: nn.Module,
        graph: fx.Graph,
        path: str,
        values: Mapping[str, Any],
        captures: Captures,
    ) -> Any:
        """Copy a graph of the module `owner`; gives its result, made of nodes of ours."""
        env: dict[fx.Node, Any] = {}

        def look_up(argument: Any) -> Any:
            return fx.node.map_arg(argument, env.__getitem__)

        for node in graph.nodes:
            if node.op == "placeholder":
                env[node] = values[str(node.target).lstrip("*")]
            elif node.op == "output":
                return look_up(node.args[0])
            elif node.op == "get_attr":
                env[node] = self._attribute(owner, path, node)
            elif node.op == "call_module":
                args, kwargs = look_up(node.args), look_up(node.kwargs)
                env[node] = self._call(owner, path, node, args, kwargs, captures)
            else:
                args, kwargs = look_up(node.args), look_up(node.kwargs)
                part = _part(node.target, args)
                env[node] = part if part is not None else self._copy(node, path, args, kwargs)
        raise AssertionError("a graph has an output")

    def _copy(
        self, node: fx.Node, path: str, args: Any, kwargs: Any, target: Any = None
    ) -> fx.Node:
        fresh = self.graph.create_node(node.op, target or node.target, args, kwargs, node.name)
        fresh.meta.update(node.meta)
        fresh.meta[PATH] = join(self.name, target if node.op == "call_module" else path)
        return fresh

    def _attribute(self, owner: nn.Module, path: str, node: fx.Node) -> Any:
        module, _, attribute = str(node.target).rpartition(".")
        value = getattr(owner.get_submodule(module), attribute)
        if isinstance(value, bool):  # `training`
            return value
        target = join(path, node.target)
        self.held[target] = value
        return self._copy(node, path, (), {}, target)

    def _call(
        self,
        owner: nn.Module,
        path: str,
        node: fx.Node,
        args: Any,
        kwargs: Any,
        captures: Captures,
    ) -> Any:
        target = join(path, node.target)
        name = join(self.name, target)
        child = owner.get_submodule(str(node.target))
        if isinstance(child, Captured) and not _has_hooks(child):
            if child.__dict__.get("_needs_graph"):
                values = bind(call_of(child), args, kwargs)
                if child.stale or not _may_fit(call_of(child), values):
                    why = child.stale or "this call passes other kinds of arguments"
                    raise ExportError(
                        f"{name} was split when it was captured and cannot run otherwise: {why}; "
                        "call biofx.transform again on the original model"
                    )
                return self._emit(child, child.graph, target, values, {})
            special = captures.get(self.inliner.specialist.module(name))
            known = [(special.call, special.graph, captures)] if special is not None else []
            if not child.stale:
                known.append((call_of(child), child.graph, {}))
            for call, graph, others in known:
                values = bind(call, args, kwargs)
                if _certainly_fits(call, child, values):
                    return self._emit(child, graph, target, values, others)
            fresh = self.inliner.specialist.capture(name, args, kwargs)
            if fresh is not None:
                found = fresh[self.inliner.specialist.module(name)]
                values = bind(found.call, args, kwargs)
                return self._emit(child, found.graph, target, values, fresh)
        self.held[target] = self.inliner.replace(child, name)
        called = self._copy(node, path, args, kwargs, target)
        if isinstance(child, _MAX_POOLS) and not child.return_indices:
            called.meta["biofx_kind"] = "tensor"
        return called


_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def call_of(island: Captured) -> Call:
    """The pattern of arguments that a module was captured for."""
    codegen = island.graph._codegen
    assert isinstance(codegen, GuardedCodeGen)
    return codegen.call


def bind(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by parameter name, defaults included."""
    bound = inspect.Signature(list(call.parameters)).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _may_fit(call: Call, values: Mapping[str, Any]) -> bool:
    # A split layer whose arguments do not fit has no other forward to run: it fails as it is, too.
    return all(
        pattern.form != "constant" or _certain(pattern, values[name], False)
        for name, pattern in call.patterns.items()
    )


def _certainly_fits(call: Call, child: nn.Module, values: Mapping[str, Any]) -> bool:
    code = inspect.unwrap(original_class(child).forward).__code__
    minds_none = facts(code).compares_any_with_none
    return all(
        _certain(pattern, values[name], minds_none) for name, pattern in call.patterns.items()
    )


def _certain(pattern: Pattern, value: Any, minds_none: bool) -> bool:
    if pattern.form == "constant":
        same = not isinstance(value, fx.Node) and type(value) is type(pattern.constant)
        return same and bool(value == pattern.constant)
    if pattern.form in ("tensor", "value", "unknown"):
        if not isinstance(value, fx.Node):
            return False
        kind = value.meta.get("biofx_kind")
        if pattern.form == "tensor":
            return kind == "tensor"
        return kind in ("tensor", "value") or not minds_none
    if pattern.form == "record":
        parts = [_field(value, key) for key in pattern.keys]
    elif isinstance(value, dict):
        if list(value) != list(pattern.keys):
            return False
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        return False
    return len(parts) == len(pattern.items) and all(
        _certain(item, part, minds_none) for item, part in zip(pattern.items, parts, strict=True)
    )


_MISSING = object()


def _field(value: Any, name: str) -> Any:
    """A field of a record: a named tuple of nodes, or a node that makes a dataclass."""
    if isinstance(value, fx.Node):
        made = value.op == "call_function" and dataclasses.is_dataclass(value.target)
        return value.kwargs.get(name, _MISSING) if made else _MISSING
    return getattr(value, name, _MISSING)


def _part(target: Any, args: tuple[Any, ...]) -> Any:
    """The part of a structure that a node takes, where the structure itself is at hand."""
    if target is operator.getitem and isinstance(args[0], tuple | list | dict):
        if not isinstance(args[1], fx.Node) and not isinstance(args[1], slice):
            return args[0][args[1]]
    elif target is getattr:
        field = _field(args[0], args[1])
        if field is not _MISSING and (isinstance(args[0], fx.Node) or hasattr(args[0], "_fields")):
            return field
    return None


def _has_hooks(module: nn.Module) -> bool:
    hooks = [hook for hook in module._forward_hooks.values() if hook is not count_activity]
    return bool(hooks or module._forward_pre_hooks)


def _keep_hooks(source: nn.Module, target: nn.Module) -> None:
    for registry in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
                     "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"):  # fmt: skip
        getattr(target, registry).update(getattr(source, registry))
