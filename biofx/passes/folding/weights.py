"""Fold rules: weight layers, which take each repeated value once."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from biofx.passes.expansion import group_sum
from biofx.passes.folding.layout import Layout, Rep, Unfoldable, equal_units, sum_columns
from biofx.passes.inline import PATH

if TYPE_CHECKING:
    from biofx.passes.folding.graph import Folding

_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"
)  # fmt: skip
_SPATIAL: dict[Any, int] = {
    torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3,
    torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3,
    nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3,
    F.linear: 0, nn.Linear: 0,
}  # fmt: skip
_TRANSPOSED = {
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
}  # fmt: skip


@dataclass
class _Op:
    """One application of a weight."""

    spatial: int
    transposed: bool
    source: Any
    weight: Tensor
    bias: Tensor | None
    groups: int

    @property
    def axis(self) -> int:
        """Axis of the units, of inputs as of outputs."""
        return -self.spatial - 1

    @property
    def units(self) -> int:
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]

    @property
    def inputs(self) -> int:
        """Axis of the weight over inputs."""
        return 0 if self.transposed else 1


def function(fold: "Folding", node: fx.Node) -> Rep:
    """`F.linear`, `torch.conv2d` and the like, on parameters or sums of them."""
    target: Any = node.target
    names = _TRANSPOSED_ARGUMENTS if target in _TRANSPOSED else _CONV_ARGUMENTS
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    weight, bias = fold.constant(given["weight"]), fold.constant(given.get("bias"))
    if weight is None or (bias is None) != (given.get("bias") is None):
        raise Unfoldable("its weight is computed")
    groups = given.get("groups", 1)
    op = _Op(_SPATIAL[target], target in _TRANSPOSED, given["input"], weight, bias, groups)
    rep, new = _absorb(fold, node, op)
    absorbs = rep is not None and rep.layout.repeats
    key = rep.layout if rep is not None and absorbs else None
    for name, before, after in (("weight", weight, new.weight), ("bias", bias, new.bias)):
        reader = given.get(name)
        if isinstance(reader, fx.Node) and after is not None:
            if after is not before or _is_sum(reader):
                source, sums = _origin(reader)
                same = after is before
                given[name] = fold.tensor(source, after, (None if same else key, *sums), node)
            path = node.meta.get(PATH, "")
            if _is_sum(reader) and path not in fold.summed:
                fold.summed.append(path)
    if new.groups != groups:
        given["groups"] = new.groups
    given["input"] = fold.small(given["input"])
    if rep is None or not rep.layout.repeats:
        node.args, node.kwargs = (), given
        return _result(fold, node, op, new, node, rep)
    with fold.graph.inserting_before(node):
        fresh = fold.graph.call_function(target, (), given)
    fresh.meta.update(node.meta)
    return _result(fold, node, op, new, fresh, rep)


def layer(fold: "Folding", node: fx.Node) -> Rep:
    """`nn.Linear`, `nn.Conv2d` and the like."""
    module: Any = fold.submodules[str(node.target)]
    kind = type(module)
    if len(node.args) != 1 or node.kwargs:
        raise Unfoldable("it is called in an unusual way")
    groups = getattr(module, "groups", 1)
    op = _Op(_SPATIAL[kind], kind in _TRANSPOSED, node.args[0], module.weight, module.bias, groups)
    rep, new = _absorb(fold, node, op)
    if rep is None or not rep.layout.repeats:
        return _result(fold, node, op, new, node, rep)
    changed = shallow(module)
    changed.weight = nn.Parameter(new.weight, requires_grad=module.weight.requires_grad)
    if new.bias is not None and new.bias is not module.bias:
        changed.bias = nn.Parameter(new.bias, requires_grad=module.bias.requires_grad)
    if op.spatial:
        changed.groups = new.groups
        changed.in_channels = new.weight.shape[0 if op.transposed else 1] * (
            1 if op.transposed else new.groups
        )
        changed.out_channels = new.units
    else:
        changed.in_features = new.weight.shape[1]
    target = fold.hold(str(node.target), changed, (rep.layout,))
    with fold.graph.inserting_before(node):
        fresh = fold.graph.create_node("call_module", target, (rep.node,))
    fresh.meta.update(node.meta)
    return _result(fold, node, op, new, fresh, rep)


def shallow(module: Any) -> Any:
    """A module of its own over the same tensors."""
    fresh = copy.copy(module)
    for registry in ("_parameters", "_buffers", "_modules"):
        fresh.__dict__[registry] = dict(module.__dict__[registry])
    return fresh


def _absorb(fold: "Folding", node: fx.Node, op: _Op) -> tuple[Rep | None, _Op]:
    """The operation on the small value of its input, and that input's Rep."""
    rep = fold.reps.get(op.source) if isinstance(op.source, fx.Node) else None
    if rep is None or not rep.layout.repeats:
        return rep, op
    layout = rep.layout
    if layout.axis != op.axis:
        raise Unfoldable("its inputs run along another axis than what repeats")
    if op.groups == 1:
        weight, groups = sum_columns(op.weight, layout, op.inputs), 1
        return rep, _Op(op.spatial, op.transposed, op.source, weight, op.bias, groups)
    copies = layout.copies
    per_group = layout.full // op.groups
    if copies is None or layout.spread:
        raise Unfoldable("its groups of channels are not those that repeat")
    if per_group % copies == 0:
        share = Layout(layout.axis, ((per_group // copies, copies),))
        summed = layout if op.transposed else share
        weight = sum_columns(op.weight, summed, op.inputs)
        return rep, _Op(op.spatial, op.transposed, op.source, weight, op.bias, op.groups)
    if per_group == 1 and op.units == op.groups and not op.transposed:
        small = equal_units(op.weight, layout)
        bias = equal_units(op.bias, layout) if op.bias is not None else None
        if small is not None and (bias is None) == (op.bias is None):
            return rep, _Op(op.spatial, False, op.source, small, bias, layout.small)
        raise Unfoldable("it treats each channel apart, and its weights differ inside a group")
    raise Unfoldable("its groups of channels are not those that repeat")


def _result(
    fold: "Folding", node: fx.Node, old: _Op, new: _Op, fresh: fx.Node, rep: Rep | None
) -> Rep:
    likely = (rep.likely if rep is not None else None) if old.spatial == 0 else old.spatial + 2
    rank = rep.rank if rep is not None else None
    likely = fold.ranks.get(node) or likely
    if rep is None or not rep.layout.repeats:
        return Rep(fresh, Layout(old.axis, ((old.units, 1),)), rank, likely)
    if old.groups != new.groups:  # channel by channel: what repeated goes on repeating
        return Rep(fresh, rep.layout, rank, likely, rep.origins)
    fold.absorbed[node.meta.get(PATH, "")] |= rep.origins
    return Rep(fresh, Layout(old.axis, ((old.units, 1),)), rank, likely)


def _is_sum(reader: Any) -> bool:
    return isinstance(reader, fx.Node) and reader.target is group_sum


def _origin(reader: fx.Node) -> tuple[str, tuple[Any, ...]]:
    """The parameter behind sums of it, and what was summed."""
    sums: tuple[Any, ...] = ()
    while _is_sum(reader):
        sums += (reader.args[1:],)
        reader = reader.args[0]  # type: ignore[assignment]
    return str(reader.target), sums


FUNCTIONS: dict[Any, Any] = {key: function for key in _SPATIAL if not isinstance(key, type)}
METHODS: dict[str, Any] = {}
MODULES: dict[type[nn.Module], Any] = {
    key: layer for key in _SPATIAL if isinstance(key, type) and issubclass(key, nn.Module)
}
