"""Which parameter of which layer type holds synapses, and what its axes mean.

Support for a layer type is one decorated function. It gets the module and gives the `Axes` of its
weight parameters, by the names that they have on the module:

    @biofx.register(MyLinear)
    def my_linear(module: MyLinear) -> list[Axes]:
        return [Axes("kernel", "linear", post=1, pre=0)]
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from biofx.errors import ConfigError

M = TypeVar("M", bound=Callable[[Any], Iterable["Axes"]])


@dataclass(frozen=True)
class Axes:
    """The meaning of one weight parameter's axes.

    Args:
        parameter: name on the module.
        kind: short name of what it is, for people and for rules.
        post: axis over output (post-synaptic) units.
        pre: axis over input (pre-synaptic) units.
        groups: connection groups (grouped convolutions).
        bundles: names of the equal blocks along `post` that serve different functions.
        units: axis of the layer's output that runs over output units (negative), if there is one.
        inner: whether the input units are units of the layer itself, as of recurrent weights.
        whole: why the layer cannot be split, or None if it can.
    """

    parameter: str
    kind: str
    post: int
    pre: int
    groups: int = 1
    bundles: tuple[str, ...] = ()
    units: int | None = None
    inner: bool = False
    whole: str | None = None


# by class, or by the qualified name of a class in a package that may not be installed
_REGISTRY: dict[type | str, Callable[[Any], Iterable[Axes]]] = {}


def register(*types: type[nn.Module] | str) -> Callable[[M], M]:
    """Teach biofx a layer type (and its subclasses): the decorated function gives its `Axes`.

    The function takes a module of that type and returns a list with one `Axes` for each of its
    weight parameters, or an empty list. It is called whenever such a module is met::

        @biofx.register(MyLinear)
        def my_linear(module):  # module.kernel has the shape (inputs, outputs)
            return [Axes("kernel", "linear", post=1, pre=0, units=-1)]

    Args:
        types: module classes, or qualified names such as ``"transformers.pytorch_utils.Conv1D"``
            for classes of packages that need not be installed.

    Raises:
        ConfigError: none is given, or one is neither of these. Later, where such a module is met:
            the function returns something else, or `Axes` that its parameters do not have.
    """
    if not types:
        raise ConfigError("register needs the layer type: @biofx.register(MyLinear)")
    for given in types:
        is_class = isinstance(given, type) and issubclass(given, nn.Module)
        if not (is_class or (isinstance(given, str) and "." in given)):
            raise ConfigError(
                f"register({given!r}): expected a class of modules, or the qualified name of one, "
                'such as "package.module.MyLinear"'
            )

    def remember(function: M) -> M:
        known(*types)(partial(_valid, function))
        return function

    return remember


def known(*types: type[nn.Module] | str) -> Callable[[M], M]:
    """`register` for functions of biofx, whose result needs no validation."""

    def remember(function: M) -> M:
        _REGISTRY.update(dict.fromkeys(types, function))
        return function

    return remember


def axes_of(module: nn.Module) -> list[Axes]:
    """The weight parameters of a module, by the registry; empty if its type is not known.

    A weight that is computed from another parameter (weight norm, pruning, any parametrization)
    is found under the name of the parameter that is trained.
    """
    for cls in type(module).__mro__:
        function = _REGISTRY.get(cls) or _REGISTRY.get(f"{cls.__module__}.{cls.__qualname__}")
        if function is not None:
            found = [_trained(module, axes) for axes in function(module)]
            return [axes for axes in found if axes is not None]
    return []


def _valid(function: Callable[[Any], Iterable[Axes]], module: nn.Module) -> list[Axes]:
    """What a registered function returns, which is user code.

    Raises:
        ConfigError: it is no list of `Axes`, or these do not fit the module.
    """
    found = function(module)
    name = getattr(function, "__name__", repr(function))
    what = f"{name}, which is registered for {type(module).__name__},"
    given = list(found) if isinstance(found, Iterable) else [found]
    if isinstance(found, Axes) or not all(isinstance(axes, Axes) for axes in given):
        wrong = next((axes for axes in given if not isinstance(axes, Axes)), found)
        shown = "an Axes without a list around it" if isinstance(found, Axes) else repr(wrong)
        raise ConfigError(
            f"{what} returned {shown}; return a list with one Axes for each weight parameter, "
            'such as [Axes("weight", "linear", post=0, pre=1)], or an empty list'
        )
    for axes in given:
        problem = _problem(module, axes)
        if problem:
            at = f"Axes({axes.parameter!r}, post={axes.post!r}, pre={axes.pre!r})"
            raise ConfigError(f"{what} returned {at}: {problem}")
    return given


def _problem(module: nn.Module, axes: Axes) -> str:
    """What is wrong with axes; empty if they may be those of a module's parameter."""
    if not _has(module, axes.parameter):
        own = module.named_parameters(recurse=False)
        shapes = [f"{name} {tuple(p.shape)}" for name, p in own if not is_lazy(p)]
        return f"the layer has no parameter of that name; it has {', '.join(shapes) or 'none'}"
    for field in ("post", "pre"):
        value = getattr(axes, field)
        if not isinstance(value, int) or isinstance(value, bool):
            return f"{field} must be the number of an axis, an int"
    if not (axes.units is None or (isinstance(axes.units, int) and axes.units < 0)):
        return f"units={axes.units!r} must be a negative axis of the output, such as -1, or None"
    if not isinstance(axes.groups, int) or axes.groups < 1:
        return f"groups={axes.groups!r} must be a positive int"
    post, pre = axes.post, axes.pre
    parameter = module._parameters.get(axes.parameter)
    if parameter is not None and not is_lazy(parameter):
        ndim, shape = parameter.ndim, tuple(parameter.shape)
        if ndim < 2:
            return f"its shape is {shape}; a weight has an axis of output and one of input units"
        for field, axis in (("post", post), ("pre", pre)):
            if not -ndim <= axis < ndim:
                return f"its shape is {shape}, so {field} is from 0 to {ndim - 1}"
        post, pre = post % ndim, pre % ndim
    if post == pre:
        return "post, over output units, and pre, over input units, are the same axis"
    return ""


