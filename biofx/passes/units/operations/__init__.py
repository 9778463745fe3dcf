"""What each operation of torch's does to units: a table of functions over id tensors."""

from biofx.passes.units.operations import elementwise, moving, over_axes, products
from biofx.passes.units.operations.over_axes import (
    group_norm,
    layer_norm,
    over_space,
    unfold_windows,
)
from biofx.passes.units.operations.table import OPERATIONS, SHAPE_ONLY, words

__all__ = [
    "OPERATIONS",
    "SHAPE_ONLY",
    "elementwise",
    "group_norm",
    "layer_norm",
    "moving",
    "over_axes",
    "over_space",
    "products",
    "unfold_windows",
    "words",
]
