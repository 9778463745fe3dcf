"""Lower: the functions that biofx puts into graphs become torch's own."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.nn import functional as F

from biofx.capture import inplace
from biofx.errors import ExportError
from biofx.passes.expansion import group_repeat, group_sum
from biofx.passes.numbers import is_number


class Lower(PassBase):
    """The last pass of an export: graphs hold torch's functions only, and compute the same bits."""

    def call(self, graph_module: nn.Module) -> PassResult:
        for name, module in graph_module.named_modules():
            if isinstance(module, fx.GraphModule):
                _rewrite(module, name)
        return PassResult(graph_module, True)

    def ensures(self, graph_module: nn.Module) -> None:
        for module in graph_module.modules():
            if isinstance(module, fx.GraphModule):
                module.graph.lint()
                for node in module.graph.nodes:
                    owner = getattr(node.target, "__module__", None) or ""
                    assert not owner.startswith("biofx"), node.target


# Tensor methods behind the in-place operators; `@=` has none.
_METHODS: dict[Callable[..., Any], str] = {
    inplace.iadd: "add_", inplace.isub: "sub_", inplace.imul: "mul_", inplace.itruediv: "div_",
    inplace.ifloordiv: "floor_divide_", inplace.imod: "remainder_", inplace.ipow: "pow_",
    inplace.iand: "bitwise_and_", inplace.ior: "bitwise_or_", inplace.ixor: "bitwise_xor_",
}  # fmt: skip


def _rewrite(module: fx.GraphModule, name: str) -> None:
    graph = module.graph
    for node in list(graph.nodes):
        with graph.inserting_before(node):
            if node.target is group_sum:
                node.replace_all_uses_with(_sum(graph, *node.args))
            elif node.target is group_repeat:
                x, gamma, axis = node.args
                fresh = graph.call_method("repeat_interleave", (x, gamma), {"dim": axis})
                node.replace_all_uses_with(fresh)
            elif node.target is inplace.setitem:
                node.target = operator.setitem
                continue
            elif node.target in inplace.OPERATORS:
                node.replace_all_uses_with(_in_place(graph, node))
            elif node.op == "call_method" and node.target == "norm":
                # a Python function behind the method fills in its defaults; compilers see neither
                node.op, node.target = "call_function", torch.norm
                continue
            elif node.target is torch.addmm and _has_bias(module, node):
                # TorchScript takes addmm apart, which rounds once more; linear calls it whole
                bias, x, weight = node.args
                transposed = graph.call_method("t", (weight,))
                fresh = graph.call_function(F.linear, (x, transposed, bias))
                node.replace_all_uses_with(fresh)
            elif str(getattr(node.target, "__module__", "")).startswith("biofx"):
                raise ExportError(f"{name or 'the model'} uses {node.target}, a function of biofx")
            else:
                continue
        graph.erase_node(node)
    module.recompile()


def _has_bias(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an addmm adds a vector that the module holds."""
    if len(node.args) != 3 or node.kwargs:
        return False
    bias = node.args[0]
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensor = held.get(str(bias.target)) if isinstance(bias, fx.Node) else None
    return tensor is not None and tensor.dim() == 1


def _sum(graph: fx.Graph, x: fx.Node, gamma: int, axis: int) -> fx.Node:
    apart = graph.call_method("unflatten", (x, axis, [-1, gamma]))
    return graph.call_method("sum", (apart, axis if axis < 0 else axis + 1))


def _in_place(graph: fx.Graph, node: fx.Node) -> fx.Node:
    function: Any = node.target
    target, value = node.args
    if function is inplace.imatmul:
        return graph.call_function(operator.matmul, (target, value))
    if isinstance(target, fx.Node) and target.meta.get("biofx_kind") == "tensor":
        fresh = graph.call_method(_METHODS[function], (target, value))
        fresh.meta.update(node.meta)
        return fresh
    if isinstance(target, fx.Node) and is_number(target):
        return graph.call_function(getattr(operator, function.__name__[1:]), (target, value))
    # FX prints the statement `a += b`, which rebinds `a` where it is a number: give it another name
    alias = graph.call_function(operator.getitem, ((target,), 0))
    return graph.call_function(getattr(operator, function.__name__), (alias, value))
