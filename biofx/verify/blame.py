"""Where two models part: the first call of a module that gives something else."""

from collections import Counter
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from biofx.copying import separate
from biofx.copying.nested import own, replaced
from biofx.verify.comparison import difference

Call = tuple[str, int]  # a module's name, and the how many-th call of it


class Bench(Protocol):
    """What blame needs of the comparison that failed."""

    bio: nn.Module
    model: nn.Module
    tolerance: float

    def once(self, model: nn.Module, mode: str) -> Any:
        """Run a model in one mode."""


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
            return f"module {name!r}, which the transformed model does not call"
        problem = difference(output, found[call], bench.tolerance)
        if problem is not None:
            return f"module {name!r} ({problem})"
    return None


def _outputs(bench: Bench, model: nn.Module, path: tuple[str, ...]) -> dict[Call, Any]:
    """What every call of every module returned, in the order in which the calls ended."""
    twin = separate(model)
    for mode in path[:-1]:
        bench.once(twin, mode)
    seen: dict[Call, Any] = {}
    calls: Counter[str] = Counter()

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        calls[name] += 1
        seen[name, calls[name]] = replaced(output, own)

    for name, module in twin.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_hook(partial(note, name))
    bench.once(twin, path[-1])
    return seen
