"""`BioProxy`: the stand-in for a value while a forward is traced. It records or it refuses."""

import sys
from types import FrameType, ModuleType
from typing import Any, Literal

import torch
from torch import fx

from biofx.capture import inplace
from biofx.capture.code import MAYBE_NONE, called, calls, instruction_of

# "tensor": certainly a Tensor.  "value": some result of an operation, never None.
# "unknown": came out of Python code that was not traced; may be anything, None too.
Kind = Literal["tensor", "value", "unknown"]

# What a parameter or buffer can tell at capture time because it cannot change afterwards.
_STATIC = frozenset({"shape", "ndim", "dim", "ndimension", "size", "numel", "is_complex"})
# Types such as FloatTensor: asked whether a value is an instance, they read its memory.
_LEGACY = frozenset(n for n in dir(torch) if isinstance(getattr(torch, n), type(torch.FloatTensor)))
# Where it has to be told that a value is a proxy.
_DISPATCH = (
    "biofx.capture.", "torch.fx.", "torch.overrides", "torch.functional", "torch.nn.functional",
    "torch.utils._pytree", "torch._tensor", "torch._ops", "torch._C",
)  # fmt: skip
_OWN = frozenset({"tracer", "node", "kind", "static", "root", "attr", "_node"})


class BioProxy(fx.Proxy):
    """A proxy that never lies: what it cannot record makes the module being traced opaque.

    Plain `fx.Proxy` answers `isinstance(x, Tensor)` with False, `hasattr` with True, turns
    `x += 1` into `x = x + 1` (losing the aliasing) and lets attributes be set on itself; each of
    these bakes a wrong answer into the graph without a word.
    """

    kind: Kind
    static: torch.Tensor | None

    tracer: Any

    def __init__(
        self,
        node: fx.Node,
        tracer: Any,
        *,
        kind: Kind = "value",
        static: torch.Tensor | None = None,
    ) -> None:
        super().__init__(node, tracer)
        self.kind = kind
        self.static = static

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        frame = sys._getframe(1)
        if _is_dispatch(frame) or _asked_by_torch(frame):
            return type(self)
        if calls(frame) and (
            called(frame) is not isinstance or _LEGACY.intersection(frame.f_code.co_names)
        ):
            raise self._refuse("asks for the type of an intermediate value")
        if self.static is not None:
            return type(self.static)
        if self.kind == "tensor":
            return torch.Tensor
        raise self._refuse("asks for the type of an intermediate value")

    def __getattr__(self, name: str) -> Any:
        if self.static is not None and name in _STATIC:
            return getattr(self.static, name)
        frame = sys._getframe(1)
        # hasattr(x, "…") or getattr(x, "…", default): only a Tensor's attributes are known
        asked = not _inside_torch(frame) and calls(frame)
        if asked and not (self.kind == "tensor" and hasattr(torch.Tensor, name)):
            raise self._refuse(f"asks whether an intermediate value has {name!r}")
        return BioAttribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN:
            raise self._refuse(f"assigns {name!r} on an intermediate value")
        object.__setattr__(self, name, value)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", inplace.setitem, (self, index, value), {})

    def __len__(self) -> int:
        if self.static is not None:
            return len(self.static)
        raise self._refuse("takes len() of an intermediate value")

    def __iter__(self) -> Any:
        frame = sys._getframe(1)
        instruction = instruction_of(frame)
        if instruction is not None and instruction.opname == "UNPACK_SEQUENCE":
            return (self[i] for i in range(instruction.argval))  # type: ignore[index]
        if self.static is not None:
            return (self[i] for i in range(len(self.static)))  # type: ignore[index]
        raise self._refuse("iterates over an intermediate value")

    def __bool__(self) -> bool:
        raise self._refuse("branches on an intermediate value")

    def __int__(self) -> int:
        raise self._refuse("takes int() of an intermediate value")

    def __float__(self) -> float:
        raise self._refuse("takes float() of an intermediate value")

    def __index__(self) -> int:
        raise self._refuse("uses an intermediate value as a Python index")

    def __complex__(self) -> complex:
        raise self._refuse("takes complex() of an intermediate value")

    def __contains__(self, item: Any) -> bool:
        raise self._refuse("asks whether an intermediate value contains something")

    def __hash__(self) -> int:
        if _inside_torch(sys._getframe(1)):
            return id(self)
        raise self._refuse("uses an intermediate value as a key")

    def __format__(self, spec: str) -> str:
        raise self._refuse("formats an intermediate value as text")

    def __repr__(self) -> str:
        if _inside_torch(sys._getframe(1)):
            return super().__repr__()
        raise self._refuse("formats an intermediate value as text")

    __str__ = __repr__

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise self._refuse("converts an intermediate value to NumPy")

    def keys(self) -> Any:
        raise self._refuse("unpacks an intermediate value with **")

    def _refuse(self, what: str) -> fx.proxy.TraceError:
        error: fx.proxy.TraceError = self.tracer.refuse(what)
        return error


