"""Which values of a graph are plain numbers."""

import operator

from torch import fx


def is_number(node: fx.Node) -> bool:
    """Whether a node certainly gives no tensor: a size, a dtype, or arithmetic on sizes."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel"):
        return len(node.args) > 1 or node.target != "size"
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        source = node.args[0]
        return (source.target is getattr and source.args[1] == "shape") or (
            source.op == "call_method" and source.target == "size"
        )
    if node.target is getattr and node.args[1] in ("dtype", "device"):
        return True
    if getattr(node.target, "__module__", "") == "_operator":
        return bool(node.all_input_nodes) and all(map(is_number, node.all_input_nodes))
    return False
