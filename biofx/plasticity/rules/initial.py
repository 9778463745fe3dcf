"""What new synapses are drawn from; and the law that a layer was initialised with."""

import math
from typing import Any

import torch
from torch import Tensor

from biofx.plasticity.kernels.base import Tensors
from biofx.plasticity.numerics import random
from biofx.plasticity.numerics.shards import all_sum
from biofx.plasticity.rules.rule import Context, scalar

LAW, SCALE = "initial_law", "initial_scale"
DEVIATIONS = 6.0  # of a sample's variance: beyond these, weights are of another law


def uniform_synapses(draw: Tensor, max_abs: Tensor) -> Tensor:
    """New weights on [−max|w|, max|w|) from uniforms on [−1, 1): the paper's law."""
    return max_abs * draw


def lognormal_synapses(noise: Tensor, sign: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """New weights ±exp(mean + std·z): sizes distributed as the layer's own.

    Args:
        noise: z, standard normals.
        sign: numbers as likely positive as negative, whose signs the weights get.
        mean, std: moments of ln|w| over the layer's weights that are not 0, of shape ().
    """
    return torch.exp(mean + std * noise).copysign(sign)


def remembered_law() -> dict[str, tuple[float, float] | frozenset[str]]:
    """What `remember_law` keeps, for `Rule.remembers`."""
    return {LAW: frozenset({"normal", "uniform"}), SCALE: (0.0, math.inf)}


def remember_law(context: Context) -> None:
    """Keep in ``context.state`` what the parameter's weights are drawn from at the start.

    That is the law of PyTorch's layer type if the weights as they are now, over all shards, have
    its variance within sampling error (or a hundredth); else a normal law with their own mean
    square: the model has an initialisation of its own, or is trained already.
    """
    weight, shard = context.weight, context.shard
    wide_type = torch.float32 if weight.device.type == "mps" else torch.float64
    # In that type from the start: the square of a large or small float32 is none.
    squares = all_sum(torch.linalg.vector_norm(weight, dtype=wide_type).square(), shard)
    variance = float(squares) / max(shard.numel, 1)
    law = context.initial
    context.state[LAW], context.state[SCALE] = "normal", math.sqrt(variance)
    if law is not None:
        error = max(DEVIATIONS * math.sqrt(2 / max(shard.numel, 1)), 0.01)
        if abs(variance / law.variance - 1) <= error:
            context.state[LAW], context.state[SCALE] = law.kind, law.scale


def draw_initial(key: Tensor, index: Tensor, inputs: Tensors, *, normal: bool) -> Tensor:
    """New weights, float32, of `remember_law`.

    Args:
        key, index: as for `random.uniform`.
        inputs: holds the law's scale, of shape (), as "initial_scale".
        normal: which law.
    """
    draw = random.normal(key, index, draw=1) if normal else random.symmetric(key, index)
    return inputs[SCALE] * draw


def law_inputs(context: Context) -> tuple[bool, dict[str, Any]]:
    """Whether the remembered law is normal, and what `draw_initial` needs in ``inputs``."""
    state = context.state
    return state[LAW] == "normal", {SCALE: scalar(float(state[SCALE]), context.weight.device)}
