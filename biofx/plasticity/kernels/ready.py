"""Compiled kernels with all of their arguments that stay the same from call to call."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from biofx.plasticity.kernels.layout import as_bytes
from biofx.plasticity.kernels.tracing import Kernel


@dataclass(frozen=True, slots=True)
class Ready:
    """A kernel for matrices and all of its arguments that stay the same for one shard.

    Attributes:
        kernel: takes `first`, `columns` and the tensors of a `KernelCall`.
        kinds: types of those tensors, and which of them are no scalars.
        shape, size: how they come, and the rows and columns that they are presented in.
        first: global index of the first local element.
        columns: of `line`.
    """

    kernel: Kernel
    kinds: tuple[tuple[torch.dtype, bool], ...]
    shape: tuple[int, ...]
    size: tuple[int, int]
    first: Tensor
    columns: Tensor

    def run(self, leaves: Sequence[Tensor]) -> bool:
        """Call the kernel, if the tensors are as they were."""
        if leaves[0].device != self.first.device:
            return False
        rows, length = self.size
        as_is = self.shape == self.size  # a matrix already
        parts = [self.first, self.columns]
        for leaf, (dtype, full) in zip(leaves, self.kinds, strict=True):
            if leaf.dtype is not dtype:
                return False
            if full:
                if leaf.shape != self.shape or not leaf.is_contiguous():
                    return False
                leaf = as_bytes(leaf) if as_is else as_bytes(leaf).view(rows, length)
            elif leaf.dim():
                return False
            parts.append(leaf)
        self.kernel(parts)
        return True


@dataclass(slots=True)
class ReadyRows:
    """As `Ready`, of a kernel for the rows of an arena.

    Attributes:
        types, shapes: of the tensors of a `KernelCall`.
        masks: places of those that are masks.
        known: of each tensor, the one that has come at every call, if it is one: most are matrices
            of the arena, which need no second look. At first those that the kernel was made for.
    """

    kernel: Kernel
    types: list[torch.dtype]
    shapes: list[torch.Size]
    masks: tuple[int, ...]
    first: Tensor
    columns: Tensor
    known: list[weakref.ref[Tensor] | None]

    @classmethod
    def of(
        cls, kernel: Kernel, leaves: Sequence[Tensor], first: Tensor, columns: Tensor
    ) -> "ReadyRows":
        """A kernel that was made for these tensors."""
        types, shapes = [leaf.dtype for leaf in leaves], [leaf.shape for leaf in leaves]
        masks = tuple([i for i, dtype in enumerate(types) if dtype == torch.bool])
        return cls(kernel, types, shapes, masks, first, columns, [*map(weakref.ref, leaves)])

    def run(self, leaves: Sequence[Tensor]) -> bool:
        """Call the kernel, if the tensors are as they were."""
        known = self.known
        for place, leaf in enumerate(leaves):
            one = known[place]
            if one is None or one() is not leaf:
                alike = leaf.dtype is self.types[place] and leaf.shape == self.shapes[place]
                if not (alike and leaf.is_contiguous()):
                    return False
                known[place] = None
        parts = [self.first, self.columns, *leaves]
        for place in self.masks:
            parts[2 + place] = as_bytes(leaves[place])
        self.kernel(parts)
        return True
