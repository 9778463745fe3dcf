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
from biofx.capture.comparison import copied, rebuilt
from biofx.capture.generators import generators_kept
from biofx.capture.islands import Captured
from biofx.errors import ModelError
from biofx.synapses import original_class

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
    and the shapes behind it stay unknown. The model is then run for real: it may be that the
    arguments do not fit it.

    Returns:
        {module name: {node name: shape}}.

    Raises:
        ModelError: the model does not run on the arguments.
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
            _refuse_what_fails(root, arguments)
            return shapes
        for registry in (module._parameters, module._buffers):
            registry.update({key: fake(value) for key, value in registry.items()})
        if isinstance(module, Captured):
            module.__dict__["forward"] = partial(forward, module, name)
    given = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, arguments)
    args, kwargs = pytree.tree_map(fake, (given[0], dict(given[1])))
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what matters of it is said below
    finished = False
    with (
        generators_kept(),
        mode,
        torch.no_grad(),
        warnings.catch_warnings(),
        contextlib.suppress(Exception),
    ):
        warnings.simplefilter("ignore")  # they belong to the user's own runs
        twin.eval()
        twin(*args, **kwargs)
        finished = True
    log.setLevel(level)
    if not finished:
        _refuse_what_fails(root, arguments)
    return shapes


def _refuse_what_fails(
    root: nn.Module, arguments: tuple[tuple[Any, ...], Mapping[str, Any]]
) -> None:
    """Run a copy of the model for real, in evaluation mode; tensors and generators stay."""
    args, kwargs = rebuilt((arguments[0], dict(arguments[1])), copied)
    if any(tensor.is_meta for tensor in (*root.parameters(), *root.buffers())):
        return  # it has no values yet, and runs on nothing
    with torch.no_grad(), generators_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            clone(root, share=False).eval()(*args, **kwargs)
        except Exception as error:
            raise ModelError(
                f"{original_class(root).__name__} does not run on the example inputs: "
                f"{type(error).__name__}: {error}"
            ) from error
