"""Small parameters that the same rules serve, bound together, and taken through a step together."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from biofx.plasticity.kernels.arena import Arena
from biofx.plasticity.rules.context import Count
from biofx.plasticity.rules.rule import Context, Rule
from biofx.plasticity.scheduler.arena_context import Alike, ArenaContext
from biofx.plasticity.scheduler.binding import Binding, ParameterStep


class ArenaBinding(Binding):
    """Small parameters and the rules that serve all of them.

    The state of each is a part of this binding's, so that parameters may be taken one by one at a
    step at which some have no gradient.

    Args:
        members: bindings of the parameters, with equal rules and settings.
        parameters: theirs.
        group: the param group that all of them are in.

    Attributes:
        names: of the parameters.
        ids: of each parameter and its param group.
        parted: whether members have taken a step one by one since.
    """

    def __init__(
        self,
        members: Sequence[Binding],
        parameters: Sequence[nn.Parameter],
        group: dict[str, Any],
    ) -> None:
        self.members = tuple(members)
        self.names = [member.name for member in members]
        self.parameters = tuple(parameters)
        self.group = group
        self.ids = frozenset((id(parameter), id(group)) for parameter in parameters)
        self.parted = False
        first = parameters[0]
        self.arena = Arena([parameter.shape for parameter in parameters], first.device)
        self.weight = self.arena.empty(first.dtype)
        self.grad = self.arena.empty(first.dtype)
        self.weights, self.grads = map(self.arena.views, (self.weight, self.grad))
        self._other: tuple[Tensor, list[Tensor]] | None = None
        self.plain: list[dict[str, Any]] = []
        self.matrices: list[dict[str, Tensor]] = []
        self.dealt = True
        pairs: list[tuple[Rule, Context]] = []
        for place, (rule, like) in enumerate(members[0].pairs):
            own = [member.pairs[place][1] for member in members]
            context = ArenaContext(
                synapses=Alike([context.synapses for context in own]),  # type: ignore[arg-type]
                rule=like.rule,
                shard=self.arena,  # type: ignore[arg-type]
                weight=self.weight,
                timing=like.timing,
                seed=like.seed,
                kernels=like.kernels,
                members=own,
                arena=self.arena,
            )
            self._adopt(context)
            self.plain.append(plain(context))
            pairs.append((rule, context))
        name = members[0].name
        if len(members) > 1:
            name = f"{name} (one of {len(members)} parameters)"
        super().__init__(name, self.arena, pairs)  # type: ignore[arg-type]
        self.corrected = members[0].corrected

    def _adopt(self, context: ArenaContext) -> None:
        """Lay the members' state out in matrices, of which they keep their parts."""
        for key, value in context.members[0].state.items():
            if not isinstance(value, Tensor):
                context.state[key] = value
                continue
            matrix = self.arena.empty(value.dtype)
            parts = [member.state[key] for member in context.members]
            torch._foreach_copy_(self.arena.views(matrix), parts)
            self._share(context, key, matrix)
        self.matrices.append({k: v for k, v in context.state.items() if isinstance(v, Tensor)})

    def _share(self, context: ArenaContext, key: str, matrix: Tensor) -> None:
        """Let the members have their parts of a matrix."""
        context.state[key] = matrix
        for member, part in zip(context.members, self.arena.views(matrix), strict=True):
            member.state[key] = part

    def load(self) -> None:
        """Copy the parameters, as they are now."""
        torch._foreach_copy_(self.weights, list(self.parameters))

    def turn(self) -> None:
        """Load into another matrix from now on: that of two which was not the last."""
        if self._other is None:
            matrix = self.arena.empty(self.weight.dtype)
            self._other = matrix, self.arena.views(matrix)
        last = self.weight, self.weights
        (self.weight, self.weights), self._other = self._other, last

    def store(self) -> None:
        """Copy what has become of the parameters back."""
        torch._foreach_copy_(list(self.parameters), self.weights)

    def gradients(self) -> list[Tensor] | None:
        """Those of the parameters; None if not all have one that can be laid out at this step."""
        dtype, device = self.weight.dtype, self.weight.device
        found = []
        for parameter, shape in zip(self.parameters, self.arena.shapes, strict=True):
            grad = parameter.grad
            if (
                grad is None
                or type(grad) is not Tensor
                or grad.dtype is not dtype
                or grad.layout is not torch.strided
                or grad.device != device
                or parameter.dtype is not dtype
                or parameter.shape != shape
                or not parameter.requires_grad
            ):
                return None
            found.append(grad)
        return found

    def part(self) -> None:
        """Members take a step one by one: tell them the last that there is to tell."""
        self.deal()
        self.stepped, self.parted = False, True

    def rejoined(self) -> bool:
        """Whether the members' states are still those that are laid out here."""
        for (_, shared), known in zip(self.pairs, self.plain, strict=True):
            for member in shared.members:  # type: ignore[attr-defined]
                if plain(member) != known or member.state.keys() != shared.state.keys():
                    return False
                for key, value in member.state.items():
                    if isinstance(value, Tensor) and not _holds(shared.state[key], value):
                        return False
        self.parted = False
        return True

    @override
    def parts(self, mask: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield from zip(self.names, self.arena.views(mask.contiguous()), strict=True)

    @override
    def note(self, site: ParameterStep) -> None:
        self.stepped, self.dealt = True, False
        self.expressions, self.factors = site.expressions, site.factors

    def deal(self, multiplied: bool = False) -> None:
        """Give the members what there is to tell of each.

        Args:
            multiplied: also the product of all factors, at the weights as they are now: for all
                members together it takes a fraction of the time.
        """
        if self.stepped:
            self._deal()
            products: Sequence[Tensor | None] = [None] * len(self.members)
            if multiplied:
                products = self.arena.views(self._product())
            for member, own in zip(self.members, products, strict=True):
                member.product = own

    def _product(self) -> Tensor:
        self.load()
        product = torch.ones(self.arena.size, dtype=torch.float32, device=self.weight.device)
        index = self.arena.index(self.weight.device)
        for expression in self.expressions:
            product *= expression.function(self.weight.float(), index, **expression.inputs)
        for factor in self.factors:
            product = product * factor
        return product

    def _deal(self) -> None:
        if self.dealt:
            return
        self.dealt = True
        views = self.arena.views
        for place, member in enumerate(self.members):
            row = sum(self.arena.rows[:place])

            def part(value: Any, place: int = place, row: int = row) -> Any:
                if isinstance(value, Count):
                    assert value.mask is not None
                    return Count(views(value.mask)[place])
                if not isinstance(value, Tensor) or not value.dim():
                    return value
                if value.shape == (self.arena.size[0], 1):
                    return value[row, 0]
                return views(value.expand(self.arena.size))[place]

            step = ParameterStep(
                member, self.weights[place], None, self.parameters[place], self.group
            )
            step.expressions = [
                expression._replace(inputs={k: part(v) for k, v in expression.inputs.items()})
                for expression in self.expressions
            ]
            step.factors = [part(factor) for factor in self.factors]
            member.note(step)
            member.numbers.update({key: part(value) for key, value in self.numbers.items()})
            for (_, shared), (_, context) in zip(self.pairs, member.pairs, strict=True):
                counts = {k: part(v) for k, v in shared.memo.items() if isinstance(v, Count)}
                context.memo.update(counts)

    def tell(self) -> None:
        """Give the members what has changed of the rules' states but in the matrices' memory."""
        for (_, shared), known, laid in zip(self.pairs, self.plain, self.matrices, strict=True):
            now: dict[str, Any] = {}
            for key, value in shared.state.items():
                if not isinstance(value, Tensor):
                    now[key] = value
                # A rule of a user's own may have made a tensor, or put another in its place.
                elif value is not laid.get(key):
                    laid[key] = value.expand(self.arena.size).contiguous()
                    self._share(shared, key, laid[key])  # type: ignore[arg-type]
            if now != known:
                known.update(now)
                for member in shared.members:  # type: ignore[attr-defined]
                    member.state.update(now)


def _holds(matrix: Tensor, part: Tensor) -> bool:
    """Whether a tensor lies in the memory of a matrix."""
    return part.untyped_storage().data_ptr() == matrix.untyped_storage().data_ptr()


def plain(context: Context) -> dict[str, Any]:
    """The part of a rule's state that are no tensors."""
    return {key: value for key, value in context.state.items() if not isinstance(value, Tensor)}