class BioAttribute(BioProxy):
    """`x.name`, recorded when it is used as a value and not called as a method."""

    def __init__(self, root: BioProxy, attr: str) -> None:
        self.root = root
        self.attr = attr
        self.tracer = root.tracer
        self.kind = "unknown" if root.kind == "unknown" or attr in MAYBE_NONE else "value"
        if self.kind == "unknown":
            self.tracer.unknown = True
        self.static = None
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:
        if self._node is None:
            recorded = self.tracer.create_proxy(
                "call_function", getattr, (self.root, self.attr), {}
            )
            self._node = recorded.node
        return self._node

    @node.setter
    def node(self, value: fx.Node) -> None:
        self._node = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


def _recorded(function: Any) -> Any:
    def method(self: BioProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _function in inplace.OPERATORS:
    setattr(BioProxy, f"__{_function.__name__}__", _recorded(_function))


def _inside_torch(frame: FrameType | None) -> bool:
    if frame is None:
        return False
    name = str(frame.f_globals.get("__name__", ""))
    return name.startswith(("torch.", "biofx.capture.")) and not name.startswith("torch.nn.modules")


def _is_dispatch(frame: FrameType) -> bool:
    """Whether code runs that has to tell proxies from tensors. Other Python code of torch (rnn
    utilities, distributions, `torch.jit.isinstance`) asks what a user's code would ask."""
    return str(frame.f_globals.get("__name__", "")).startswith(_DISPATCH)


def _asked_by_torch(frame: FrameType) -> bool:
    """Whether torch's own C code asks, called by this frame: what it takes for a tensor it reads
    as one, whatever lies in that memory."""
    if not calls(frame):
        instruction = instruction_of(frame)
        return instruction is not None and instruction.opname.startswith("BINARY")
    function = called(frame)
    if isinstance(function, ModuleType):
        return function.__name__.partition(".")[0] == "torch"
    name = getattr(function, "__name__", None)
    return isinstance(name, str) and any(
        getattr(place, name, None) is function for place in (torch, torch.nn.functional)
    )


# Functions and methods that give one tensor when they get one.
_ONE_TENSOR = frozenset({
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    "hardsigmoid", "hardtanh", "softplus", "sigmoid", "tanh", "softmax", "log_softmax",
    "logsigmoid", "softsign", "glu", "dropout", "dropout1d", "dropout2d", "dropout3d",
    "alpha_dropout", "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "batch_norm", "layer_norm", "group_norm",
    "instance_norm", "rms_norm", "normalize", "local_response_norm", "embedding",
    "interpolate", "upsample", "grid_sample", "affine_grid", "pad",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "lp_pool1d", "lp_pool2d", "unfold", "fold", "pixel_shuffle",
    "pixel_unshuffle", "scaled_dot_product_attention", "one_hot", "cross_entropy", "mse_loss",
    "cat", "concat", "stack", "hstack", "vstack", "matmul", "bmm", "mm", "mv", "addmm",
    "baddbmm", "einsum", "tensordot", "outer", "dot", "add", "sub", "mul", "div", "true_divide",
    "floor_divide", "remainder", "pow", "neg", "abs", "exp", "expm1", "log", "log1p", "log2",
    "sqrt", "rsqrt", "sin", "cos", "tan", "erf", "square", "reciprocal", "clamp", "clip",
    "clamp_min", "clamp_max", "where", "masked_fill", "mean", "sum", "prod", "cumsum",
    "cumprod", "norm", "view", "reshape", "flatten", "unflatten", "permute", "transpose", "t",
    "swapaxes", "movedim", "contiguous", "clone", "detach", "expand", "expand_as", "view_as",
    "reshape_as", "repeat", "repeat_interleave", "unsqueeze", "squeeze", "index_select",
    "gather", "scatter", "scatter_add", "take_along_dim", "roll", "flip", "narrow", "select",
    "tril", "triu", "diag", "diagonal", "to", "type", "float", "half", "bfloat16", "double",
    "long", "int", "bool", "type_as", "zeros_like", "ones_like", "full_like", "empty_like",
    "rand_like", "randn_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor",
    "bernoulli_", "add_", "sub_", "mul_", "div_", "relu_", "copy_", "fill_", "zero_", "clamp_",
    "masked_fill_", "uniform_", "normal_", "eq", "ne", "lt", "le", "gt", "ge", "logical_and",
    "logical_or", "logical_not", "truediv", "floordiv", "mod",
})  # fmt: skip


def returns_tensor(node: fx.Node) -> bool:
    """Whether a recorded operation certainly gives a single tensor."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    name = name.removeprefix("i") if node.target in inplace.OPERATORS else name
    if name not in _ONE_TENSOR or "return_indices" in node.kwargs:
        return False
    if name in ("where", "type") and len(node.args) == 1:
        return False  # the indices; a string
    operands = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node)]
    for item in node.args:
        if isinstance(item, list | tuple):
            operands += [a for a in item if isinstance(a, fx.Node)]
    return any(operand.meta.get("biofx_kind") == "tensor" for operand in operands)


def holds_tensor(value: Any, depth: int = 3) -> bool:
    """Whether a value is a tensor, or a container with tensors at a depth of at most 3."""
    if issubclass(type(value), torch.Tensor):  # see `leaves`
        return True
    if depth and issubclass(type(value), list | tuple | dict):
        items = value.values() if issubclass(type(value), dict) else value
        return any(holds_tensor(item, depth - 1) for item in items)
    return False
