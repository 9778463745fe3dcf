"""What a recorder takes of one parameter: few numbers, at places that depend on its shape alone."""

from array import array

import torch
from torch import Tensor

from biofx.report.history import FACTOR_BINS, UPDATE_BINS, Snapshot, packed
from biofx.synapses import Synapses

SAMPLE = 4096  # synapses of a parameter whose factors, weights and updates are looked at
UNITS = 512  # output units that are asked whether they are silent
WEIGHT_BINS = 32
TAIL = 0.02  # of a sample of weights, on each side, lies outside the histogram
SIDES = (64, 48, 32, 24, 16)
WEIGHTS = {"min": 0.0, "q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
FACTORS = {"q05": 0.05, "q50": 0.5, "q95": 0.95}

# Bytes of a page's JSON, found by writing some: what histories of many layers must share.
PAGE = 1_900_000
MATRICES = 700_000
PER_SAMPLE = 205  # of one layer
PER_SYNAPSE = 16  # of one sample


def kept_synapses(layers: int) -> int:
    """How many synapses of each layer are followed."""
    return 8 if layers <= 64 else 4


def kept_samples(layers: int) -> int:
    """How many samples of each layer are kept, so that a page stays below 3 MB up to 200 layers."""
    each = PER_SAMPLE + PER_SYNAPSE * kept_synapses(layers)
    return min(max(PAGE // (layers * each), 24), 240)


def side(layers: int) -> int:
    """Rows and columns of the weight matrices that are kept."""
    fitting = [side for side in SIDES if layers * 2 * side * side * 4 / 3 <= MATRICES]
    return fitting[0] if fitting else SIDES[-1]


def as_matrix(weight: Tensor, synapses: Synapses) -> Tensor:
    """A parameter as post- × pre-synaptic matrix; kernel positions of one input lie together."""
    if weight.dim() < 2:
        return weight.reshape(-1, 1)
    if synapses.post_axis == synapses.pre_axis:
        return weight.movedim(synapses.post_axis, 0).flatten(1)
    return weight.movedim((synapses.post_axis, synapses.pre_axis), (0, 1)).flatten(1)


def place_in_matrix(index: int, synapses: Synapses) -> tuple[int, int]:
    """Row and column, in the matrix of `as_matrix`, of an element given by its row-major index."""
    shape = synapses.shape
    at = [int(axis) for axis in torch.unravel_index(torch.tensor(index), shape)]
    if len(shape) < 2:
        return at[0], 0
    first = [synapses.post_axis]
    if synapses.pre_axis != synapses.post_axis:
        first.append(synapses.pre_axis)
    rest = [axis for axis in range(len(shape)) if axis not in first]
    column = 0
    for axis in (*first[1:], *rest):
        column = column * shape[axis] + at[axis]
    return at[first[0]], column


def spaced(total: int, count: int, device: torch.device | None = None) -> Tensor:
    """At most `count` evenly spaced ones of `total` lines."""
    count = min(total, count)
    return torch.arange(count, device=device) * total // max(count, 1)


def snapshot(
    weight: Tensor, synapses: Synapses, *, sample: Tensor, step: int, most: int
) -> Snapshot:
    """The weights now: a matrix of evenly spaced rows and columns, and a histogram.

    Args:
        weight: the whole parameter.
        synapses: its axes.
        sample: weights on the CPU, float32.
        step: optimizer steps taken.
        most: rows and columns of the matrix at most.
    """
    matrix = as_matrix(weight, synapses)
    rows = spaced(matrix.shape[0], most, matrix.device)
    columns = spaced(matrix.shape[1], most, matrix.device)
    values = matrix[rows[:, None], columns].float().cpu().nan_to_num(posinf=0.0, neginf=0.0)
    scale = float(values.abs().max()) if values.numel() else 0.0
    roots = (values / (scale or 1.0)).abs().sqrt() * 127
    signed = torch.round(roots).copysign(values).to(torch.int8)
    finite = sample[sample.isfinite()]
    low, high = quantiles(finite, [TAIL, 1 - TAIL]) or [0.0, 0.0]
    if low == high and finite.numel():  # nearly all are one number
        low, high = float(finite.min()), float(finite.max())
    shares = torch.histc(finite, WEIGHT_BINS, low, high) / max(finite.numel(), 1)
    return Snapshot(
        step=step,
        rows=len(rows),
        columns=len(columns),
        scale=scale,
        matrix=array("b", signed.flatten().tolist()).tobytes(),
        low=low,
        high=high,
        histogram=packed(shares.tolist()),
    )


def quantiles(values: Tensor, levels: list[float]) -> list[float]:
    """Quantiles of finite values, as `torch.quantile` gives them in several times the time."""
    if not values.numel():
        return []
    places = torch.tensor(levels, dtype=torch.float64) * (len(values) - 1)
    ordered = values.sort().values.double()
    found: list[float] = torch.lerp(
        ordered[places.floor().long()], ordered[places.ceil().long()], places.frac()
    ).tolist()
    return found


def weight_numbers(sample: Tensor) -> dict[str, float]:
    """Quantiles of a sample of weights."""
    found = quantiles(sample[sample.isfinite()], list(WEIGHTS.values()))
    return {f"weight_{name}": value for name, value in zip(WEIGHTS, found, strict=bool(found))}


def factor_numbers(factors: Tensor) -> dict[str, float]:
    """Mean, spread and quantiles of a sample of factors."""
    finite = factors[factors.isfinite()]
    found = quantiles(finite, list(FACTORS.values()))
    if not found:
        return {}
    named = {f"factor_{name}": value for name, value in zip(FACTORS, found, strict=True)}
    spread = float(finite.std(correction=0))
    return {"factor_mean": float(finite.mean()), "factor_std": spread, **named}


def factor_histogram(factors: Tensor) -> bytes:
    """Shares of factors in bins of 0.05 from 0 on; the last is open."""
    finite = factors[factors.isfinite()]
    bins = (finite * FACTOR_BINS / 2).floor().clamp(0, FACTOR_BINS - 1).long()
    shares = torch.bincount(bins, minlength=FACTOR_BINS) / max(finite.numel(), 1)
    return packed(shares.tolist())


def update_histogram(updates: Tensor) -> bytes:
    """Shares of |Δw| in bins of a quarter of a decade from 1e-8 on; both ends are open."""
    finite = updates[updates.isfinite()].abs()
    bins = ((finite.log10() + 8) * (UPDATE_BINS / 8)).floor().clamp(0, UPDATE_BINS - 1).long()
    shares = torch.bincount(bins, minlength=UPDATE_BINS) / max(finite.numel(), 1)
    return packed(shares.tolist())


def silent_share(grad: Tensor | None, synapses: Synapses) -> float | None:
    """Share of output units all of whose incoming synapses have a gradient of exactly 0.

    The error reaches none of them: a ReLU that no input of the batch opens, say.
    """
    if grad is None or grad.is_sparse or not grad.numel():
        return None
    axis = synapses.post_axis if grad.dim() > 1 else 0
    rows = grad.detach().movedim(axis, 0)
    some = spaced(rows.shape[0], UNITS, rows.device)
    if len(some) < rows.shape[0]:
        rows = rows[some]
    return 1 - float((rows.flatten(1) != 0).any(1).float().mean())


def chosen_to_follow(sample: Tensor, count: int) -> list[int]:
    """Which of the sampled synapses to follow, by rank of |w| from the weakest to the strongest."""
    order = sample.nan_to_num().abs().argsort(stable=True)
    count = min(count, len(order))
    ranks = [((2 * place + 1) * len(order)) // (2 * count) for place in range(count)]
    return [int(order[rank]) for rank in ranks]
