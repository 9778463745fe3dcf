"""The parameters that a module holds itself and its graph uses as weights: `x @ self.w`."""

import operator
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import fx, nn
from torch.nn import functional as F

from biofx.synapses import Axes, axes_of

# Weight ops; of a convolution, its spatial dimensions.
_CONVS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_TRANSPOSED = {torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3}
_PRODUCTS = {
    torch.matmul, operator.matmul, torch.mm, torch.bmm, torch.mv, "matmul", "mm", "bmm", "mv",
}  # fmt: skip
_SWAPS = {"t", "transpose", "permute", torch.t, torch.transpose, torch.permute}
_SHAPES = {"view", "expand", "reshape", torch.reshape}  # `torch.vmap` writes many that do nothing
# Where these functions take their weight.
_WEIGHT_AT: dict[object, int] = {
    F.linear: 1, **dict.fromkeys((*_CONVS, *_TRANSPOSED), 1), F.embedding: 1, F.bilinear: 2,
}  # fmt: skip
# A weight may be put together element by element: w + σ·ε of a noisy layer.
ELEMENTWISE = {
    operator.add, operator.sub, operator.mul, operator.truediv,
    torch.add, torch.sub, torch.mul, torch.div, "add", "sub", "mul", "div",
}  # fmt: skip
_LAYOUT = {"to", "contiguous", "type_as", "clone", "float", "half"}  # and these keep its axes


def functional_weights(root: nn.Module, graph: fx.Graph) -> dict[str, list[Axes]]:
    """{module name: axes of the parameters that the graph uses as weights without a layer}."""
    reads = _reads(root, graph)
    found: dict[str, dict[str, Axes]] = defaultdict(dict)
    if not reads:
        return {}
    # What is made of tensors of the model alone, and of nothing (ones, or random numbers).
    weights, constants = set(graph.find_nodes(op="get_attr")), set[fx.Node]()
    calls = [node for node in graph.nodes if node.op in ("call_function", "call_method")]
    for node in calls:
        inputs = node.all_input_nodes[: 1 if node.target in _LAYOUT else None]
        elementwise = node.target in ELEMENTWISE
        if constants.issuperset(inputs):
            constants.add(node)
        elif all(i in weights or (elementwise and i in constants) for i in inputs):
            weights.add(node)
    # A product of weights is a weight: first see what meets data.
    for node in sorted(calls, key=weights.__contains__):
        keyword = (_WEIGHT_AT.get(_function_of(node.target), 1), node.kwargs.get("weight"))
        for position, argument in (*enumerate(_arguments(node)), keyword):
            for read, swaps in _made_of(argument, weights):
                if read not in reads:
                    continue
                owner, name, ndim = reads[read]
                if name not in found[owner]:
                    axes = _axes_in(node, position, name, ndim)
                    axes = axes and _through(swaps, axes, ndim)
                    if axes is not None:
                        found[owner][name] = axes
    return {owner: list(axes.values()) for owner, axes in found.items() if axes}


def _reads(root: nn.Module, graph: fx.Graph) -> dict[fx.Node, tuple[str, str, int]]:
    """{node that reads a matrix: (owner, parameter name, dimensions)} of no known weight layer."""
    found = {}
    for node in graph.find_nodes(op="get_attr"):
        owner, _, name = str(node.target).rpartition(".")
        try:  # not by `named_modules`: a child may hold its parent
            module = root.get_submodule(owner)
        except AttributeError:
            continue
        parameter = module._parameters.get(name)
        if parameter is not None and parameter.ndim >= 2 and not axes_of(module):
            found[node] = owner, name, parameter.ndim
    return found


def _arguments(node: fx.Node) -> tuple[object, ...]:
    """Those by place, where `einsum` takes what it multiplies in a list too."""
    if _function_of(node.target) is torch.einsum and isinstance(node.args[-1], list | tuple):
        return (*node.args[:-1], *node.args[-1])
    return node.args


def _made_of(
    value: object, weights: set[fx.Node], swaps: tuple[fx.Node, ...] = ()
) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """The parameters that a weight is made of, each with the transposes on the way to it.

    A product of two weights has the rows of the one and the columns of the other; both have its
    orientation.
    """
    if not isinstance(value, fx.Node) or value not in weights:
        return
    if value.op == "get_attr":
        yield value, swaps
    elif not value.args:  # called by keywords
        return
    elif _function_of(value.target) in _SWAPS or _swapping_attribute(value):
        yield from _made_of(value.args[0], weights, (*swaps, value))
    elif value.target in _LAYOUT or _keeps_shape(value):
        yield from _made_of(value.args[0], weights, swaps)
    elif value.target in _PRODUCTS or value.target in ELEMENTWISE:
        for factor in value.args[:2]:
            yield from _made_of(factor, weights, swaps)


