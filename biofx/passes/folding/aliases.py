"""Which values are changed in place while something else still looks at them."""

import torch
from torch import fx, nn
from torch.nn import functional as F

from biofx.capture import inplace
from biofx.passes.expansion import group_repeat, group_sum

# Operations whose result shares no memory with their inputs. All others are taken to share it.
_FRESH_FUNCTIONS = {
    group_repeat, group_sum, torch.cat, torch.add, torch.sub, torch.mul, torch.div, torch.matmul,
    torch.relu, torch.sigmoid, torch.tanh, torch.mean, torch.sum,
    F.linear, torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
    F.relu, F.gelu, F.silu, F.sigmoid, F.tanh, F.leaky_relu, F.elu, F.softplus, F.hardswish,
    F.mish, F.batch_norm, F.layer_norm, F.softmax, F.log_softmax,
}  # fmt: skip
_FRESH_OPERATORS = frozenset({"add", "sub", "mul", "truediv", "matmul", "pow", "neg"})
_FRESH_METHODS = frozenset((
    "relu", "sigmoid", "tanh", "mean", "sum", "add", "sub", "mul", "div", "matmul", "clone",
    "size"
))  # fmt: skip
_FRESH_MODULES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Sigmoid,
    nn.Tanh, nn.Softplus, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AvgPool3d, nn.Embedding,
)  # fmt: skip


def changes_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node changes its arguments, or may: nobody knows what Python code does."""
    if node.op == "call_module":
        return any(
            getattr(module, "inplace", False)
            or module._forward_hooks
            or module._forward_pre_hooks
            or not type(module).__module__.startswith("torch.nn.modules.")
            for module in modules[str(node.target)].modules()
        )
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op == "call_function":
        if node.target in inplace.OPERATORS or node.target is inplace.setitem:
            return True
        name = getattr(node.target, "__name__", "")
        home = str(getattr(node.target, "__module__", None) or "torch")
        known = home.startswith(("torch", "_operator", "math", "builtins", "biofx."))
        return bool(
            not known
            or (name.endswith("_") and not name.endswith("__"))
            or node.kwargs.get("inplace")
            or "out" in node.kwargs
            or (True in node.args[1:] and name in _POSITIONAL_FLAG)
        )
    return False


# Functions that take `inplace` by position; a True among their arguments may be it.
_POSITIONAL_FLAG = frozenset((
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "mish", "hardswish",
    "hardsigmoid", "hardtanh", "threshold", "dropout", "alpha_dropout", "dropout1d",
    "dropout2d", "dropout3d", "feature_alpha_dropout", "rrelu"
))  # fmt: skip


def shared_and_changed(graph: fx.Graph, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """Values whose memory is changed in place while another name for it is used afterwards.

    Such values must stay what they are. Where only the changed value itself goes on, changing a
    copy is the same.
    """
    position = {node: i for i, node in enumerate(graph.nodes)}
    group: dict[fx.Node, set[fx.Node]] = {}
    changes: list[fx.Node] = []
    for node in graph.nodes:
        mine = {node}
        group[node] = mine
        in_place = changes_in_place(node, modules)
        if in_place:
            changes.append(node)
        if in_place or not _is_fresh(node, modules):
            for source in node.all_input_nodes:
                if group[source] is not mine:
                    small, large = sorted((mine, group[source]), key=len)
                    large |= small
                    for member in small:
                        group[member] = large
                    mine = large
    bad: set[fx.Node] = set()
    for change in changes:
        at = position[change]
        for name in group[change]:
            earlier = position[name] < at
            held = name.op in ("placeholder", "get_attr")
            if earlier and (held or any(position[user] > at for user in name.users)):
                bad |= group[change]
                break
    return bad


def _is_fresh(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules.get(str(node.target)), _FRESH_MODULES)
    if node.op == "call_method":
        return node.target in _FRESH_METHODS
    if getattr(node.target, "__module__", "") == "_operator":
        return getattr(node.target, "__name__", "") in _FRESH_OPERATORS
    return node.target in _FRESH_FUNCTIONS
