"""Reductions and norms: operations over an axis or over space."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from biofx.passes.units.ids import Ids, first, repeats, resized
from biofx.passes.units.operations.table import OPERATIONS, follows, words
from biofx.passes.units.step import Step

# --- over an axis -------------------------------------------------------------------------------

_REDUCTIONS = words("""
    sum mean amax amin prod std var norm logsumexp all any argmax argmin nansum nanmean
    count_nonzero vector_norm frobenius_norm
""")
_PAIRS = words("""
    max min median mode kthvalue nanmedian var_mean std_mean aminmax
""")
_ALONG = words("""
    softmax log_softmax softmin gumbel_softmax cumsum cumprod logcumsumexp cumulative_trapezoid
    _softmax _log_softmax
""")
_SORTS = ["sort", "topk", "cummax", "cummin", "msort"]


def _axes(value: Tensor, dim: Any) -> list[int]:
    if dim is None or dim == ():
        return list(range(value.dim()))
    return list(dim) if isinstance(dim, list | tuple | torch.Size) else [dim]


def _reduced(step: Step, value: Tensor, dim: Any, keepdim: bool) -> Ids:
    axes = _axes(value, dim)
    if not repeats(value, axes):
        return step.flow.lose(value, f"{step.what} is over them")
    return first(value, axes, keep=keepdim)


@follows(*_REDUCTIONS)
def _reduction(step: Step, input: Any, *args: Any, **kwargs: Any) -> Ids:
    named = {"dim": kwargs.get("dim", kwargs.get("axis"))}
    keepdim = kwargs.get("keepdim", False)
    rest = list(args)
    if step.name in ("norm", "vector_norm", "std", "var") and rest and step.name.endswith("norm"):
        rest.pop(0)  # the order of the norm
    if rest and not isinstance(rest[0], bool | torch.dtype):
        named["dim"] = rest.pop(0)
    for extra in rest:
        keepdim = extra if isinstance(extra, bool) and step.name not in ("std", "var") else keepdim
    if step.name in ("std", "var") and len([a for a in args if isinstance(a, bool)]) == 2:
        keepdim = args[-1]
    value = step.ids(input)
    if step.name in ("sum", "mean", "amax", "amin") and all(isinstance(a, int) for a in args):
        ints = [a for a in args if not isinstance(a, bool)]
        if len(ints) > 1:  # x.sum(1, 2)
            named["dim"] = ints
    return _fitted(step, _reduced(step, value, named["dim"], bool(keepdim)))


def _fitted(step: Step, ids: Ids) -> Ids:
    """A reduction's ids in the shape that the result was seen to have."""
    if isinstance(ids, Tensor) and ids.shape != step.shape(ids.shape):
        return step.unknown()
    return ids


@follows(*_PAIRS)
def _pair(step: Step, input: Any, *args: Any, **kwargs: Any) -> Ids:
    value = step.ids(input)
    rest = list(args)
    if rest and isinstance(rest[0], fx.Node):
        return OPERATIONS["add"](step, input, *args, **kwargs)  # of two tensors
    dim = kwargs.get("dim", rest[0] if rest else None)
    keepdim = kwargs.get("keepdim", rest[1] if len(rest) > 1 else False)
    if step.name == "kthvalue":
        return step.unknown()
    result = _reduced(step, value, dim, bool(keepdim))
    # Where a unit is largest is told by that unit too.
    two = dim is not None or step.name.endswith("_mean") or step.name == "aminmax"
    return (result, result) if two else result


