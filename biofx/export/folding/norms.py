"""Folding: normalisation, whose parameters may differ between units that repeat."""

from typing import Any

from torch import fx, nn

from biofx.export.folding.analysis import Analysis, Edit
from biofx.export.folding.elementwise import unrepeated
from biofx.export.folding.layout import Rep, Unfoldable, equal_units

NORM_RANKS: dict[Any, int] = {
    nn.BatchNorm1d: 0, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5,
    nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5,
}  # fmt: skip
PER_UNIT = ("weight", "bias", "running_mean", "running_var")


def norm(analysis: Analysis, node: fx.Node) -> Rep | None:
    """Normalisation (in evaluation mode), whose parameters must be equal for equal units."""
    source: Any = node.args[0] if node.args else None
    if not analysis.repeats(node):
        return unrepeated(analysis, node)
    module = analysis.module(node)
    rep = analysis.rep(source)
    layout = rep.layout
    if isinstance(module, nn.LayerNorm):
        if layout.axis != -1 or len(module.normalized_shape) != 1 or layout.spread:
            raise Unfoldable("it normalises along another axis than what repeats")
        if layout.copies is None:
            raise Unfoldable("its inputs do not all repeat equally often")
    else:
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return rep
        guess = {-1: 2, -2: 3}.get(layout.axis) if isinstance(module, nn.BatchNorm1d) else None
        rank = NORM_RANKS.get(type(module)) or analysis.rank_of(
            source, "which axis it normalises", guess
        )
        if layout.axis != 1 - rank or layout.spread:
            raise Unfoldable("it normalises along another axis than what repeats")
    if isinstance(module, nn.GroupNorm):
        copies = layout.copies
        if copies is None or layout.full // module.num_groups % copies:
            raise Unfoldable("its groups of channels are not those that repeat")
    for name in PER_UNIT:
        value = getattr(module, name, None)
        if value is not None and equal_units(value, layout) is None:
            raise Unfoldable("its parameters differ inside a group")
    analysis.use(node, Edit("units", layout), rep)
    return rep
