"""One node of the graph while units are followed through it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from biofx.capture.location import place_of
from biofx.passes.units.flow import Flow
from biofx.passes.units.ids import CONSTANT, DATA, Ids, code, full, repeats, tensors


class Step:
    """A node, with the ids of its arguments.

    Attributes:
        flow: what is found out.
        root: the model.
        node, name: the node, and the name of its operation.
        what: the operation and its place in the user's code, for people.
        taken: arguments whose units are accounted for; see `finish`.
        claimed: arguments whose entries belong to units where this operation uses them.
    """

    def __init__(self, flow: Flow, root: nn.Module, names: "Names", node: fx.Node, name: str):
        self.flow, self.root, self.names, self.node, self.name = flow, root, names, node, name
        place = place_of(node)
        self.what = f"{name} ({place})" if place else name
        self.taken: set[fx.Node] = set()
        self.claimed: set[fx.Node] = set()

    # --- values and shapes ----------------------------------------------------------------------

    def ids(self, value: Any) -> Ids:
        """The ids of an argument: whoever asks for them accounts for its units."""
        if isinstance(value, fx.Node):
            self.taken.add(value)
            return self.flow.values.get(value, DATA)
        if isinstance(value, list | tuple):
            return tuple(self.ids(item) for item in value)
        return CONSTANT

    def take_shapes(self, where: slice) -> None:
        """Account for the arguments of which only the shape or the type matters."""
        given = [*self.node.args, *self.node.kwargs.values()][where]
        shapes = [value for value in given if isinstance(value, fx.Node)]
        self.taken.update(shapes)
        self.claimed.update(shapes)

    def weights(self) -> frozenset[str]:
        """The tensors of the model that the arguments are made of, but for those claimed."""
        made = (
            self.flow.weights.get(n) for n in self.node.all_input_nodes if n not in self.claimed
        )
        return frozenset().union(*filter(None, made))

    def finish(self, result: Ids) -> Ids:
        """Give up on the units of each argument that nothing has accounted for.

        So an operation may take tensors that its entry in the table knows nothing of: an index, a
        mask, a grid, a scale.
        """
        rest = [self.flow.values[n] for n in self.node.all_input_nodes if n not in self.taken]
        self.flow.lose(rest, f"{self.what} takes them beside its input")
        mixed = any(tensors(ids) or code(ids) == DATA for ids in rest)
        return DATA if mixed and not tensors(result) and code(result) == CONSTANT else result

    def unknown(self) -> Ids:
        """Give up on all units that come in."""
        return self.flow.unknown([self.ids(node) for node in self.node.all_input_nodes], self.what)

    def shape(self, default: Sequence[int] | None = None) -> torch.Size:
        """The shape of the result."""
        found = shape_of(self.node)
        if found is None:
            if default is None:
                raise UnknownShape
            return torch.Size(default)
        return found

    def shape_of(self, value: Any) -> torch.Size:
        """The shape of an argument."""
        ids = self.flow.values.get(value)
        found = ids.shape if isinstance(ids, Tensor) else shape_of(value)
        if found is None:
            raise UnknownShape
        return found

    def shapes(self) -> list[torch.Size]:
        """The shapes of the results."""
        meta = self.node.meta.get("tensor_meta")
        if meta is None:
            raise UnknownShape
        return [meta.shape] if hasattr(meta, "shape") else [part.shape for part in meta]

    def rank(self, value: Any) -> int:
        """The number of axes of an argument."""
        ids = self.flow.values.get(value) if isinstance(value, fx.Node) else None
        if isinstance(ids, Tensor):
            return ids.dim()
        shape = shape_of(value) if isinstance(value, fx.Node) else None
        if shape is None:
            raise UnknownShape
        return len(shape)

    # --- running on ids -------------------------------------------------------------------------

    def run(self, *args: Any, **kwargs: Any) -> Ids:
        """Run the operation itself on ids: it moves what it is given first."""
        moved = args[0] if args else next(iter(kwargs.values()))
        if isinstance(moved, fx.Node) and {*self.node.all_input_nodes} != {moved}:
            return self.unknown()  # a tensor says where to

        def given(value: Any) -> Any:
            if isinstance(value, fx.Node):
                ids = self.ids(value)
                if isinstance(ids, Tensor):
                    return ids
                shape = shape_of(value)
                if shape is None:
                    raise UnknownShape
                return full(ids, shape)
            if isinstance(value, list | tuple):
                return type(value)(given(item) for item in value)
            return value

        arguments = [given(value) for value in args]
        named = {key: given(value) for key, value in kwargs.items()}
        if self.node.op == "call_method":
            function: Callable[..., Any] = getattr(torch.Tensor, self.name)
        else:
            function = self.node.target  # type: ignore[assignment]
        result = function(*arguments, **named)
        return result if isinstance(result, Tensor) else tuple(result)

    # --- indices --------------------------------------------------------------------------------

    def constant(self, value: Any) -> Any:
        """An index whose values are known: a list, or a tensor of the model."""
        if isinstance(value, list):
            return torch.tensor(value) if all(isinstance(v, int) for v in value) else None
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        held = attribute(self.root, str(value.target))
        if isinstance(held, Tensor) and not held.is_floating_point() and not held.is_meta:
            return held.detach().cpu()
        return None

    def axes_of_index(self, place: Any) -> int:
        """How many axes of a tensor one entry of an index takes."""
        if place is None or place is Ellipsis or isinstance(place, bool):
            return 0
        meta = place.meta.get("tensor_meta") if isinstance(place, fx.Node) else None
        if meta is not None and meta.dtype in (torch.bool, torch.uint8):
            return len(meta.shape)
        return 1

    def any_place(self, place: fx.Node, count: int) -> list[Tensor]:
        """Indices of the right shape into axes along which it does not matter where."""
        meta = place.meta.get("tensor_meta")
        if meta is None:
            raise UnknownShape
        if meta.dtype in (torch.bool, torch.uint8):
            return [torch.zeros(1, dtype=torch.int64)] * count
        return [torch.zeros(meta.shape, dtype=torch.int64)]

    # --- parameters -----------------------------------------------------------------------------

    def parameter(self, value: Any) -> tuple[str, Tensor] | None:
        """(name, tensor) of an argument that is a tensor of the model as it stands."""
        if isinstance(value, fx.Node) and value.op == "get_attr":
            held = attribute(self.root, str(value.target))
            if isinstance(held, Tensor):
                return self.names.of(held, str(value.target)), held
        return None

    def claim_parameter(self, role: str, value: Any, ids: Ids, axis: int | None = None) -> None:
        """Note the entries of a parameter that scales or shifts units.

        Args:
            role: one of `VECTORS`.
            value: the argument; nothing is done unless it is a tensor of the model.
            ids: of what it acts on, broadcast with it from the right.
            axis: the axis of `ids` along which a vector runs.
        """
        found = self.parameter(value)
        if found is None or not isinstance(ids, Tensor):
            return
        name, held = found
        if self.claim_vector(role, name, held, ids, axis):
            self.claimed.add(value)

    def claim_vector(
        self, role: str, name: str, held: Tensor, ids: Tensor, axis: int | None = None
    ) -> bool:
        """Note the entries of a tensor that belong to units; whether they do."""
        if not held.is_floating_point():
            return False
        if role in ("scale", "shift", "other") and not isinstance(held, nn.Parameter):
            role = "constant"
        layer = name.rpartition(".")[0]
        if axis is not None and held.dim() == 1:
            column = self.flow.columns(ids, axis, held.shape[0], self.what)
            self.flow.claim(role, layer, name, 0, column)
            return True
        if held.dim() > ids.dim():
            return False
        offset = ids.dim() - held.dim()
        axes = [
            own
            for own in range(held.dim())
            if held.shape[own] > 1 and not repeats(ids, [own + offset])
        ]
        if len(axes) == 1:
            column = self.flow.columns(ids, axes[0] + offset, held.shape[axes[0]], self.what)
            self.flow.claim(role, layer, name, axes[0], column)
        return len(axes) == 1

    def share(self, ids: Ids, axes: Sequence[int]) -> None:
        """Note that a norm takes statistics over units."""
        for tensor in tensors(ids):
            if not repeats(tensor, axes):
                self.flow.shared.append((tensor, self.what))


class UnknownShape(Exception):
    """The graph does not say what shape a value has."""


class Names:
    """The qualified names of the model's tensors, each by the layer that owns it."""

    def __init__(self, owners: dict[int, str]) -> None:
        self.owners = owners

    def of(self, tensor: Tensor, name: str) -> str:
        return self.owners.get(id(tensor), name)


def shape_of(node: fx.Node) -> torch.Size | None:
    """The shape of a node's value, where it was recorded."""
    meta = node.meta.get("tensor_meta")
    shape = getattr(meta, "shape", None)
    return shape if shape is not None else None


def attribute(root: nn.Module, target: str) -> Any:
    """What a `get_attr` node reads; None if the model does not hold it."""
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part, None)
    return value
