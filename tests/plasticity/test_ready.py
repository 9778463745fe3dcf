"""Kernels that are ready: what they look at before they are called again."""

import weakref
from typing import Any

import pytest
import torch

from biofx.plasticity.kernels.ready import ReadyRows


class TestReadyRows:
    def test_looks_at_tensors_that_are_others(self) -> None:
        fixed, other = torch.zeros(2, 128), torch.zeros(2, 128)
        ready, calls = self.make(fixed, other)
        assert ready.run((fixed, other))
        assert ready.run((fixed, torch.ones(2, 128)))
        assert not ready.run((fixed, torch.ones(2, 128, dtype=torch.float64)))
        assert not ready.run((fixed, torch.ones(1, 128)))
        assert not ready.run((torch.zeros(3, 128), other))
        assert ready.run((torch.zeros(2, 128), other))
        assert len(calls) == 3

    @pytest.mark.parametrize(
        "other",
        [
            torch.zeros(2, 128, dtype=torch.float64),
            torch.zeros(2, 1),
            torch.zeros(()).expand(2, 128),
        ],
        ids=["type", "shape", "no run of memory"],
    )
    def test_looks_at_the_first_call_too(self, other: torch.Tensor) -> None:
        fixed = torch.zeros(2, 128)
        ready, calls = self.make(fixed, torch.zeros(2, 128))
        assert not ready.run((fixed, other))
        assert not calls

    def test_holds_no_tensor(self) -> None:
        """What an optimizer's state is laid out in is as large as the weights."""
        fixed, passing = torch.zeros(2, 128), torch.zeros(2, 128)
        ready, calls = self.make(fixed, passing)
        assert ready.run((fixed, passing))
        calls.clear()
        seen = weakref.ref(passing)
        del passing
        assert seen() is None

    def make(self, *leaves: torch.Tensor) -> tuple[ReadyRows, list[Any]]:
        calls: list[Any] = []
        first, columns = torch.zeros(2, 1), torch.zeros(128)
        return ReadyRows.of(calls.append, leaves, first, columns), calls
