"""Small, realistic architectures, one or more for every construct that biofx must capture.

`ARCHITECTURES` is the table, `BY_NAME` its index, `with_tags` a selection. Tags:

- `captured`: `torch.fx.symbolic_trace` alone is right in both modes and no hook, context manager
  or parametrization is in play, so nothing may be opaque;
- `stateful`: buffers (or parameters) change in `forward`;
- `stateful_python`: other Python state of a module changes in `forward`;
- `rng`: draws random numbers in train or eval mode;
- `no_pickle`, `no_deepcopy`: the original itself cannot be pickled, or copied (with warnings as
  errors); `lossy_copy`: its copies forget something;
- `backward_only`: works with `loss.backward()` but not with `torch.autograd.grad`;
- `no_weights`: has no parameters; `norms_only`: has none with synapses;
- all others name the construct (`training`, `data`, `hooks`, `tied`, `shared`, `conv`, ...).
"""

from . import (  # noqa: F401
    attributes,
    contexts,
    control_flow,
    generative,
    layers,
    sequence,
    signatures,
    state,
    vision,
)
from .table import (
    ARCHITECTURES,
    Architecture,
    architecture,
    floats,
    loss_of,
    seed,
    tensors_in,
    tokens,
)

BY_NAME = {entry.name: entry for entry in ARCHITECTURES}


def with_tags(*tags: str, without: tuple[str, ...] = ()) -> list[Architecture]:
    """Entries that carry all of `tags` and none of `without`."""
    return [
        entry
        for entry in ARCHITECTURES
        if entry.tags >= set(tags) and not entry.tags & set(without)
    ]


__all__ = [
    "ARCHITECTURES",
    "BY_NAME",
    "Architecture",
    "architecture",
    "floats",
    "loss_of",
    "seed",
    "tensors_in",
    "tokens",
    "with_tags",
]
