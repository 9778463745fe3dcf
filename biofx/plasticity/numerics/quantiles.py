"""A quantile over all shards, for which only counts cross process borders."""

import torch
from torch import Tensor

from biofx.plasticity.numerics.shards import Shard, all_sum

BINS = 4096
LEVELS = 2  # of 12 bits each: their steps are still exact in float32


def limit_below(scores: Tensor, shard: Shard, most: int) -> Tensor:
    """The largest t, in steps of 2⁻²⁴, such that at most `most` scores of all shards lie below it.

    Counts are whole numbers, so shards agree exactly with one process.

    Args:
        scores: the local ones, on [0, 1].
        shard: where they lie in the whole.
        most: a number of scores.

    Returns:
        float32 of shape ().
    """
    scores = scores.double().flatten()
    low, width, below = 0.0, 1.0, 0
    for _ in range(LEVELS):
        width /= BINS
        place = ((scores - low) / width).floor()
        place = place[(place >= 0) & (place < BINS)].long()
        running = all_sum(torch.bincount(place, minlength=BINS), shard).cumsum(0) + below
        full = int((running <= most).sum())
        if full:
            below = int(running[full - 1])
        low += full * width
        if full == BINS:
            break
    return torch.tensor(low, dtype=torch.float32, device=scores.device)
