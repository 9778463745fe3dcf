"""The parameters that a module holds itself and its graph uses as weights: `x @ self.w`."""

import operator
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import fx, nn
from torch.nn import functional as F

from biofx.capture import Captured
from biofx.synapses import Axes

# Weight ops; of a convolution, its spatial dimensions.
_CONVS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_TRANSPOSED = {torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3}
_PRODUCTS = {torch.matmul, operator.matmul, torch.mm, torch.bmm, "matmul", "mm", "bmm"}
_SWAPS = {"t", "transpose", "permute", torch.t, torch.transpose, torch.permute}
# Where these functions take their weight.
_WEIGHT_AT: dict[object, int] = {
    F.linear: 1, **dict.fromkeys((*_CONVS, *_TRANSPOSED), 1), F.embedding: 1, F.bilinear: 2,
}  # fmt: skip
_LAYOUT = {"to", "contiguous", "type_as", "clone", "float", "half"}  # and these keep its axes


def used_directly(module: Captured) -> dict[str, Axes]:
    """Axes of the parameters that a module holds itself and its graph uses as weights."""
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    found: dict[str, Axes] = {}
    if not any(parameter.ndim >= 2 for parameter in own.values()):
        return found
    weights: set[fx.Node] = set()  # what is made of parameters alone
    for node in module.graph.nodes:
        inputs = node.all_input_nodes[: 1 if node.target in _LAYOUT else None]
        of_weights = inputs and node.op != "call_module" and weights.issuperset(inputs)
        if of_weights or (node.op == "get_attr" and _is_parameter(module, str(node.target))):
            weights.add(node)
    # a product of weights is a weight: first see what meets data
    for node in sorted(module.graph.nodes, key=weights.__contains__):
        if node.op not in ("call_function", "call_method"):
            continue
        keyword = (_WEIGHT_AT.get(node.target, 1), node.kwargs.get("weight"))
        for position, argument in (*enumerate(node.args), keyword):
            for name, swaps in _made_of(argument, weights):
                if name in own and own[name].ndim >= 2 and name not in found:
                    axes = _axes_in(node, position, name, own[name].ndim)
                    axes = axes and _through(swaps, axes, own[name].ndim)
                    if axes is not None:
                        found[name] = axes
    return found


def _is_parameter(module: nn.Module, target: str) -> bool:
    owner, _, name = target.rpartition(".")
    try:
        return module.get_submodule(owner)._parameters.get(name) is not None
    except AttributeError:
        return False


def _made_of(
    value: object, weights: set[fx.Node], swaps: tuple[fx.Node, ...] = ()
) -> Iterator[tuple[str, tuple[fx.Node, ...]]]:
    """The parameters that a weight is made of, each with the transposes on the way to it.

    A product of two weights has the rows of the one and the columns of the other; both have its
    orientation.
    """
    if not isinstance(value, fx.Node) or value not in weights:
        return
    if value.op == "get_attr":
        yield str(value.target), swaps
    elif not value.args:  # called by keywords
        return
    elif value.target in _SWAPS or _swapping_attribute(value):
        yield from _made_of(value.args[0], weights, (*swaps, value))
    elif value.target in _LAYOUT:
        yield from _made_of(value.args[0], weights, swaps)
    elif value.target in _PRODUCTS:
        for factor in value.args[:2]:
            yield from _made_of(factor, weights, swaps)


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
    if node.target in ("permute", torch.permute):
        return [order[axis] for axis in axes] if len(axes) == ndim else None  # type: ignore[index]
    first, second = axes
    order[first], order[second] = order[second], order[first]  # type: ignore[index]
    return order


def _axes_in(node: fx.Node, position: int, name: str, ndim: int) -> Axes | None:
    whole = "its weight is not a layer's"
    target = node.target
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
    if not arrow or "." in terms[operand]:
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
