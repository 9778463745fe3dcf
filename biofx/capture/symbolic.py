"""Traces a model without running it: symbolic tracing as FX does it, as far as it goes."""

import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from biofx.capture import targets
from biofx.capture.call import FORWARD_ONLY, Call, reserve
from biofx.capture.leaves import has_hooks, is_leaf
from biofx.capture.location import locate, user_frame, user_place
from biofx.capture.memory import KEPT, assigned, held, items
from biofx.capture.private import autograd_functions_seen
from biofx.capture.writer import Assumption, current_modes, switches
from biofx.copying.nested import leaves
from biofx.errors import ModelError, place_of


class Untraceable(BaseException):
    """A forward needs what is known only at a run. No `except Exception` of the user's stops it."""


def opaque(*args: Any) -> Any:
    """Stands for a model that cannot be traced at all."""
    raise ModelError(
        "this model could not be traced, so its graph cannot run; capture it with "
        "biofx.transform(model, example_inputs=…)"
    )


class SymbolicTracer(fx.Tracer):
    """Traces `root`; a module whose forward cannot be traced becomes one opaque node.

    Attributes:
        opaque: {module name: why it could not be traced}.
        assumptions: what the graph takes for granted.
        call: what the arguments were taken for: required ones are tensors, others their defaults.
    """

    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module, signature: inspect.Signature) -> None:
        super().__init__()
        self.model = root
        self.signature = signature
        self.opaque: dict[str, str] = {}
        self.assumptions: list[Assumption] = []
        self._above: list[tuple[str, nn.Module]] = [("", root)]
        self._modes = current_modes()
        _cut_cycles(root, (root,))
        parameters = signature.parameters.values()
        stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        required = [p for p in parameters if p.default is p.empty and p.kind not in stars]
        self._required = frozenset(parameter.name for parameter in required)
        by_name = {p.name: torch.empty(0) for p in required if p.kind is p.KEYWORD_ONLY}
        by_place = [torch.empty(0)] * (len(required) - len(by_name))
        self.call = Call.of(signature, by_place, by_name, free=True)

    def run(self) -> fx.Graph:
        """The graph."""
        modules = dict(self.model.named_modules())
        before = held(modules)
        try:
            with (
                autograd_functions_seen(self._autograd, lambda call, args: call(*args)),
                _NoValues(),  # type: ignore[no-untyped-call]
            ):
                graph = self.trace(self.model)
            graph.lint()
        except (Exception, Untraceable) as error:
            self.opaque[""] = _reason(error)
            return self._nothing()
        after = held(modules)
        for path, value in items(after):
            if issubclass(type(value), fx.Proxy):
                value.node.meta[KEPT] = path
        opaque = tuple(f"{name}." for name in self.opaque)  # where the graph calls the forward
        # FX puts the constants of the graph there.
        new = after.get("", {}).keys() - before.get("", {}).keys()
        constants = new & {node.target for node in graph.find_nodes(op="get_attr")}
        for path in assigned(before, after):
            if not path.startswith(opaque) and path not in constants:
                self.assumptions.append(Assumption.state(path))
        return graph

    def _nothing(self) -> fx.Graph:
        """The graph of a model that cannot be traced."""
        graph = reserve(fx.Graph())
        nodes = []
        for name in self.call.values:
            target, default = self.call.placeholder(name)
            nodes.append(graph.create_node("placeholder", target, default, name=name))
        graph.output(graph.call_function(opaque, tuple(nodes)))
        return graph

    def _autograd(self, function: Any, call: Any, args: Any, kwargs: Any) -> Any:
        """A call of a user's autograd function, whose forward alone is traced."""
        self.assumptions.append(Assumption.backward(function.__name__, user_place()))
        return call(*args, **kwargs)

    # --- what FX calls -------------------------------------------------------------------------

    def create_args_for_root(self, *_: Any, **__: Any) -> tuple[Callable[..., Any], list[Any]]:
        """Placeholders for the required parameters, defaults for the others."""
        reserve(self.graph)
        given: dict[str, Any] = {}
        for name, value in self.call.values.items():
            target, default = self.call.placeholder(name)
            proxy = self.create_proxy("placeholder", target, default, {}, name=name)
            given[name] = proxy if name in self._required else value
        bound = self.signature.bind_partial()
        bound.arguments.update(given)
        return (lambda: self.model.forward(*bound.args, **bound.kwargs)), []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node."""
        return is_leaf(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """A node for a leaf, the inside of any other module, or one opaque node for it."""
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return self._call_leaf(m, name, forward, args, kwargs)
        last, modes = next(iter(reversed(self.graph.nodes))), self._modes
        assumptions = list(self.assumptions)
        self._above.append((name, m))
        try:
            return forward(*args, **kwargs)
        except (Exception, Untraceable) as error:
            for node in list(_after(last)):
                self.graph.erase_node(node)
            self._modes, self.assumptions = modes, assumptions
            self.opaque[name] = _reason(error)
            for inside in [inner for inner in self.opaque if inner.startswith(f"{name}.")]:
                del self.opaque[inside]
            return self.create_proxy("call_module", name, args, kwargs)
        finally:
            self._above.pop()

    def _call_leaf(
        self,
        m: nn.Module,
        name: str,
        forward: Callable[..., Any],
        args: Any,
        kwargs: dict[str, Any],
    ) -> Any:
        if not has_hooks(m):
            return self.create_proxy("call_module", name, args, kwargs)

        def node(*args: Any, **kwargs: Any) -> Any:
            proxy = self.create_proxy("call_module", name, args, kwargs)
            proxy.node.meta[FORWARD_ONLY] = True
            return proxy

        m.__dict__["forward"] = node  # of a copy that is thrown away: its hooks are traced
        return forward(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The stand-in for what a node gives."""
        made: fx.Proxy = _Proxy(node, self)
        return made

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any
    ) -> fx.Node:
        """A node that knows the user's line and module."""
        before, self._modes = self._modes, current_modes()
        for switch, setting in switches(before, self._modes):
            super().create_node("call_function", switch, setting, {})
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        if kind not in ("placeholder", "output"):
            locate(node, self._above, user_frame())
        return node

    def create_arg(self, a: Any) -> Any:
        """A value as an argument of a node."""
        if type(a) in _ARGUMENTS:
            return super().create_arg(a)
        if isinstance(a, torch.Tensor) and a.is_meta and not isinstance(a, nn.Parameter):
            raise Untraceable("computes with the values of its parameters")
        number = targets.plain_number(a)
        return super().create_arg(a if number is None else number)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A branch on a value."""
        raise Untraceable("branches on a value that only a run knows")

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """A loop over a value, or its unpacking."""
        try:
            return super().iter(obj)
        except fx.proxy.TraceError:
            raise Untraceable("loops over or unpacks a value that only a run knows") from None

    def keys(self, obj: fx.Proxy) -> Any:
        """``**value``."""
        raise Untraceable("takes the keys of a value that only a run knows")


def _cut_cycles(module: nn.Module, above: tuple[nn.Module, ...]) -> None:
    """Let a child that registers its parent keep it as a plain attribute: FX walks in trees."""
    for name, child in list(module._modules.items()):
        if child in above:
            module.__dict__[name] = module._modules.pop(name)
        elif child is not None and child._modules:
            _cut_cycles(child, (*above, child))


def _is_number(node: fx.Node) -> bool:
    """Whether a node is a size, or computed from sizes."""
    if node.target in ("dim", "numel", len, "size") or node.target is getattr:
        return node.target is not getattr or node.args[1] == "ndim"
    if getattr(node.target, "__module__", "") not in ("_operator", "operator", "builtins", "math"):
        return False
    sources = node.all_input_nodes
    shape = node.target is operator.getitem and sources[0].target is getattr
    return (shape and sources[0].args[1] == "shape") or (
        bool(sources) and all(map(_is_number, sources))
    )


def _in_place(name: str, method: str) -> Any:
    """`x += 1`: changes a tensor, which other names for it see; gives another number."""

    def assign(self: fx.Proxy, other: Any) -> Any:
        if _is_number(self.node):
            function = getattr(operator, name)
            return self.tracer.create_proxy("call_function", function, (self, other), {})
        return self.tracer.create_proxy("call_method", method, (self, other), {})

    return assign


_ASSIGNING = {
    "add": "add_", "sub": "sub_", "mul": "mul_", "truediv": "div_", "mod": "remainder_",
    "floordiv": "floor_divide_", "pow": "pow_", "and_": "bitwise_and_", "or_": "bitwise_or_",
    "xor": "bitwise_xor_",
}  # fmt: skip


def _set_item(self: fx.Proxy, key: Any, value: Any) -> None:
    self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


class _Assigns:
    """Proxies whose augmented assignments and item assignments are nodes."""

    __setitem__ = _set_item

    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)  # type: ignore[arg-type]


for _name, _method in _ASSIGNING.items():
    setattr(_Assigns, f"__i{_name.rstrip('_')}__", _in_place(_name, _method))


class _Proxy(_Assigns, fx.Proxy):
    pass


class _Attribute(_Assigns, fx.proxy.Attribute):
    pass


# Nearly all arguments are of these types, which FX takes, or looks into, as they are.
_ARGUMENTS = targets.PLAIN | {_Proxy, tuple, list, dict}


class _NoValues(TorchDispatchMode):
    """Stops code that would compute with parameters, which have no values in a symbolic trace.

    `for p in self.parameters(): p.mul_(0.9)` would run, and leave no node in the graph.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for _, leaf in leaves(args)):
            raise Untraceable("computes with the values of its parameters")
        return func(*args, **(kwargs or {}))


def _after(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes after one, last first."""
    found = []
    while node.next.op != "root":
        node = node.next
        found.append(node)
    return reversed(found)


def _reason(error: BaseException) -> str:
    """Why a forward cannot be traced, with the user's line."""
    place = place_of(error)
    where = f"{place}: " if place else ""
    if isinstance(error, Untraceable):
        return f"{where}{error}"
    text = " ".join(str(error).split())
    return f"{where}{type(error).__name__}: {text[:160]}".rstrip(": ")
