"""Writes a graph: what a run did, as nodes with module, line and shape."""

import contextlib
import dataclasses
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata
from torch.utils._python_dispatch import _disable_current_modes

from biofx.capture import targets
from biofx.capture.call import reserve
from biofx.capture.location import locate, place_of, user_frame, user_place
from biofx.capture.memory import KEPT, SHARES, assigned, held, items, note_memory, tensor_ids
from biofx.capture.private import AutogradCall, autograd_function_of, without_functions
from biofx.copying.nested import Step, leaves
from biofx.copying.template import Template, rebuild

# Key of `node.meta`: Python went on with values of the node's result.
READ_BY_PYTHON = "biofx_read_by_python"
# Key of `node.meta`: the constant was computed in the run, by something that was not recorded.
UNSEEN = "biofx_unseen"
_OPERATIONS = ("call_function", "call_method")


@dataclass(frozen=True)
class Assumption:
    """Something that a graph takes for granted.

    Attributes:
        kind: "data" (a value computed from data became a Python value, and Python went on with
            it), "constant" (a tensor that no operation of torch's made), "state" (the forward
            assigns an attribute of the model), "random" (numbers were drawn, and the graph does
            not draw), "default" (an argument that was not given), "hook" (a hook on a
            tensor, which only the forward registers), "backward" (an autograd function's, of
            which only the forward was seen), "shared" (an attribute that cannot be copied, so that
            the run used the model's own), "outputs" (which layers were taken for outputs, and why).
        what: one line.
        where: ``file:line`` of the user's code, or "".
    """

    kind: str
    what: str
    where: str = ""

    @classmethod
    def state(cls, path: str) -> "Assumption":
        """That the forward assigns an attribute."""
        return cls("state", f"the forward assigns {path}; the graph does not")

    @classmethod
    def backward(cls, function: str, where: str) -> "Assumption":
        """That the forward calls an autograd function, of which the graph has the inside."""
        what = f"{function} has a backward of its own; the graph has its forward alone"
        return cls("backward", what, where)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class GraphWriter:
    """A graph in the making, for values that are recognised by their identity.

    Args:
        root: the module that runs; a throw-away copy.
        originals: {id of a tensor of `root`: the real tensor that it stands for}.
    """

    def __init__(self, root: nn.Module, originals: dict[int, Tensor]) -> None:
        super().__init__()
        self.root = root
        self.originals = originals
        self.graph = reserve(fx.Graph())
        self.assumptions: dict[Assumption, None] = {}
        self.constants: dict[str, Any] = {}
        self._known: dict[int, tuple[fx.Node, tuple[Step, ...]]] = {}
        self._parts: dict[tuple[fx.Node, tuple[Step, ...]], fx.Node] = {}
        self._alive: list[Any] = []  # ids are those of living objects
        self._fixed: set[fx.Node] = set()  # nodes whose values are the same at every run
        self._modules: list[tuple[str, nn.Module]] = [("", root)]
        self._attributes: dict[int, str] = {}
        self._copies: dict[int, tuple[Any, Any, Any]] = {}  # of objects: (leaves then, copy, …)
        self._results: dict[int, fx.Node] = {}  # tuples that a node gives, as they are
        self._modes = current_modes()
        self._finishing = False
        # By name and by id, for the hash of a module may change as it runs (torchmetrics).
        self._by_name = dict(root.named_modules())
        self._names = {id(module): name for name, module in self._by_name.items()}

    # --- nodes -------------------------------------------------------------------------------

    def _emit(self, op: str, target: Any, args: Any, kwargs: Any, result: Any) -> fx.Node:
        with without_functions():
            return self._make(op, target, args, kwargs, result)

    def _make(self, op: str, target: Any, args: Any, kwargs: Any, result: Any) -> fx.Node:
        self._follow_modes()
        given = tuple(self._argument(arg) for arg in args)
        named = {key: self._argument(value) for key, value in kwargs.items()}
        node = self.graph.create_node(op, target, given, named)
        note_memory(node, (args, kwargs), result, self._holders)
        made = node.all_input_nodes or getattr(target, "__name__", "") in targets.FACTORIES
        if op != "call_module" and made and self._fixed.issuperset(node.all_input_nodes):
            self._fixed.add(node)
        locate(node, self._modules, user_frame())
        self._describe(node, result)
        self._hold(node, result)
        return node

    def _follow_modes(self) -> None:
        """Switch gradients and autocast in the graph where the forward has switched them."""
        now = current_modes()
        for target, args in switches(self._modes, now):
            self.graph.call_function(target, args)
        self._modes = now

    def _hold(self, node: fx.Node, value: Any) -> None:
        if isinstance(value, tuple):
            self._results[id(value)] = node
            self._alive.append(value)
        for steps, leaf in leaves(value):
            if isinstance(leaf, Tensor):
                self._known[id(leaf)] = node, steps
                self._alive.append(leaf)

    def _node_of(self, tensor: Tensor) -> fx.Node:
        found = self._known.get(id(tensor))
        if found is not None:
            function = autograd_function_of(tensor)
            if (
                function
                and found[0].op in _OPERATIONS
                and type(found[0].target) is not AutogradCall
            ):
                self._assume_forward(function, found[0])
            node = self._part(*found)
            if "tensor_meta" not in node.meta:
                self._describe(node, tensor)
            return node
        name = self._attributes.get(id(tensor))
        if name is None:
            name = self._constant(self.originals.get(id(tensor), tensor), "_biofx_tensor")
        node = self.graph.create_node("get_attr", name)
        if name in self.constants:
            self._fixed.add(node)
            if tensor.grad_fn is not None:
                node.meta[UNSEEN] = True
        locate(node, self._modules, None)
        self._describe(node, tensor)
        self._hold(node, tensor)
        return node

    def _holders(self, value: Any) -> tuple[fx.Node | None, ...]:
        """The nodes that a value may be an argument as: its own, and that which made it."""
        held = self._known.get(id(value))
        return (self._parts.get(held), held[0]) if held is not None else ()

    def _part(self, whole: fx.Node, steps: tuple[Step, ...]) -> fx.Node:
        """The node of a part of what a node gives."""
        if not steps:
            return whole
        part = self._parts.get((whole, steps))
        if part is None:
            kind, key = steps[-1]
            target = operator.getitem if kind == "item" else getattr
            part = self.graph.call_function(target, (self._part(whole, steps[:-1]), key))
            part.meta.update({k: v for k, v in whole.meta.items() if k != "tensor_meta"})
            part.meta[SHARES] = 0
            if whole in self._fixed:
                self._fixed.add(part)
            self._parts[whole, steps] = part
        return part

    def _argument(self, value: Any) -> Any:
        """A value as an argument of a node."""
        if isinstance(value, Tensor):
            return self._node_of(value)
        if type(value) in targets.PLAIN:
            return value
        if id(value) in self._results:
            return self._results[id(value)]
        if isinstance(value, slice):
            return slice(*(self._argument(v) for v in (value.start, value.stop, value.step)))
        if type(value) is torch.Size and self._finishing:
            return self.graph.call_function(torch.Size, (list(value),))
        if type(value) in (list, tuple, torch.Size):
            kind = list if type(value) is list else tuple
            return kind(self._argument(item) for item in value)
        if type(value) is dict and all(isinstance(key, str | int) for key in value):
            return {key: self._argument(item) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            items = tuple(self._argument(item) for item in value)
            if type(value).__bases__ == (tuple,):
                return type(value)(*items)
            return self.graph.call_function(type(value), items)  # PackedSequence
        number = targets.plain_number(value)
        if number is not None:
            return number
        return self._object(value)

    def _object(self, value: Any) -> Any:
        """An object as an argument: built anew at each run if it holds tensors."""
        if id(value) in self._attributes:
            return self.graph.create_node("get_attr", self._attributes[id(value)])
        if isinstance(value, nn.Module) and self._names.get(id(value)):
            return self.graph.create_node("get_attr", self._names[id(value)])
        if any(isinstance(leaf, Tensor) for _, leaf in leaves(value)):
            try:
                with _disable_current_modes():  # to copy it is no operation of the model's
                    template = Template(value)
            except Exception as error:
                return self._made_anew(value, error)
            nodes = [self._node_of(tensor) for tensor in template.tensors(value)]
            name = self._constant(template, "_biofx_object")
            made = self.graph.create_node("get_attr", name)
            return self.graph.call_function(rebuild, (made, nodes))
        kept = self._as_it_is(value)
        made = self.graph.create_node("get_attr", self._constant(kept, "_biofx_object"))
        anew = isinstance(kept, Template)
        return self.graph.call_function(rebuild, (made, [])) if anew else made

    def _as_it_is(self, value: Any) -> Any:
        """A template of an object without tensors: of a cache, say, which the run fills later."""
        held = list(leaves(value))
        state = [(steps, id(leaf)) for steps, leaf in held]
        known = self._copies.get(id(value))
        if known is not None and known[0] == state:
            return known[1]
        kept, plain = value, held[:1] == [((), value)]
        if not plain and not any(isinstance(leaf, nn.Module) for _, leaf in held):
            with contextlib.suppress(Exception):
                kept = Template(value)
        self._copies[id(value)] = state, kept, (value, held)  # alive, for their ids
        return kept

    def _made_anew(self, value: Any, error: Exception) -> Any:
        """An object that cannot be copied: made of its fields, or shown as its tensors."""
        if dataclasses.is_dataclass(value):
            fields = [field for field in dataclasses.fields(value) if field.init]
            given = {f.name: self._argument(getattr(value, f.name)) for f in fields}
            return self.graph.call_function(type(value), (), given)
        what = f"a {type(value).__name__} cannot be copied ({error})"
        self._assume("constant", f"{what}; the graph gives its tensors")
        return tuple(self._argument(t) for _, t in leaves(value) if isinstance(t, Tensor))

    def _constant(self, value: Any, prefix: str) -> str:
        for name, known in self.constants.items():
            if known is value:
                return name
        name = f"{prefix}{len(self.constants)}"
        self.constants[name] = value
        if isinstance(value, Tensor):
            shape = "×".join(map(str, value.shape)) or "one number"
            self._assume("constant", f"uses a tensor made outside of the model ({shape})")
        return name

    # --- what is known about a node ------------------------------------------------------------

    def _describe(self, node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            node.meta["tensor_meta"] = _metadata(value)
        elif type(value) in (tuple, list) and all(isinstance(item, Tensor) for item in value):
            node.meta["tensor_meta"] = tuple(map(_metadata, value))

    def _assume(self, kind: str, what: str) -> None:
        self.assumptions[Assumption(kind, what, user_place())] = None

    def _assume_forward(self, function: str, node: fx.Node) -> None:
        """Say that the graph has the inside of an autograd function, which ends in a node."""
        self.assumptions[Assumption.backward(function, place_of(node))] = None

    def _depends_on_data(self, value: Any) -> bool:
        for _, leaf in leaves(value):
            if isinstance(leaf, Tensor):
                found = self._known.get(id(leaf))
                if found is None or found[0] not in self._fixed:
                    return True
        return False

    def _find_attributes(self) -> None:
        """The tensors of the model, by qualified name."""
        for name, module in self._by_name.items():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            prefix = f"{name}." if name else ""
            for registry in (module._parameters, module._buffers, module.__dict__):
                for key, value in registry.items():
                    if isinstance(value, Tensor) or type(value) is torch.Generator:
                        self._attributes.setdefault(id(value), prefix + key)
                        self._alive.append(value)
                        # What could not be copied computes with the model's own tensors.
                        original = self.originals.get(id(value), value)
                        self._attributes.setdefault(id(original), prefix + key)
        self._tensors = {name: tensor_ids(module) for name, module in self._by_name.items()}
        self._training = {name: module.training for name, module in self._by_name.items()}
        self._state = held(self._by_name)

    def _note_assigned(self) -> None:
        """Say what of its attributes the forward has assigned, and which results are kept."""
        after = held(self._by_name)
        for path in assigned(self._state, after):
            self.assumptions[Assumption.state(path)] = None
        for path, value in items(after):
            if id(value) in self._known and id(value) not in self._attributes:
                made = self._known[id(value)]
                self._parts.get(made, made[0]).meta[KEPT] = path


def current_modes() -> dict[str, Any]:
    """What decides, besides its arguments, how an operation runs."""
    found: dict[str, Any] = {"gradients": torch.is_grad_enabled()}
    for device in ("cpu", "cuda"):
        found[device] = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return found


def switches(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The calls, as (function, args), that lead from some modes to others."""
    for name, setting in now.items():
        if setting != before[name] and name == "gradients":
            yield torch.set_grad_enabled, (setting,)
        elif setting != before[name]:
            yield targets.set_autocast, (name, *setting)


def _metadata(tensor: Tensor) -> TensorMetadata:
    strided = tensor.layout is torch.strided
    return TensorMetadata(
        tensor.shape, tensor.dtype, tensor.requires_grad, tensor.stride() if strided else (), None,
        False, {},
    )  # fmt: skip
