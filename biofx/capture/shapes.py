"""Shapes of every value in every graph, from one run on example inputs."""

import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from biofx.capture.clone import clone
from biofx.capture.islands import Captured

Shapes = dict[str, dict[str, tuple[int, ...]]]


class Recorder(fx.Interpreter):
    """Runs one graph on arguments bound by name, and tells about every node."""

    def __init__(
        self,
        module: Captured,
        bound: Mapping[str, Any],
        *,
        before: Callable[[fx.Node], None] | None = None,
        after: Callable[[fx.Node, Any], None] | None = None,
    ) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.extra_traceback = False
        self.bound = bound
        self.before = before
        self.after = after

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.bound[str(target).lstrip("*")]

    def run_node(self, n: fx.Node) -> Any:
        if self.before is not None:
            self.before(n)
        value = super().run_node(n)
        if self.after is not None:
            self.after(n, value)
        return value


def record_shapes(root: nn.Module, arguments: tuple[tuple[Any, ...], Mapping[str, Any]]) -> Shapes:
    """Run the model once on fake tensors and note the shape of every tensor a graph computes.

    Nothing is computed, allocated or changed. Where Python code needs real values the run ends,
    and the shapes behind it stay unknown.

    Returns:
        {module name: {node name: shape}}.
    """
    shapes: Shapes = {}
    twin = clone(root)
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    def note(name: str, node: fx.Node, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            shapes.setdefault(name, {})[node.name] = tuple(value.shape)

    def forward(island: Captured, name: str, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(type(island).forward).bind(island, *args, **kwargs)
        bound.apply_defaults()
        if not island.fits(bound.arguments):
            return island._own_forward(*args, **kwargs)
        return Recorder(island, bound.arguments, after=partial(note, name)).run()

    for name, module in twin.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return shapes
        for registry in (module._parameters, module._buffers):
            registry.update({key: fake(value) for key, value in registry.items()})
        if isinstance(module, Captured):
            module.__dict__["forward"] = partial(forward, module, name)
    args, kwargs = pytree.tree_map(fake, (arguments[0], dict(arguments[1])))
    state = torch.get_rng_state()
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)  # inputs that do not fit are the user's to see when they run
    with mode, torch.no_grad(), warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")  # they belong to the user's own runs
        twin.eval()
        twin(*args, **kwargs)
    log.setLevel(level)
    torch.set_rng_state(state)
    return shapes
