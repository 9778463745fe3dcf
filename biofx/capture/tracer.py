"""The tracer of one module's forward."""

import dataclasses
import inspect
import keyword
import operator
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from biofx.capture.code import facts
from biofx.capture.effects import HELD, Held
from biofx.capture.leaves import bases_of, is_leaf, returns_one_tensor
from biofx.capture.pattern import Pattern, Unpatterned, is_record, pattern_of, rebuilds, value_of
from biofx.capture.proxy import BioAttribute, BioProxy, Kind, holds_tensor, returns_tensor
from biofx.capture.reads import Reads
from biofx.capture.recording import Recording
from biofx.capture.signature import Call, new_graph, placeholders

# Of classes derived from these, FX would make a plain list or dict.
_BUILT_IN = (list, dict, immutable_list, immutable_dict)
_PLAIN = frozenset({tuple, list, dict, type(None), bool, int, float, str})


class Refusal(fx.proxy.TraceError):
    """The module being traced does something that a graph cannot hold."""


class Capturer(Protocol):
    """What a tracer asks of the session it belongs to: the capture of a child."""

    recording: Recording

    def capture(
        self, module: nn.Module, arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None
    ) -> Any:
        """The child's capture for these arguments, or None if it stays Python."""


class ModuleTracer(fx.Tracer):
    """Traces one module's forward. Children become `call_module` nodes with graphs of their own."""

    proxy_buffer_attributes = True

    def __init__(self, session: Capturer, call: Call) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]  # the session wraps them
        self.session = session
        self.call = call
        self.refusal: str | None = None
        self.result: Pattern | None = None
        self.reads = Reads(session.recording, self.refuse)
        self.unknown = False
        self.attributes: dict[str, Any] = {}  # proxies of what was read so far, by qualified name
        self._flags: dict[str, BioProxy] = {}
        self._called: nn.Module | None = None

    def trace(self, root: nn.Module, concrete_args: Any = None) -> fx.Graph:  # type: ignore[override]
        """As `fx.Tracer.trace`; what that patches is in place for the whole session."""
        self.root = root
        self.graph = new_graph()
        run, _ = self.create_args_for_root(type(root).forward, True)
        self.create_node("output", "output", (self.create_arg(run()),), {})
        return self.graph

    def refuse(self, what: str) -> Refusal:
        """Remember the refusal (the forward may catch the exception) and give the exception."""
        if self.refusal is None:
            self.refusal = what
        return Refusal(what)

    # --- proxies -----------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> BioProxy:
        return BioProxy(node, self, kind=self._kind(node))

    def _kind(self, node: fx.Node) -> Kind:
        if node.op == "call_module":
            module = self._called
            assert module is not None
            if returns_one_tensor(module) and not module._forward_hooks:
                return "tensor"
            if not type(module).__module__.startswith("torch.nn.modules"):
                self.unknown = True
            return "unknown"
        source = node.args[0] if node.args else None
        of = source.meta.get("biofx_kind") if isinstance(source, fx.Node) else None
        if node.op == "call_function" and node.target in (operator.getitem, getattr):
            if of == "unknown":
                self.unknown = True
                return "unknown"
            return "tensor" if of == "tensor" and node.target is operator.getitem else "value"
        return "tensor" if returns_tensor(node) else "value"

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any
    ) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if isinstance(proxy, BioProxy):
            proxy.node.meta["biofx_kind"] = proxy.kind
        return proxy

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        # A function that FX wraps while it traces: in a nested trace, the outer trace's wrapper.
        while getattr(target, "__globals__", {}).get("__name__") == "torch.fx._symbolic_trace":
            target = target.__wrapped__
        return super().create_node(kind, target, *args, **kwargs)

    @cached_property
    def tensors(self) -> dict[int, str]:
        """Qualified names of the parameters and buffers, by their ids."""
        held = (*self.root.named_buffers(), *self.root.named_parameters())
        return {id(value): name for name, value in held}

    def read(self, module: nn.Module, name: str, value: Any) -> Any:
        """A parameter or buffer under the name it is read by: what is tied may be untied later."""
        if not isinstance(value, torch.Tensor):
            return value
        path = self._path(module)
        if path is None:
            return self.tensor(value)
        return self._live(f"{path}.{name}" if path else name, value)

    def tensor(self, value: torch.Tensor) -> Any:
        """A parameter or buffer as a live attribute of the graph."""
        name = self.tensors.get(id(value))
        return value if name is None else self._live(name, value)

    def held(self, module: nn.Module, name: str, value: Any) -> Any:
        """A tensor that is a plain attribute, or a container that holds tensors, alive."""
        if name.startswith("_"):
            return Held(name, value, self.refuse) if name in HELD else value
        if not holds_tensor(value):
            return value
        path = self.path_of_module(module)
        target = f"{path}.{name}" if path else name
        if isinstance(value, torch.Tensor):
            return self._live(target, value)
        if target not in self.attributes:
            node = self.create_proxy("get_attr", target, (), {})
            self.attributes[target] = fresh = self._elements(node, value)
            self.reads.snapshots.take(fresh)
        return self.attributes[target]

    def _live(self, target: str, value: torch.Tensor) -> BioProxy:
        known = self.attributes.get(target)
        if known is None or known.static is not value:
            known = self.create_proxy("get_attr", target, (), {})
            known.kind, known.static = "tensor", value
            known.node.meta["biofx_kind"] = "tensor"
            self.attributes[target] = known
        return known  # type: ignore[no-any-return]

    def _elements(self, node: Any, value: Any) -> Any:
        """A container with proxies for its tensors."""
        if isinstance(value, torch.Tensor):
            node.kind, node.static = "tensor", value
            node.node.meta["biofx_kind"] = "tensor"
            return node
        if not holds_tensor(value):
            return value
        if type(value) not in (dict, list, tuple):
            raise self.refuse(f"reads a {type(value).__name__} that holds tensors")

        def part(key: Any, item: Any) -> Any:
            if not holds_tensor(item):
                return item
            return self._elements(self._take("item", node, key, "value"), item)

        if type(value) is dict:
            return {key: part(key, item) for key, item in value.items()}
        return type(value)(part(place, item) for place, item in enumerate(value))

    def training_flag(self, module: nn.Module) -> Any:
        """`module.training` as a live attribute of the graph."""
        path = self.path_of_module(module)
        name = f"{path}.training" if path else "training"
        if name not in self._flags:
            self._flags[name] = self.create_proxy("get_attr", name, (), {})
        return self._flags[name]

    def create_arg(self, a: Any) -> Any:
        if type(a) in (BioProxy, BioAttribute):
            if a.tracer is not self:
                raise self.refuse("uses a value of another module's forward")
            return a.node
        if type(a) in _PLAIN:  # past what FX asks of tensors and modules
            return super(fx.Tracer, self).create_arg(a)
        if isinstance(a, torch.Tensor):
            name = self.tensors.get(id(a))
            if name is None:
                raise self.refuse("uses a tensor that Python code made")
            return self._live(name, a).node
        if isinstance(a, torch.Generator):
            raise self.refuse("draws from a generator of its own")
        if is_record(a) and not rebuilds(a):
            raise self.refuse(f"passes on a {type(a).__name__}, which is more than its fields")
        if isinstance(a, list | dict) and type(a) not in _BUILT_IN:
            if not dataclasses.is_dataclass(a):
                raise self.refuse(f"passes on a {type(a).__name__}")
            fields = {f.name: self.create_arg(getattr(a, f.name)) for f in dataclasses.fields(a)}
            return self.create_node("call_function", type(a), (), fields)
        return super().create_arg(a)

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise self.refuse("branches on an intermediate value")

    def iter(self, obj: fx.Proxy) -> Any:
        raise self.refuse("iterates over an intermediate value")

    def keys(self, obj: fx.Proxy) -> Any:
        raise self.refuse("unpacks an intermediate value with **")

    # --- modules -----------------------------------------------------------------------------

    def path_of_module(self, mod: nn.Module) -> str:
        path = self._path(mod)
        if path is None:
            raise self.refuse(f"calls a {type(mod).__name__} that is not one of its submodules")
        return path

    def _path(self, module: nn.Module) -> str | None:
        """The name of a module in the one that is traced, or None; a child by its own name."""
        path = self._children.get(module)
        return self._modules.get(module) if path is None else path

    @cached_property
    def _children(self) -> dict[nn.Module | None, str]:
        names = {child: name for name, child in reversed(self.root._modules.items())}
        return {**names, self.root: ""}

    @cached_property
    def _modules(self) -> dict[nn.Module, str]:
        return {module: name for name, module in self.root.named_modules()}

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        path = self.path_of_module(m)
        if path == "":
            raise self.refuse("calls itself")
        if any("__call__" in vars(base) for base in bases_of(m)):
            raise self.refuse(f"calls {path!r}, whose class overrides __call__")
        if any(keyword.iskeyword(atom) for atom in path.split(".")):
            raise self.refuse(f"has a submodule named like a Python keyword: {path!r}")
        capture = None
        if not is_leaf(m):
            capture = self.session.capture(m, (args, kwargs))
            if capture is not None:
                self.reads.include(capture.reads, capture.world)
            if capture is None and any(type(v) in (list, dict) for v in (*args, *kwargs.values())):
                # Python code may change the container; a graph passes on a fresh one.
                raise self.refuse(f"passes a list or dict to {path!r}, which has no graph")
        unknown = self.unknown
        self._called = m
        proxy = self.create_proxy("call_module", path, args, kwargs)
        if capture is None or m._forward_hooks or capture.call.unsure:
            return proxy
        self.unknown = unknown
        proxy.kind = proxy.node.meta["biofx_kind"] = "value"
        result = value_of(capture.result, proxy, self._take)
        proxy.node.meta["biofx_kind"] = proxy.kind
        return result

    def _take(self, how: str, proxy: BioProxy, key: Any, kind: Kind) -> BioProxy:
        function = getattr if how == "attribute" else operator.getitem
        part: BioProxy = self.create_proxy("call_function", function, (proxy, key), {})
        part.kind = kind
        part.node.meta["biofx_kind"] = kind
        return part

    # --- the forward -------------------------------------------------------------------------

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        nodes = placeholders(self.call, self.graph)
        values: dict[str, Any] = {}
        for name, pattern in self.call.patterns.items():
            kind: Kind = pattern.form if pattern.form in ("tensor", "unknown") else "value"
            nodes[name].meta["biofx_kind"] = kind
            values[name] = value_of(pattern, BioProxy(nodes[name], self, kind=kind), self._take)
            self.reads.snapshots.take(values[name])
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in self.call.parameters:
            value = values[parameter.name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                args += value
            elif parameter.kind is parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif parameter.kind is parameter.KEYWORD_ONLY:
                kwargs[parameter.name] = value
            else:
                args.append(value)

        def run() -> Any:
            self.reads.scan_forward(root_fn)
            with self.reads:
                result = root_fn(self.root, *args, **kwargs)
            try:
                self.result = pattern_of(result)
            except Unpatterned as error:
                raise self.refuse(f"returns {error}") from None
            if self.unknown and (
                self.reads.compares_unknown
                or facts(inspect.unwrap(root_fn).__code__).compares_with_none
            ):
                raise self.refuse("compares with None what a module without a graph returned")
            return result

        return run, []
