"""How a call that was seen becomes the target of a graph node, as FX and people write it."""

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

GETITEM = operator.getitem
# What a node takes for an argument as it is.
PLAIN = frozenset({
    type(None), bool, int, float, complex, str, bytes, type(...), torch.dtype, torch.device,
    torch.layout, torch.memory_format, fx.Node,
})  # fmt: skip

# Methods of tensors that tell about a tensor without its values.
_ABOUT = frozenset({
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size",
    "get_device", "type", "is_contiguous", "is_floating_point", "is_complex", "is_signed",
    "is_conj", "is_neg", "is_inference", "is_pinned", "is_shared", "is_same_size", "is_coalesced",
    "is_set_to", "has_names", "dense_dim", "sparse_dim", "data_ptr", "untyped_storage", "storage",
    "qscheme", "result_type", "can_cast", "promote_types", "is_tensor", "is_storage", "numpy_T",
    "retain_grad",
    "broadcast_shapes", "get_default_dtype", "typename", "backward", "finfo", "iinfo", "device",
    "__len__", "__hash__", "__repr__", "__format__", "__dir__", "__deepcopy__", "__reduce_ex__",
    "__get__", "_is_view", "_nested_tensor_size", "_has_compatible_shallow_copy_type",
    "stack_trace", "compile", "set_default_dtype", "__sizeof__", "__torch_dispatch__",
})  # fmt: skip
# Methods and attributes of tensors that tell about their form, whatever their values are.
_FORM = frozenset({
    "size", "dim", "ndimension", "numel", "nelement", "stride", "element_size", "get_device",
    "shape", "ndim", "dtype", "device", "layout", "itemsize", "nbytes", "is_cuda",
})  # fmt: skip
# Methods of tensors that change their gradients when these are computed.
_HOOKS = frozenset({"register_hook", "register_post_accumulate_grad_hook"})
# What makes a tensor of its arguments alone, the same at every run.
FACTORIES = frozenset({
    "tensor", "as_tensor", "arange", "zeros", "ones", "full", "eye", "linspace", "logspace",
    "empty", "scalar_tensor", "tril_indices", "triu_indices", "hann_window", "hamming_window",
})  # fmt: skip
# What a binary operation of tensors is in Python.
_OPERATORS: Mapping[str, Any] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "true_divide": operator.truediv, "matmul": operator.matmul, "remainder": operator.mod,
    "__add__": operator.add, "__mul__": operator.mul, "__matmul__": operator.matmul,
    "__floordiv__": operator.floordiv, "floor_divide": operator.floordiv, "pow": operator.pow,
    "__pow__": operator.pow, "gt": operator.gt, "ge": operator.ge, "lt": operator.lt,
    "le": operator.le, "eq": operator.eq, "ne": operator.ne, "__eq__": operator.eq,
    "__ne__": operator.ne, "__and__": operator.and_, "__or__": operator.or_,
    "__xor__": operator.xor, "__getitem__": operator.getitem,
}  # fmt: skip
_REFLECTED: Mapping[str, Any] = {
    "__radd__": operator.add, "__rsub__": operator.sub, "__rmul__": operator.mul,
    "__rdiv__": operator.truediv, "__rtruediv__": operator.truediv, "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv, "__rmatmul__": operator.matmul,
    "__rand__": operator.and_, "__ror__": operator.or_, "__rxor__": operator.xor,
    "__rmod__": operator.mod,
}  # fmt: skip
_UNARY: Mapping[str, Any] = {
    "neg": operator.neg,
    "__neg__": operator.neg,
    "__invert__": operator.invert,
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call of torch's API.

    Attributes:
        kind: "tensor" (makes tensors), "changes" (changes one and gives none), "value" (gives a
            Python value that depends on those of tensors), "hook" (acts on gradients later),
            "silent" (tells about shapes and the like).
        op, target, args, kwargs: of the node that stands for it.
        written: the name for people.
    """

    kind: Literal["tensor", "changes", "value", "hook", "silent"]
    op: str = "call_function"
    target: Any = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    written: str = ""


@functools.cache
def _methods() -> Mapping[Any, str]:
    """{method of torch.Tensor: its name}."""
    found: dict[Any, str] = {}
    for name in sorted(dir(Tensor), key=lambda name: (name.startswith("_"), name)):
        value = getattr(Tensor, name, None)
        if callable(value):
            try:
                found.setdefault(value, name)
            except TypeError:
                continue
    return found


def call_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """What a function seen by a `TorchFunctionMode` is, called with these arguments."""
    name = str(getattr(func, "__name__", func))
    descriptor = getattr(func, "__self__", None)
    if name in ("__get__", "__set__", "__delete__") and descriptor is not None:
        attribute = getattr(descriptor, "__name__", None) or descriptor.fget.__name__
        if name == "__get__":
            return Call("tensor", "call_function", getattr, (args[0], attribute), {}, attribute)
        if name == "__set__" and attribute == "data":
            return Call("changes", "call_function", setattr, (args[0], attribute, args[1]), {})
        if name == "__set__" and attribute == "requires_grad":
            return Call("changes", "call_method", "requires_grad_", args, {})
        return Call("silent")
    method = _methods().get(func) if not isinstance(func, type) else None
    if name in _HOOKS:
        return Call("hook", written=f".{name}()")
    if name in _ABOUT:
        return Call("silent")
    if name == "__setitem__":
        return Call("changes", "call_function", operator.setitem, args, kwargs, name)
    if method is None and name != "pow":
        return Call("value", "call_function", func, args, kwargs, f"{name}()")
    if not kwargs:
        if len(args) == 2 and name in _OPERATORS:
            return Call("tensor", "call_function", _OPERATORS[name], args, {}, name)
        if len(args) == 2 and name in _REFLECTED:
            return Call("tensor", "call_function", _REFLECTED[name], (args[1], args[0]), {}, name)
        if len(args) == 1 and name in _UNARY:
            return Call("tensor", "call_function", _UNARY[name], args, {}, name)
    if not args or not isinstance(args[0], Tensor):  # `Tensor.add(other=…)`, a static method
        return Call("value", "call_function", func, args, kwargs, name)
    return Call(
        "value", "call_method", method or name, args, kwargs, f".{(method or name).strip('_')}()"
    )


def asks_form(node: fx.Node) -> bool:
    """Whether a node gives a shape, a dtype or the like: no values flow through it."""
    if node.op == "call_method":
        return node.target in _FORM
    return node.op == "call_function" and node.target is getattr and node.args[1] in _FORM


def sizes_told(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> frozenset[int]:
    """The axes whose lengths a function seen by a `TorchFunctionMode` has told, of its argument."""
    name = getattr(func, "__name__", "")
    if type(result) is not torch.Size and name not in ("size", "numel", "nelement", "__len__"):
        return frozenset()
    axes = range(args[0].dim())
    chosen = kwargs.get("dim", args[1] if name == "size" and len(args) > 1 else None)
    if name == "__len__" or chosen is not None:
        return frozenset({axes[chosen or 0]})
    return frozenset(axes)


def plain_number(value: Any) -> Any:
    """A number of another library (NumPy's, say) as one of Python's; None if it is no number."""
    kind = type(value)
    if kind.__module__.partition(".")[0] == "numpy" and hasattr(value, "item"):
        return value.item() if getattr(value, "ndim", 1) == 0 else None
    if isinstance(value, int):  # an enum, a subclass
        return int(value)
    if isinstance(value, float):
        return float(value)
    return str(value) if isinstance(value, str) else None


def set_autocast(device: str, enabled: bool, dtype: torch.dtype) -> None:
    """Switch automatic mixed precision, as `torch.autocast` does when it is entered."""
    torch.set_autocast_enabled(device, enabled)
    torch.set_autocast_dtype(device, dtype)
    torch.clear_autocast_cache()
