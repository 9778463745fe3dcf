"""A quantile over all shards, for which only counts cross process borders."""

import torch
from torch import Tensor

from biofx.plasticity.numerics.shards import Shard, all_sum

LEAST = -(2**24)
BINS, LEVELS = 2**11, 3  # 33 bits: more than there are between `LEAST` and the largest int32


def limit_below(values: Tensor, shard: Shard, most: int) -> Tensor:
    """The largest t such that at most `most` values of all shards lie below it.

    Counts are whole numbers, so shards agree exactly with one process.

    Args:
        values: the local ones, int32, at least `LEAST`.
        shard: where they lie in the whole.
        most: a number of values.

    Returns:
        int32 of shape ().
    """
    values = values.flatten().long() - LEAST
    low, below = 0, 0
    for level in reversed(range(LEVELS)):
        width = BINS**level
        place = torch.div(values - low, width, rounding_mode="floor")
        place = place[(place >= 0) & (place < BINS)]
        running = all_sum(torch.bincount(place, minlength=BINS), shard).cumsum(0) + below
        full = int((running <= most).sum())
        if full:
            below = int(running[full - 1])
        low += full * width
        if full == BINS:
            break
    largest = torch.iinfo(torch.int32).max
    return torch.tensor(min(low + LEAST, largest), dtype=torch.int32, device=values.device)
