"""Fold rules: normalisation, whose parameters may differ between units that repeat."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from biofx.passes.folding.layout import Layout, Rep, Unfoldable, equal_units
from biofx.passes.folding.weights import shallow

if TYPE_CHECKING:
    from biofx.passes.folding.graph import Folding

_RANKS: dict[type[nn.Module], int] = {
    nn.BatchNorm1d: 0, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5,
    nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5,
}  # fmt: skip
_DIFFERS = "its parameters differ inside a group"


def by_channel(fold: "Folding", node: fx.Node) -> Rep:
    """Batch and instance normalisation (in evaluation mode): each channel for itself."""
    source, rep = _input(fold, node)
    module: Any = fold.submodules[str(node.target)]
    layout = rep.layout
    if not layout.repeats:
        return Rep(node, layout, rep.rank, rep.likely)
    rank = _RANKS[type(module)]
    if not rank:  # (batch, units) or (batch, units, time)
        guess = {-1: 2, -2: 3}.get(layout.axis)
        rank = fold.rank_of(source, node, "which axis it normalises", guess)
    if layout.axis != 1 - rank or layout.spread:
        raise Unfoldable("it normalises along another axis than what repeats")
    names = ("weight", "bias", "running_mean", "running_var")
    target = _narrow(fold, node, module, layout, names, num_features=layout.small)
    return fold.build(node, layout, rank=rep.rank, likely=rank, target=target)


def over_units(fold: "Folding", node: fx.Node) -> Rep:
    """Layer normalisation over the units: mean and variance are those of the small value."""
    _, rep = _input(fold, node)
    module: Any = fold.submodules[str(node.target)]
    layout = rep.layout
    if not layout.repeats:
        return Rep(node, layout, rep.rank, rep.likely)
    if layout.axis != -1 or len(module.normalized_shape) != 1 or layout.spread:
        raise Unfoldable("it normalises along another axis than what repeats")
    if layout.copies is None:
        raise Unfoldable("its inputs do not all repeat equally often")
    target = _narrow(
        fold, node, module, layout, ("weight", "bias"), normalized_shape=(layout.small,)
    )
    return fold.build(node, layout, rank=rep.rank, likely=rep.likely, target=target)


def over_groups(fold: "Folding", node: fx.Node) -> Rep:
    """Group normalisation whose groups hold whole groups of copies."""
    source, rep = _input(fold, node)
    module: Any = fold.submodules[str(node.target)]
    layout = rep.layout
    if not layout.repeats:
        return Rep(node, layout, rep.rank, rep.likely)
    rank = fold.rank_of(source, node, "which axis it normalises")
    copies = layout.copies
    if layout.axis != 1 - rank or layout.spread:
        raise Unfoldable("it normalises along another axis than what repeats")
    if copies is None or (layout.full // module.num_groups) % copies:
        raise Unfoldable("its groups of channels are not those that repeat")
    names = ("weight", "bias")
    target = _narrow(fold, node, module, layout, names, num_channels=layout.small)
    return fold.build(node, layout, rank=rank, likely=rank, target=target)


def prelu(fold: "Folding", node: fx.Node) -> Rep:
    """PReLU: one slope for all, or one per channel (axis 1)."""
    source, rep = _input(fold, node)
    module: Any = fold.submodules[str(node.target)]
    layout = rep.layout
    if not layout.repeats or module.num_parameters == 1:
        return fold.build(node, layout, rank=rep.rank, likely=rep.likely)
    rank = fold.rank_of(source, node, "which axis its slopes belong to")
    if layout.axis != 1 - rank or layout.spread:
        raise Unfoldable("its slopes run along another axis than what repeats")
    target = _narrow(fold, node, module, layout, ("weight",), num_parameters=layout.small)
    return fold.build(node, layout, rank=rank, likely=rank, target=target)


def _input(fold: "Folding", node: fx.Node) -> tuple[fx.Node, Rep]:
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        raise Unfoldable("it is called in an unusual way")
    return node.args[0], fold.rep(node.args[0])


def _narrow(
    fold: "Folding", node: fx.Node, module: Any, layout: Layout, names: tuple[str, ...],
    **sizes: Any,
) -> str:  # fmt: skip
    """The module on the small value, if its tensors are equal inside each group."""
    changed = shallow(module)
    for name in names:
        value: Tensor | None = getattr(module, name, None)
        if value is None:
            continue
        small = equal_units(value, layout)
        if small is None:
            raise Unfoldable(_DIFFERS)
        if isinstance(value, nn.Parameter):
            small = nn.Parameter(small, requires_grad=value.requires_grad)
        setattr(changed, name, small)
    for name, size in sizes.items():
        setattr(changed, name, size)
    return fold.hold(str(node.target), changed, (layout,))


FUNCTIONS: dict[Any, Any] = {}
METHODS: dict[str, Any] = {}
MODULES: dict[type[nn.Module], Any] = dict.fromkeys(_RANKS, by_channel) | {
    nn.LayerNorm: over_units,
    nn.GroupNorm: over_groups,
    nn.PReLU: prelu,
}