def _keeps_shape(node: fx.Node) -> bool:
    """Whether a change of shape changes nothing."""
    if _function_of(node.target) not in _SHAPES or not isinstance(node.args[0], fx.Node):
        return False
    before, after = (n.meta.get("tensor_meta") for n in (node.args[0], node))
    return before is not None and after is not None and before.shape == after.shape


def _swapping_attribute(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1] in ("T", "mT")


def _through(swaps: tuple[fx.Node, ...], axes: Axes, ndim: int) -> Axes | None:
    """The axes of what is transposed, from those of the result."""
    for node in swaps:
        order = _order(node, ndim)
        if order is None:
            return None
        axes = replace(axes, post=order[axes.post], pre=order[axes.pre])
    return axes


def _order(node: fx.Node, ndim: int) -> list[int] | None:
    """For each axis of a transposed tensor, which one it was before; None if that is not known."""
    order = list(range(ndim))
    if _swapping_attribute(node):
        return order[::-1] if node.args[1] == "T" else [*order[:-2], ndim - 1, ndim - 2]
    given = (*node.args[1:], *node.kwargs.values())
    if not given:
        return order[::-1]  # .t()
    axes = given[0] if isinstance(given[0], list | tuple) else given
    if not all(isinstance(axis, int) and -ndim <= axis < ndim for axis in axes):
        return None
    if _function_of(node.target) in ("permute", torch.permute):
        return [order[axis] for axis in axes] if len(axes) == ndim else None  # type: ignore[index]
    first, second = axes
    order[first], order[second] = order[second], order[first]  # type: ignore[index]
    return order


def _axes_in(node: fx.Node, position: int, name: str, ndim: int) -> Axes | None:
    whole = "its weight is not a layer's"
    target = _function_of(node.target)
    if target is torch.einsum and isinstance(node.args[0], str):
        return _einsum_axes(node.args[0], position - 1, name)
    if (target in _PRODUCTS and position < 2) or (
        target in (torch.addmm, "addmm", torch.baddbmm, "baddbmm") and position in (1, 2)
    ):
        # x @ W runs over W's last but one axis; W @ x over its last
        first = position == (0 if target in _PRODUCTS else 1)
        pre, post = (ndim - 1, ndim - 2) if first else (ndim - 2, ndim - 1)
        return Axes(name, "matmul", post=post, pre=pre, whole=whole)
    if position != _WEIGHT_AT.get(target):
        return None
    if target is F.linear:
        return Axes(name, "linear", post=0, pre=1, whole=whole)
    if target in _CONVS:
        kind = f"conv{_CONVS[target]}d"
        return Axes(name, kind, post=0, pre=1, groups=_groups(node), whole=whole)
    if target in _TRANSPOSED:
        kind = f"conv_transpose{_TRANSPOSED[target]}d"
        return Axes(name, kind, post=1, pre=0, groups=_groups(node), whole=whole)
    if target is F.embedding:
        return Axes(name, "embedding", post=1, pre=0, whole=whole)
    return Axes(name, "bilinear", post=0, pre=1, whole=whole)


def _einsum_axes(equation: str, operand: int, name: str) -> Axes | None:
    """Contracted subscripts are pre-synaptic, those only the weight brings in post-synaptic."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:
        output = "".join(c for c in inputs if inputs.count(c) == 1)
    if "." in terms[operand]:
        return None
    others = "".join(term for i, term in enumerate(terms) if i != operand)
    pre = [i for i, c in enumerate(terms[operand]) if c in others and c not in output]
    post = [i for i, c in enumerate(terms[operand]) if c in output and c not in others]
    if not pre or not post:
        return None
    return Axes(name, "einsum", post=post[-1], pre=pre[0], whole="its weight is not a layer's")


def _groups(node: fx.Node) -> int:
    # conv(input, weight, bias, stride, padding, dilation, groups);
    # conv_transpose(input, weight, bias, stride, padding, output_padding, groups, dilation)
    value = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    return value if isinstance(value, int) else 1


# Operators (within `torch.vmap`, or of a graph that `torch.export` made) as what they are.
_OPERATORS: dict[str, object] = {
    **{function.__name__: function for function in (*_CONVS, *_TRANSPOSED)},
    "linear": F.linear, "matmul": torch.matmul, "mm": torch.mm, "bmm": torch.bmm, "mv": torch.mv,
    "addmm": torch.addmm, "einsum": torch.einsum, "t": "t", "transpose": "transpose",
    "permute": "permute", "view": "view", "_unsafe_view": "view", "expand": "expand",
}  # fmt: skip


def _function_of(target: object) -> object:
    if isinstance(target, torch._ops.OpOverload):
        return _OPERATORS.get(target._schema.name.removeprefix("aten::"), target)
    return target
