"""Folding of one flat graph: values that repeat are carried as small values, as far as rules go."""

import operator
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import _assign_attr

from biofx.passes.expansion import group_repeat, group_sum
from biofx.passes.folding import RULES_OF_FUNCTIONS, RULES_OF_METHODS, RULES_OF_MODULES
from biofx.passes.folding.aliases import shared_and_changed
from biofx.passes.folding.layout import Layout, Rep, Replaced, Unfoldable, repeat_in_full
from biofx.passes.inline import PATH

Rule = Callable[["Folding", fx.Node], Rep]


class Folding:
    """The rewriting of one graph.

    Attributes:
        reps: {node: Rep} of the values whose layout is known.
        summed, absorbed, unfolded: as in `FoldReport`.
    """

    def __init__(self, module: fx.GraphModule, ranks: Mapping[fx.Node, int | None]) -> None:
        self.module = module
        self.graph = module.graph
        self.ranks = ranks
        self.reps: dict[fx.Node, Rep] = {}
        self.summed: list[str] = []
        self.absorbed: dict[str, set[str]] = defaultdict(set)
        self.unfolded: dict[str, str] = {}
        self.submodules = {
            str(node.target): module.get_submodule(str(node.target))
            for node in self.graph.nodes
            if node.op == "call_module"
        }
        self._fixed = shared_and_changed(self.graph, self.submodules)
        self._full: dict[tuple[fx.Node, Layout], fx.Node] = {}
        self._constants: dict[fx.Node, Tensor | None] = {}
        self._made: dict[str, tuple[str, Any]] = {}  # target of ours: (original target, object)
        self._known: dict[tuple[Any, ...], str] = {}

    def run(self) -> None:
        """Rewrite the graph, and the tensors and modules that it holds."""
        for node in list(self.graph.nodes):
            self._visit(node)
        self._erase()
        self._settle()
        self.module.recompile()

    # --- one node -----------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        if node.op in ("placeholder", "get_attr") or self.constant(node) is not None:
            return
        repeating = [n for n in node.all_input_nodes if n in self.reps and self._repeats(n)]
        try:
            if node in self._fixed and (repeating or node.target is group_repeat):
                raise Unfoldable("it may be changed in place while it is used elsewhere")
            rep = self._rule(node)(self, node)
        except Replaced:
            self.graph.erase_node(node)
            return
        except Unfoldable as reason:
            at = f" (at {self.describe(node)})" if node.op != "output" else ""
            if node.target is group_repeat:
                self.unfolded.setdefault(node.meta.get(PATH, ""), f"{reason}")
            for source in repeating:
                for origin in self.reps[source].origins:
                    self.unfolded.setdefault(origin, f"{reason}{at}")
                node.replace_input_with(source, self.in_full(source))
            return
        rep = replace(rep, likely=rep.likely or self.ranks.get(node))
        self.reps[node] = rep
        if rep.node is not node and not rep.layout.repeats:
            node.replace_all_uses_with(rep.node)
            self.reps[rep.node] = rep

    def _repeats(self, node: fx.Node) -> bool:
        return self.reps[node].layout.repeats

    def _rule(self, node: fx.Node) -> Rule:
        rule: Rule | None = None
        if node.op == "call_module":
            module = self.submodules[str(node.target)]
            if not (module._forward_hooks or module._forward_pre_hooks):
                rule = RULES_OF_MODULES.get(type(module))
        elif node.op == "call_method":
            rule = RULES_OF_METHODS.get(str(node.target))
        elif node.op == "call_function":
            rule = RULES_OF_FUNCTIONS.get(node.target)
        elif node.op == "output":
            raise Unfoldable("the model returns it")
        if rule is None:
            raise Unfoldable("nothing is known about what it keeps")
        return rule

    def in_full(self, node: fx.Node) -> fx.Node:
        """The full value of a node that is carried small."""
        rep = self.reps[node]
        key = (rep.node, rep.layout)
        if key not in self._full:
            with self.graph.inserting_before(rep.node.next):
                self._full[key] = repeat_in_full(self.graph, rep, self._hold_index)
        return self._full[key]

    def describe(self, node: fx.Node) -> str:
        """A node as people know it: the module's name, or the function's."""
        if node.op == "call_module":
            kind = type(self.submodules[str(node.target)]).__name__
            return f"{node.meta[PATH]} ({kind})"
        name = getattr(node.target, "__name__", str(node.target))
        path = node.meta.get(PATH, "")
        return f"{name} in {path}" if path else name

    # --- for rules ----------------------------------------------------------------------------

    def rep(self, value: Any) -> Rep:
        """What is known about a value.

        Raises:
            Unfoldable: nothing is.
        """
        if not isinstance(value, fx.Node) or value not in self.reps:
            raise Unfoldable("nothing is known about the other value that goes into it")
        return self.reps[value]

    def constant(self, node: Any) -> Tensor | None:
        """The value of a parameter, or of a sum of one; None for anything else."""
        if not isinstance(node, fx.Node):
            return None
        if node not in self._constants:
            self._constants[node] = self._evaluate(node)
        return self._constants[node]

    def _evaluate(self, node: fx.Node) -> Tensor | None:
        if node in self._fixed:
            return None
        if node.op == "get_attr":
            value = self._held(str(node.target))
            return value.detach() if isinstance(value, nn.Parameter) else None
        if node.target is group_sum:
            summand = self.constant(node.args[0])
            sizes: Any = node.args[1:]
            return group_sum(summand, *sizes) if summand is not None else None
        return None

    def build(
        self, node: fx.Node, layout: Layout, *, rank: int | None = None, likely: int | None = None,
        op: str | None = None, target: Any = None, args: Any = None, kwargs: Any = None,
    ) -> Rep:  # fmt: skip
        """The node's operation on small values; the node itself if none of its inputs repeats."""
        used = [self.reps[n] for n in node.all_input_nodes if n in self.reps]
        repeating = [rep for rep in used if rep.layout.repeats]
        if not repeating:
            return Rep(node, layout, rank, likely)
        args = self.small(node.args) if args is None else args
        kwargs = self.small(node.kwargs) if kwargs is None else kwargs
        with self.graph.inserting_before(node):
            fresh = self.graph.create_node(op or node.op, target or node.target, args, kwargs)
        fresh.meta.update(node.meta)
        origins = frozenset(o for rep in repeating for o in rep.origins)
        return Rep(fresh, layout, rank, likely, origins)

    def small(self, arguments: Any) -> Any:
        """Arguments with every value that repeats replaced by its small one."""
        return fx.node.map_arg(
            arguments, lambda n: self.reps[n].node if n in self.reps and self._repeats(n) else n
        )

    def rank_of(self, source: fx.Node, at: fx.Node, why: str, guess: int | None = None) -> int:
        """The rank of a value; if it is only likely (or a guess), the graph will assert it.

        Raises:
            Unfoldable: it is not known at all, or the value does not repeat anyway.
        """
        rep = self.rep(source)
        if rep.rank is not None:
            return rep.rank
        likely = rep.likely or guess
        if likely is None or not rep.layout.repeats:
            raise Unfoldable(f"{why} depends on the number of dimensions; give example_inputs")
        with self.graph.inserting_before(at):
            dim = self.graph.call_method("dim", (rep.node,))
            same = self.graph.call_function(operator.eq, (dim, likely))
            message = (
                f"exported with fold=True for inputs that give {self.describe(at)} "
                f"{likely} dimensions; export with fold=False for others"
            )
            self.graph.call_function(torch._assert, (same, message))
        self.reps[source] = replace(rep, rank=likely)
        return likely

    def hold(self, original: str, value: Any, key: tuple[Any, ...]) -> str:
        """Keep a new tensor or module in the place of `original`; gives its target for now."""
        known = self._known.get((original, *key))
        if known is None:
            known = self._known[(original, *key)] = f"_folded_{len(self._made)}"
            self._made[known] = (original, value)
        return known

    def tensor(self, original: str, value: Tensor, key: tuple[Any, ...], at: fx.Node) -> fx.Node:
        """A node that reads a new tensor in the place of the parameter `original`."""
        like = self._held(original)
        if isinstance(like, nn.Parameter):
            value = nn.Parameter(value, requires_grad=like.requires_grad)
        with self.graph.inserting_before(at):
            return self.graph.create_node("get_attr", self.hold(original, value, key))

    def _hold_index(self, index: list[int]) -> fx.Node:
        # on the device of the weights, as nothing else tells
        device = next((p.device for p in self.module.parameters()), None)
        name = self.hold("folded_index", torch.tensor(index, device=device), tuple(index))
        return self.graph.create_node("get_attr", name)

    # --- the end ------------------------------------------------------------------------------

    def _held(self, target: str) -> Any:
        if target in self._made:
            return self._made[target][1]
        owner, _, name = target.rpartition(".")
        try:
            return getattr(self.module.get_submodule(owner), name)
        except AttributeError:
            return None

    def _erase(self) -> None:
        for node in reversed(list(self.graph.nodes)):
            ours = node in self.reps or node.op == "get_attr" or node.target is group_sum
            if ours and not node.users:
                self.graph.erase_node(node)

    def _settle(self) -> None:
        """Give what was made its final name: the original's where nothing else needs that."""
        made: dict[str, list[str]] = defaultdict(list)
        for temporary, (original, _) in self._made.items():
            made[original].append(temporary)
        used = {str(n.target) for n in self.graph.nodes if n.op in ("get_attr", "call_module")}
        final: dict[str, str] = {}
        for original, candidates in made.items():
            alive = [name for name in candidates if name in used]
            taken = any(
                other == original
                or other.startswith(f"{original}.")
                or (other in self.submodules and original.startswith(f"{other}."))
                for other in used
            )
            for i, name in enumerate(alive):
                stem = f"{original.replace('.', '_')}_folded"
                alone = not taken and len(alive) == 1
                final[name] = original if alone else f"{stem}_{i}" if i else stem
        held = {}
        for node in self.graph.nodes:
            if node.op in ("get_attr", "call_module"):
                value = self._held(str(node.target)) if node.op == "get_attr" else None
                if node.op == "call_module":
                    made_here = self._made.get(str(node.target))
                    value = made_here[1] if made_here else self.submodules[str(node.target)]
                node.target = final.get(str(node.target), str(node.target))
                held[node.target] = value
        for registry in (self.module._modules, self.module._parameters, self.module._buffers):
            registry.clear()
        for target in sorted(held, key=lambda name: name.count(".")):
            _assign_attr(held[target], self.module, target)
