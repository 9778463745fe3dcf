"""Specialise: capture a module anew, for the arguments of one call."""

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from biofx.capture import Capture, Captured, Session, clone
from biofx.capture.patches import recording
from biofx.capture.proxy import BioProxy
from biofx.passes.strip import undress

Captures = Mapping[nn.Module, Capture]


class Specialist:
    """Captures modules of a transformed model for calls that their own graphs do not fit.

    A module has one graph, for the pattern of arguments of its first call. Where a model is about
    to be written, every call may have its own.
    """

    def __init__(self, root: nn.Module) -> None:
        self.bare = clone(root)
        self._tracer = fx.Tracer()
        for module in self.bare.modules():
            if isinstance(module, Captured) and not module.__dict__.get("_needs_graph"):
                undress(module)

    def module(self, name: str) -> nn.Module:
        """The module of that name, as `Captures` know it."""
        return self.bare.get_submodule(name)

    def capture(self, name: str, args: Any, kwargs: Any) -> Captures | None:
        """The graphs of a module and of what it calls, or None if it cannot be traced like that.

        Args:
            name: qualified name of the module.
            args, kwargs: of the call, with nodes of a graph for values.
        """
        session = Session(self.bare)
        with recording(session):
            found = session.capture(
                self.module(name), (self._stand_in(args), self._stand_in(kwargs))
            )
        return session.captures if found is not None else None

    def _stand_in(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return BioProxy(value, self._tracer, kind=value.meta.get("biofx_kind", "unknown"))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self._stand_in, value))
        if isinstance(value, tuple):
            return tuple(map(self._stand_in, value))
        if isinstance(value, list):
            return list(map(self._stand_in, value))
        if isinstance(value, dict):
            return {key: self._stand_in(item) for key, item in value.items()}
        return value
