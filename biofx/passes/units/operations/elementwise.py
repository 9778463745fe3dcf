"""Operations that act on each element by itself."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from biofx.passes.units.ids import CONSTANT, Ids, full
from biofx.passes.units.operations.table import follows, shape_only, words
from biofx.passes.units.step import Step

# --- element by element -------------------------------------------------------------------------

# Of one tensor.
_UNARY = words("""
    abs absolute acos as_subclass asin atan ceil celu clone contiguous cos cosh cpu cuda deg2rad
    detach detach_ digamma double dropout dropout1d dropout2d dropout3d alpha_dropout
    feature_alpha_dropout feature_dropout elu erf erfc erfinv exp exp2 expand_as expm1 float
    floor frac gelu half bfloat16 hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan
    int leaky_relu lgamma log log10 log1p log2 logical_not logit logsigmoid log_sigmoid long
    mish nan_to_num neg negative positive pos reciprocal relu relu6 requires_grad_ round rrelu
    rsqrt selu sgn sigmoid sign silu sin sinh softplus softshrink softsign sqrt square tan tanh
    tanhshrink threshold to trunc type type_as bernoulli bitwise_not invert inv not_ data real
    bool hardsigmoid_ relu_ fake_quantize _to_copy alias lift_fresh_copy pin_memory
    prelu _prelu_kernel
""")
# Vanish with each of their arguments.
_FACTORS = words("""
    mul multiply div divide true_divide truediv floordiv floor_divide imul itruediv and_
    bitwise_and logical_and iand masked_fill pow remainder fmod mod
""")
_PRODUCTS = frozenset(words("mul multiply imul and_ bitwise_and logical_and iand masked_fill"))
_SUMS = words("""
    add sub subtract rsub iadd isub maximum minimum fmax fmin lerp addcmul addcdiv atan2
    gt ge lt le eq ne greater less greater_equal less_equal not_equal or_ xor logical_or
    logical_xor bitwise_or bitwise_xor clamp clamp_min clamp_max clip heaviside hypot
    copysign logaddexp xlogy masked_scatter
""")
_SCALES = frozenset(words("mul multiply imul div divide true_divide truediv itruediv"))
_SHIFTS = frozenset(words("add sub subtract rsub iadd isub"))
_FRESH = words("""
    zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros
    new_ones new_full new_empty new_tensor size dim shape ndim numel device dtype stride is_cuda
""")
shape_only(slice(1), *_FRESH, "copy", "fill", "zero")
shape_only(slice(1, None), *words("expand_as type_as to view_as reshape_as"))


@follows(*_UNARY)
def _same(step: Step, input: Any, *_: Any, **__: Any) -> Ids:
    value = step.ids(input)
    return value if not isinstance(value, Tensor) else value.expand(step.shape(value.shape))


@follows(*_FACTORS)
def _product(step: Step, *args: Any, **kwargs: Any) -> Ids:
    # a quotient vanishes with its numerator only
    vanishes = step.name in _PRODUCTS or (args and isinstance(step.ids(args[0]), Tensor))
    return _elementwise(step, (*args, *kwargs.values()), added=not vanishes)


@follows("where")
def _where(step: Step, condition: Any, input: Any = None, other: Any = None, **__: Any) -> Ids:
    if step.node.op == "call_method":  # x.where(condition, other)
        condition, input = input, condition
    chosen = step.flow.combine(
        [step.ids(input), step.ids(other)], step.shape(), step.what, added=True
    )
    return step.flow.combine([chosen, step.ids(condition)], step.shape(), step.what, added=False)


@follows(*_SUMS)
def _sum(step: Step, *args: Any, **kwargs: Any) -> Ids:
    return _elementwise(step, (*args, *kwargs.values()), added=True)


def _elementwise(step: Step, arguments: Sequence[Any], *, added: bool) -> Ids:
    nodes = [argument for argument in arguments if isinstance(argument, fx.Node)]
    values = [step.ids(node) for node in nodes]
    result = step.flow.combine(values, step.shape(), step.what, added=added)
    if isinstance(result, Tensor):
        kinds = {"scale": _SCALES, "shift": _SHIFTS}
        role = next((role for role, names in kinds.items() if step.name in names), "other")
        for node in nodes:
            step.claim_parameter(role, node, result)
    return result


@follows(*_FRESH)
def _fresh(step: Step, *_: Any, **__: Any) -> Ids:
    return CONSTANT


@follows("glu")
def _glu(step: Step, input: Any, dim: int = -1) -> Ids:
    whole = step.ids(input)
    halves = whole.chunk(2, dim)
    step.flow.cut(whole, halves, step.what)
    return step.flow.combine(halves, halves[0].shape, step.what, added=False)


@follows("getattr")
def _attribute(step: Step, input: Any, name: str, *_: Any) -> Ids:
    value = step.ids(input)
    if name in ("T", "mT", "H", "mH"):
        return getattr(value, "mT" if name in ("mT", "mH") or value.dim() == 2 else "T")
    if name in ("data", "real"):
        return value
    if name in _FRESH:
        return CONSTANT
    return step.unknown()


# --- changes ------------------------------------------------------------------------------------


@follows("setitem", "__setitem__")
def _set_item(step: Step, input: Any, index: Any, value: Any) -> Ids:
    before, given = step.ids(input), step.ids(value)
    places = index if isinstance(index, tuple) else (index,)
    if any(isinstance(place, fx.Node) for place in places):
        return step.unknown()
    shape = step.shape_of(input)
    whole = full(before, shape).clone()
    places = tuple(list(place) if isinstance(place, tuple) else place for place in places)
    whole[places] = given if isinstance(given, Tensor) else int(given)
    return whole


@follows("copy")
def _copied(step: Step, input: Any, src: Any, *_: Any) -> Ids:
    given = step.ids(src)
    return given.expand(step.shape()) if isinstance(given, Tensor) else given


@follows("fill", "zero")
def _filled(step: Step, *_: Any, **__: Any) -> Ids:
    return CONSTANT
