"""Checks populations by numbers: what a unit does must pass through the entries listed for it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import biofx
from biofx.synapses import Entries, Population, Reader, axes_of

# Norms whose statistics units share, as what they are to each element.
_NORMS = {
    "layer_norm": lambda x, shape, weight=None, bias=None, eps=0.0: _affine(x, weight, bias),
    "rms_norm": lambda x, shape, weight=None, eps=None: _affine(x, weight, None),
    "group_norm": lambda x, groups, weight=None, bias=None, eps=0.0: _channels(x, weight, bias),
    "normalize": lambda x, *args, **kwargs: x,
    "local_response_norm": lambda x, *args, **kwargs: x,
}


class Doubled(torch.autograd.Function):
    """An operation that is not known to biofx: it may do anything to units."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 2


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _channels(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (-1, *[1] * (x.dim() - 2))
    return _affine(
        x,
        None if weight is None else weight.view(shape),
        None if bias is None else bias.view(shape),
    )


@contextlib.contextmanager
def norms_without_statistics() -> Iterator[None]:
    """Norms that units share act on each element by itself: no unit is seen through another."""
    kept = {name: getattr(F, name) for name in _NORMS}
    kept_torch = {name: getattr(torch, name) for name in ("layer_norm", "group_norm", "rms_norm")}
    try:
        for name, function in _NORMS.items():
            setattr(F, name, function)
        yield
    finally:
        for name, function in kept.items():
            setattr(F, name, function)
        for name, function in kept_torch.items():
            setattr(torch, name, function)


def tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors in a result."""
    if isinstance(value, Tensor):
        return [value.detach().clone()] if value.is_floating_point() else []
    if hasattr(value, "to_tuple"):
        value = value.to_tuple()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [t for item in value for t in tensors(item)]
    return []


def part(tensor: Tensor, entries: Entries, unit: int) -> tuple[Any, ...]:
    """An index of one unit's entries."""
    own = entries.index(torch.tensor([unit])).flatten()
    return (slice(None),) * entries.axis + (own,)


def distance(a: Any, b: Any) -> float:
    """The largest difference between two results."""
    pairs = zip(tensors(a), tensors(b), strict=True)
    return max((float((x - y).abs().max()) for x, y in pairs if x.numel()), default=0.0)


@contextlib.contextmanager
def changed(
    model: nn.Module, edits: list[tuple[Entries, float | None]], unit: int
) -> Iterator[None]:
    """Some entries of a unit set to a number, or moved by chance where that is None."""
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    generator = torch.Generator().manual_seed(unit)
    with torch.no_grad():
        for entries, value in edits:
            tensor = held(model, entries.name)
            kept.setdefault(id(tensor), (tensor, tensor.detach().clone()))
            index = part(tensor, entries, unit)
            if value is not None:
                tensor[index] = value
            else:
                shape = tensor[index].shape
                noise = torch.randn(shape, generator=generator, dtype=tensor.dtype)
                tensor[index] = tensor[index] + 0.5 + noise.abs()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in kept.values():
                tensor.copy_(values)


def held(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its qualified name."""
    owner, _, own = name.rpartition(".")
    value: Tensor = getattr(model.get_submodule(owner), own)
    return value


def call(model: nn.Module, inputs: Any) -> Any:
    """The result on example inputs in any of their forms.

    With gradients: without, transformer layers run fused kernels, which call no layer inside.
    """
    with torch.enable_grad():
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def seen_by(
    model: nn.Module, layers: list[str], inputs: Any
) -> tuple[Any, dict[str, list[Tensor]]]:
    """The result, and what some layers were called with."""
    seen: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [
        model.get_submodule(layer).register_forward_pre_hook(
            lambda _, args, layer=layer: seen[layer].append(args[0].detach().clone())
        )
        for layer in layers
    ]
    try:
        return call(model, inputs), seen
    finally:
        for hook in hooks:
            hook.remove()


def check(bio: nn.Module, population: Population, inputs: Any, units: int = 3) -> bool:
    """Check some units of a population; whether moving them changes the result at all.

    - With a unit's columns in all of its readers at 0, nothing that happens to the unit's incoming
      weights, bias and norm entries changes the result: no other way leads out of it.
    - That is the same as setting its activation to 0 where they read it: the places of a reader's
      input that move with the unit, found by moving it, are those that the columns stand for.
    """
    kinds = ("bias",) if population.reason else ("bias", "scale", "shift")  # norms see others too
    vectors = [e for kind in kinds for e in population.vectors.get(kind, ())]
    moved: list[tuple[Entries, float | None]] = [
        (e, None) for e in (*population.incoming, *vectors)
    ]
    silent: list[tuple[Entries, float | None]] = [(r.weight, 0.0) for r in population.readers]
    alive = False
    hooked = all(_is_called(bio, reader) for reader in population.readers)
    layers = sorted({reader.layer for reader in population.readers}) if hooked else []
    for unit in sorted({0, population.size // 2, population.size - 1})[:units]:
        plain = call(bio, inputs)
        scale = max((float(t.abs().max()) for t in tensors(plain) if t.numel()), default=1.0)
        with changed(bio, moved, unit):
            moves = distance(call(bio, inputs), plain)
        alive |= moves > 1e-9 * scale
        noise = 1e-6 * moves + 1e-12 * scale
        with changed(bio, silent, unit):
            without, before = seen_by(bio, layers, inputs)
            with changed(bio, moved, unit):
                still, after = seen_by(bio, layers, inputs)
        assert distance(still, without) <= noise, f"{population.name} {unit} leaks"
        if layers and all(before.values()):  # else a weight is used without calling its layer
            places = _places(before, after)
            _check_columns(bio, population, unit, places)
            assert distance(_zeroed(bio, places, inputs), without) <= noise, population.name
    return alive


def _is_called(bio: nn.Module, reader: Reader) -> bool:
    """Whether what a reader is called with meets the weight: not in a recurrent layer's inside."""
    synapses = biofx.info(bio).synapses.get(reader.weight.name)
    module = bio.get_submodule(reader.layer)
    return (
        synapses is not None
        and (synapses.kind == "linear" or synapses.kind.startswith("conv"))
        and bool(axes_of(module))
        and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    )


def _places(
    before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]
) -> dict[str, list[Tensor]]:
    """{reader: masks of what moves in its inputs}."""
    return {
        layer: [
            (a - b).abs() > 1e-12 * (1 + b.abs())
            for a, b in zip(before[layer], after[layer], strict=True)
        ]
        for layer in before
    }


def _zeroed(bio: nn.Module, places: dict[str, list[Tensor]], inputs: Any) -> Any:
    hooks = []
    for layer, masks in places.items():
        left = iter(masks)

        def zero(_: nn.Module, args: Any, left: Iterator[Tensor] = left) -> Any:
            return (args[0].masked_fill(next(left), 0.0), *args[1:])

        hooks.append(bio.get_submodule(layer).register_forward_pre_hook(zero))
    try:
        return call(bio, inputs)
    finally:
        for hook in hooks:
            hook.remove()


def _check_columns(
    bio: nn.Module, population: Population, unit: int, places: dict[str, list[Tensor]]
) -> None:
    """What moves at a reader's input lies on the columns that are listed, and nowhere else."""
    synapses = biofx.info(bio).synapses
    for layer, masks in places.items():
        known = [r for r in population.readers if r.layer == layer]
        pre = {synapses[r.weight.name].pre_axis for r in known if r.weight.name in synapses}
        if any(r.weight.axis not in pre for r in known) or len(pre) != 1:
            continue  # rows of a depthwise convolution
        kinds = {synapses[r.weight.name].kind for r in known}
        axis = -1 - int(min(kinds)[-2]) if min(kinds).startswith("conv") else -1
        listed = {int(i) for r in known for i in r.weight.index(torch.tensor([unit])).flatten()}
        for mask in masks:
            others = [a for a in range(mask.dim()) if a != axis % mask.dim()]
            if population.reason:  # a constant may take the place at times: a class token
                mask |= mask.clone().amax(others, keepdim=True) if others else mask
            found = set((mask.sum(others) > 0).nonzero().flatten().tolist())
            assert found <= listed, f"{population.name} {unit}: {layer} sees it in {found}"
