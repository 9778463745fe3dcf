"""A plain copy of a transformed model: torch's and the user's own classes, for inference."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.fx.passes.infra.pass_base import PassBase

from biofx.capture import clone
from biofx.passes.fold import Fold, FoldReport
from biofx.passes.inline import Inline
from biofx.passes.lower import Lower
from biofx.passes.strip import Strip
from biofx.synapses import unwrap

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


def plain_copy(
    bio: nn.Module,
    *,
    fold: bool = False,
    arguments: Arguments | None = None,
    islands: bool = True,
) -> tuple[nn.Module, FoldReport | None]:
    """Copy a transformed model without biofx: inline, strip, fold (if asked for), lower.

    Args:
        bio: a transformed model; it is not changed.
        fold: simplify split layers.
        arguments: example (args, kwargs).
        islands: keep graphs below modules that stay Python, rather than Python forwards.

    Returns:
        A model in evaluation mode that shares the tensors it did not have to compute anew, and
        the report of the fold pass.
    """
    model = clone(unwrap(bio)).eval()
    model = _run(Inline(islands=islands), model)
    model = _run(Strip(), model)
    report = None
    if fold:
        folding = Fold(arguments)
        model = _run(folding, model)
        report = folding.report
    return _run(Lower(), model), report


def _run(step: PassBase, model: nn.Module) -> nn.Module:
    result = step(model)  # type: ignore[arg-type]
    assert result is not None
    changed: nn.Module = result.graph_module
    return changed
