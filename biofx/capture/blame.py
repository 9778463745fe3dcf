"""Where two models part: the first module, and inside its graph the first node."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from biofx.capture.clone import clone
from biofx.capture.comparison import copied, difference, rebuilt
from biofx.capture.islands import Captured
from biofx.capture.shapes import Recorder


class Bench(Protocol):
    """What blame needs of the comparison that failed."""

    bio: nn.Module
    model: nn.Module
    tolerance: float

    def _once(self, model: nn.Module, mode: str) -> Any: ...


Call = tuple[str, int]  # a module's name, and the how many-th call of it


def first_difference(bench: Bench, path: tuple[str, ...]) -> str | None:
    """Run both again with every module watched; the place where the last runs part.

    Args:
        bench: the comparison.
        path: modes to run one after another; the last one is watched.
    """
    expected = _outputs(bench, bench.model, path)
    found = _outputs(bench, bench.bio, path)
    for call, output in expected.items():
        name = call[0] or "(the model)"
        if call not in found:
            log = _operations(bench, bench.bio, path, call)
            return f"module {name!r}" + (f", node {log.node!r}" if log.node else "")
        problem = difference(output, found[call], bench.tolerance)
        if problem is None:
            continue
        node = _node(bench, path, call)
        return f"module {name!r}" + (f", node {node!r}" if node else "") + f" ({problem})"
    return None


def _outputs(bench: Bench, model: nn.Module, path: tuple[str, ...]) -> dict[Call, Any]:
    """What every call of every module returned, in the order in which the calls ended."""
    twin = _warmed(bench, model, path)
    seen: dict[Call, Any] = {}
    calls: Counter[str] = Counter()

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        calls[name] += 1
        seen[name, calls[name]] = rebuilt(output, copied)

    for name, module in twin.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_hook(partial(note, name))
    bench._once(twin, path[-1])
    return seen


def _warmed(bench: Bench, model: nn.Module, path: tuple[str, ...]) -> nn.Module:
    twin = clone(model, share=False)
    for mode in path[:-1]:
        bench._once(twin, mode)
    return twin


def _node(bench: Bench, path: tuple[str, ...], call: Call) -> str | None:
    """The first node of a captured module whose operations differ from the original's."""
    expected = _operations(bench, bench.model, path, call).operations
    found = _operations(bench, bench.bio, path, call).operations
    for i, (node, operation, value) in enumerate(found):
        if i >= len(expected):
            return node
        _, original, result = expected[i]
        if operation != original or difference(result, value, bench.tolerance) is not None:
            return node
    return found[-1][0] if len(found) < len(expected) and found else None


def _operations(bench: Bench, model: nn.Module, path: tuple[str, ...], call: Call) -> "_Log":
    """What one call of one module computes."""
    name, wanted = call
    twin = _warmed(bench, model, path)
    module = twin.get_submodule(name)
    log = _Log()
    if isinstance(module, Captured):
        module.__dict__["forward"] = partial(_interpreted, module, log)
    with log.during(module, wanted):
        bench._once(twin, path[-1])
    return log


def _interpreted(island: Captured, log: "_Log", *args: Any, **kwargs: Any) -> Any:
    bound = inspect.signature(type(island).forward).bind(island, *args, **kwargs)
    bound.apply_defaults()
    if not island.fits(bound.arguments):
        return island._own_forward(*args, **kwargs)
    return Recorder(island, bound.arguments, before=log.enter_node).run()


class _Log(TorchDispatchMode):
    """Notes (node, operation, result) of everything that happens while one call lasts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[str, str, Any]] = []
        self.node = ""

    def enter_node(self, node: fx.Node) -> None:
        self.node = node.name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((self.node, str(func), rebuilt(result, copied)))
        return result

    @contextmanager
    def during(self, module: nn.Module, wanted: int) -> Iterator[None]:
        calls = 0

        def before(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == wanted:
                self.__enter__()  # type: ignore[no-untyped-call]

        def after(*_: Any) -> None:
            if calls == wanted:
                self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

        hooks: list[Callable[[], None]] = [
            module.register_forward_pre_hook(before).remove,
            module.register_forward_hook(after, always_call=True).remove,
        ]
        yield
        for remove in hooks:
            remove()