@follows(*_ALONG)
def _over(step: Step, input: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Ids:
    value = step.ids(input)
    if step.name == "gumbel_softmax":
        dim = kwargs.get("dim", -1)
    if not isinstance(dim, int) or not repeats(value, [dim]):
        return step.flow.lose(value, f"{step.what} is over them")
    return value


@follows(*_SORTS)
def _sorted(step: Step, input: Any, *args: Any, **kwargs: Any) -> Ids:
    value = step.ids(input)
    place = 1 if step.name == "topk" else 0
    dim = kwargs.get("dim", args[place] if len(args) > place else -1)
    dim = 0 if step.name == "msort" else dim
    if not isinstance(dim, int) or not repeats(value, [dim]):
        return step.flow.lose(value, f"{step.what} is over them")
    if step.name == "topk":
        value = value.narrow(dim, 0, kwargs.get("k", args[0] if args else 0))
    return value if step.name == "msort" else (value, value)


# --- norms --------------------------------------------------------------------------------------


@follows("layer_norm", "rms_norm", "native_layer_norm")
def layer_norm(
    step: Step, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, *_: Any,
    **__: Any,
) -> Ids:  # fmt: skip
    """A norm over the last axes; its statistics are shared by all units along them."""
    value = step.ids(input)
    axes = list(range(value.dim() - len(normalized_shape), value.dim()))
    step.share(value, axes)
    step.claim_parameter("scale", weight, value)
    step.claim_parameter("shift", bias, value)
    return value


@follows("normalize")
def _normalize(step: Step, input: Any, p: float = 2.0, dim: Any = 1, *_: Any, **__: Any) -> Ids:
    value = step.ids(input)
    step.share(value, _axes(value, dim))
    return value


@follows("group_norm")
def group_norm(
    step: Step, input: Any, num_groups: int, weight: Any = None, bias: Any = None, *_: Any,
    **__: Any,
) -> Ids:  # fmt: skip
    """A norm over the channels of a group, on axis 1."""
    value = step.ids(input)
    step.share(value, [1, *range(2, value.dim())])
    step.claim_parameter("scale", weight, value, axis=1)
    step.claim_parameter("shift", bias, value, axis=1)
    return value


@follows("batch_norm", "instance_norm")
def batch_norm(
    step: Step, input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None,
    bias: Any = None, *_: Any, **__: Any,
) -> Ids:  # fmt: skip
    """A norm of each channel, on axis 1, by itself."""
    value = step.ids(input)
    if not repeats(value, [0, *range(2, value.dim())]):
        step.share(value, [0, *range(2, value.dim())])
    for role, of in (
        ("scale", weight), ("shift", bias), ("running_mean", running_mean),
        ("running_var", running_var),
    ):  # fmt: skip
        step.claim_parameter(role, of, value, axis=1)
    return value


@follows("local_response_norm")
def _local_response_norm(step: Step, input: Any, *_: Any, **__: Any) -> Ids:
    value = step.ids(input)
    step.share(value, [1])
    return value


# --- over space ---------------------------------------------------------------------------------

_POOLS = {
    f"{kind}{n}d": n
    for n in (1, 2, 3)
    for kind in (
        "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool",
        "max_pool_with_indices", "fractional_max_pool", "reflection_pad", "replication_pad",
    )
}  # fmt: skip
_POOLS |= {f"max_pool{n}d_with_indices": n for n in (1, 2, 3)}
_POOLS |= {f"adaptive_max_pool{n}d_with_indices": n for n in (1, 2, 3)}


def over_space(step: Step, input: Any, axes: Sequence[int]) -> Ids:
    """An operation on each channel over space."""
    value = step.ids(input)
    if not repeats(value, axes):
        return step.flow.lose(value, f"{step.what} is over them")
    shapes = step.shapes()
    results = tuple(resized(value, shape) for shape in shapes)
    return results if len(results) > 1 else results[0]


@follows(*_POOLS)
def _pool(step: Step, input: Any, *_: Any, **__: Any) -> Ids:
    return over_space(step, input, range(-_POOLS[step.name], 0))


@follows("interpolate", "upsample", "upsample_nearest", "upsample_bilinear", "grid_sample")
def _interpolated(step: Step, input: Any, *_: Any, **__: Any) -> Ids:
    value = step.ids(input)
    return over_space(step, input, range(2 - value.dim(), 0))


@follows("unfold_windows")
def unfold_windows(step: Step, input: Any, *_: Any, **__: Any) -> Ids:
    """`F.unfold`: (N, C, …) becomes (N, C·k, places)."""
    value = step.ids(input)
    if not repeats(value, range(2 - value.dim(), 0)):
        return step.flow.lose(value, f"{step.what} is over them")
    shape = step.shape()
    channels = first(value, range(2, value.dim()), keep=False)
    wide = channels.repeat_interleave(shape[1] // channels.shape[1], 1)
    return wide[:, :, None].expand(shape)
