"""What layers without synapses do to units."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from biofx.passes.units import operations
from biofx.passes.units.ids import Ids, repeats
from biofx.passes.units.step import Step
from biofx.synapses import original_class


def call_plain(step: Step, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Ids:
    """A leaf of torch.nn that has no synapses."""
    kind = original_class(module)
    inputs = [*args, *kwargs.values()]
    if not inputs:
        return step.unknown()
    value, m = inputs[0], _as_any(module)
    prefix = f"{step.node.target}."
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return _channels_norm(step, m, prefix, value)
    if isinstance(module, nn.GroupNorm):
        _claim(step, m, prefix, step.ids(value), 1)
        return operations.group_norm(step, value, m.num_groups)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        _claim(step, m, prefix, step.ids(value), None)
        return operations.layer_norm(step, value, m.normalized_shape)
    if isinstance(module, nn.PReLU):
        if m.weight.numel() > 1:
            step.claim_vector("other", step.names.of(m.weight, f"{prefix}weight"), m.weight,
                              step.ids(value), 1)  # fmt: skip
        return step.ids(value)
    function = _MODULES.get(kind) or next(
        (f for base, f in _MODULES.items() if isinstance(module, base)), None
    )
    if function is not None:
        return function(step, module, *inputs)
    if kind in _ELEMENTWISE:
        return step.ids(value)
    return step.unknown()


def _as_any(module: nn.Module) -> Any:
    return module


def _claim(step: Step, module: Any, prefix: str, ids: Ids, axis: int | None) -> None:
    if not isinstance(ids, Tensor):
        return
    for role, name in (
        ("scale", "weight"), ("shift", "bias"), ("running_mean", "running_mean"),
        ("running_var", "running_var"),
    ):  # fmt: skip
        held = getattr(module, name, None)
        if isinstance(held, Tensor):
            step.claim_vector(role, step.names.of(held, prefix + name), held, ids, axis)


def _channels_norm(step: Step, module: Any, prefix: str, value: Any) -> Ids:
    ids = step.ids(value)
    if not isinstance(ids, Tensor):
        return step.unknown()
    axis = 1
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        # an unbatched input has one axis less
        axis = ids.dim() - {"1": 2, "2": 3, "3": 4}[original_class(module).__name__[-2]]
    _claim(step, module, prefix, ids, axis)
    others = [other for other in range(ids.dim()) if other != axis]
    step.share(ids, others)
    return ids


def _softmax(step: Step, module: Any, value: Any, *_: Any) -> Ids:
    dim = -3 if isinstance(module, nn.Softmax2d) else module.dim
    ids = step.ids(value)
    if not isinstance(dim, int) or not repeats(ids, [dim]):
        return step.flow.lose(ids, f"{step.what} is over them")
    return ids


def _over_space(step: Step, module: Any, value: Any, *_: Any) -> Ids:
    return operations.over_space(step, value, range(-_spatial(module), 0))


def _spatial(module: Any) -> int:
    name = original_class(module).__name__
    return int(name[-2]) if name[-2].isdigit() else 2


def _padding(step: Step, module: Any, value: Any, *_: Any) -> Ids:
    return operations.over_space(step, value, range(-len(module.padding) // 2, 0))


def _upsample(step: Step, module: Any, value: Any, *_: Any) -> Ids:
    return operations.over_space(step, value, range(2 - step.ids(value).dim(), 0))


def _flatten(step: Step, module: Any, value: Any, *_: Any) -> Ids:
    return _reshaped(step, value, step.ids(value).flatten(module.start_dim, module.end_dim))


def _unflatten(step: Step, module: Any, value: Any, *_: Any) -> Ids:
    return _reshaped(step, value, step.ids(value).reshape(step.shape()))


def _reshaped(step: Step, value: Any, after: Tensor) -> Ids:
    step.flow.cut(step.ids(value), after, step.what)
    return after


def _shuffled(step: Step, module: Any, value: Any, *_: Any) -> Ids:
    return _reshaped(step, value, module(step.ids(value)))


def _glu(step: Step, module: Any, value: Any, *_: Any) -> Ids:
    return operations.OPERATIONS["glu"](step, value, module.dim)


def _unfold(step: Step, module: Any, value: Any, *_: Any) -> Ids:
    return operations.unfold_windows(step, value)


_POOLS = (
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._LPPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
)  # fmt: skip
_PADS = (
    nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd,
    nn.modules.padding._ConstantPadNd, nn.modules.padding._CircularPadNd,
)  # fmt: skip
_MODULES: dict[type, Any] = {
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d), _softmax),
    **dict.fromkeys(_POOLS, _over_space),
    **dict.fromkeys(_PADS, _padding),
    nn.Upsample: _upsample, nn.Flatten: _flatten, nn.Unflatten: _unflatten, nn.GLU: _glu,
    nn.Unfold: _unfold,
    **dict.fromkeys((nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), _shuffled),
}  # fmt: skip
# Activations and dropout act on each element by itself; these do not.
_NOT_ELEMENTWISE = {
    nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU, nn.MultiheadAttention, nn.PReLU,
}  # fmt: skip
_ELEMENTWISE = {
    kind
    for place in (nn.modules.activation, nn.modules.dropout)
    for kind in vars(place).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind not in _NOT_ELEMENTWISE
} | {nn.Identity}