def _has(module: nn.Module, name: str) -> bool:
    """Whether there is such an attribute, without reading it, which a capture would record."""
    places: tuple[Any, ...] = (module._parameters, module._buffers, vars(module))
    return any(name in names for names in (*places, *map(vars, type(module).__mro__)))


def _trained(module: nn.Module, axes: Axes) -> Axes | None:
    name = axes.parameter
    if is_parametrized(module, name):
        originals = dict(module.parametrizations[name].named_parameters(recurse=False))  # type: ignore[index, union-attr]
        # of a magnitude and a direction, the direction, which comes last
        largest = max(reversed(originals), key=lambda key: originals[key].numel())
        if originals[largest].ndim <= max(axes.post, axes.pre):
            return None
        return replace(axes, parameter=f"parametrizations.{name}.{largest}", whole="parametrized")
    if module._parameters.get(name) is not None:
        return axes
    for suffix in ("_orig", "_v"):  # torch.nn.utils.prune; the hook-based weight norm
        if module._parameters.get(name + suffix) is not None:
            return replace(axes, parameter=name + suffix, whole="its weight is computed by a hook")
    return None


@known(nn.Linear)
def _linear(module: nn.Linear) -> list[Axes]:
    return [Axes("weight", "linear", post=0, pre=1, units=-1)]


@known(nn.modules.linear.NonDynamicallyQuantizableLinear)
def _attention_output(module: nn.Linear) -> list[Axes]:
    whole = "attention reads its weight without calling it"
    return [Axes("weight", "linear", post=0, pre=1, whole=whole)]


@known(nn.Bilinear)
def _bilinear(module: nn.Bilinear) -> list[Axes]:
    # (output, input 1, input 2): the first input is taken as the pre-synaptic one
    return [Axes("weight", "bilinear", post=0, pre=1, units=-1, whole="has two inputs")]


@known(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _conv(module: Any) -> list[Axes]:
    spatial = len(module.kernel_size)
    kind = f"conv{spatial}d"
    return [Axes("weight", kind, post=0, pre=1, groups=module.groups, units=-spatial - 1)]


@known(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _conv_transpose(module: Any) -> list[Axes]:
    spatial = len(module.kernel_size)
    kind = f"conv_transpose{spatial}d"
    # weight is (input, output / groups, …): the output axis holds one group's units
    return [Axes("weight", kind, post=1, pre=0, groups=module.groups, units=-spatial - 1)]


@known(nn.Embedding, nn.EmbeddingBag)
def _embedding(module: Any) -> list[Axes]:
    return [Axes("weight", "embedding", post=1, pre=0, units=-1, whole="is a lookup, not a sum")]


@known(nn.MultiheadAttention)
def _attention(module: nn.MultiheadAttention) -> list[Axes]:
    if module._qkv_same_embed_dim:
        names = ("q", "k", "v")
        packed = Axes("in_proj_weight", "attention", post=0, pre=1, bundles=names)
        return [packed]
    return [
        Axes(f"{part}_proj_weight", "attention", post=0, pre=1, bundles=(part,))
        for part in ("q", "k", "v")
    ]


_GATES = {
    (nn.LSTM, nn.LSTMCell): ("input", "forget", "cell", "output"),
    (nn.GRU, nn.GRUCell): ("reset", "update", "new"),
    (nn.RNN, nn.RNNCell): ("hidden",),
}


# Weights of recurrent layers whose input is the layer's; that of the others are its own units.
_FROM_OUTSIDE = ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse")


@known(nn.RNNBase, nn.RNNCellBase)
def _recurrent(module: nn.Module) -> list[Axes]:
    gates = next((names for types, names in _GATES.items() if isinstance(module, types)), ())
    return [
        Axes(
            name, "recurrent", post=0, pre=1,
            bundles=() if "_hr" in name else gates,
            inner=name not in _FROM_OUTSIDE,
        )
        for name in module._parameters
        if name.startswith("weight_")
    ]  # fmt: skip


@known("transformers.pytorch_utils.Conv1D")
def _transposed_linear(module: nn.Module) -> list[Axes]:
    return [Axes("weight", "linear", post=1, pre=0, units=-1)]
