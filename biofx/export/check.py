"""The last look at an exported model: does it compute what the transformed one computes?"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from biofx.capture import clone
from biofx.errors import ExportError
from biofx.export.plain import Arguments

# Largest difference relative to the largest value of a tensor that folding may make. Rounding makes
# less, unless the model amplifies it; a wrong fold makes far more.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


def check(
    bio: nn.Module,
    exported: Callable[..., Any],
    arguments: Arguments,
    *,
    folded: bool,
    same_random: bool = True,
) -> None:
    """Run both on the example inputs, in evaluation mode.

    Args:
        bio: the transformed model; it is not changed.
        exported: what was written, loaded again.
        arguments: example (args, kwargs).
        folded: whether results may differ by rounding.
        same_random: whether the same seed gives the same random numbers in both. If not, results
            that depend on any are compared by shape only.

    Raises:
        ExportError: they give different results, or one of them cannot take the inputs.
    """
    try:
        ours, drew = _run(clone(bio, share=False).eval(), arguments)
    except Exception as error:
        raise ExportError(f"the model does not run on the example inputs: {error}") from error
    try:
        theirs, _ = _run(exported, arguments)
    except Exception as error:
        raise ExportError(
            "the exported model does not take the example inputs; if the model was captured "
            "for another pattern of arguments, pass these example_inputs to biofx.transform "
            f"too. It says: {str(error).strip().splitlines()[-1]}"
        ) from error
    if len(ours) != len(theirs):
        raise ExportError(f"the exported model returns {len(theirs)} tensors, not {len(ours)}")
    for position, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        problem = _difference(mine, other, folded, values=same_random or not drew)
        if problem is not None:
            raise ExportError(
                f"the exported model does not compute what the model computes: result {position} "
                f"{problem}; please report this as a bug of biofx, with the model"
            )


def _run(model: Callable[..., Any], arguments: Arguments) -> tuple[list[Tensor], bool]:
    """Its tensors for these arguments, and whether it drew random numbers."""
    args, kwargs = arguments
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        result = model(*_copied(args), **_copied(kwargs))
        return list(_tensors(result)), not torch.equal(before, torch.get_rng_state())


def _difference(mine: Tensor, other: Tensor, folded: bool, *, values: bool) -> str | None:
    if mine.shape != other.shape or mine.dtype != other.dtype:
        return f"is {other.dtype} {tuple(other.shape)}, not {mine.dtype} {tuple(mine.shape)}"
    if not values:
        return None
    if mine.is_sparse:
        mine, other = mine.to_dense(), other.to_dense()
    if torch.equal(mine.isnan(), other.isnan()) and torch.equal(
        mine.nan_to_num(), other.nan_to_num()
    ):
        return None
    largest = (mine - other).abs().max().item() if mine.dtype != torch.bool else 1.0
    allowed = _TOLERANCE.get(mine.dtype, 0.0) * mine.abs().max().item() if folded else 0.0
    return None if largest <= allowed else f"differs by up to {largest:.3g}"


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (tuple, list):
        return type(value)(_copied(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name))
