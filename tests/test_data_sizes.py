"""Sizes that depend on data: a graph of one run says which of them Python went on with."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import biofx


class Net(nn.Module):
    def __init__(self, then: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.then = then
        self.register_buffer("zero", torch.zeros(6, 4))

    def forward(self, x):
        return self.then(self.fc, x)


def picked(h: Tensor) -> Tensor:
    return h[h[:, 0] > 0]


def experts(fc: nn.Module, h: Tensor, *, skip: bool) -> Tensor:
    """Rows go to experts, each of which works on as many as there are."""
    out, best = torch.zeros_like(h), h.argmax(-1)
    for expert in range(4):
        rows = torch.where(best == expert)[0]
        if skip and rows.numel() == 0:
            continue
        gate, up = fc(h[rows]).chunk(2, -1)
        out.index_add_(0, rows, torch.cat([gate * up, gate], -1))
    return out.view(h.shape[0], -1)


LISTED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a branch": lambda fc, h: fc(h) if picked(h).shape[0] > 3 else h,
    "the length": lambda fc, h: fc(h) * len((h > 0).nonzero()),
    "the number of elements": lambda fc, h: fc(h) * h[h > 0].numel(),
    "one axis": lambda fc, h: h * fc(picked(h)).relu().size(0),
    "by keyword": lambda fc, h: h * fc(picked(h)).size(dim=0),
    "from the end": lambda fc, h: h * fc(picked(h)).T.size(-1),
    "after a reshape": lambda fc, h: h * fc(picked(h)).reshape(-1, 2).shape[0],
    "after cat": lambda fc, h: h * torch.cat([fc(picked(h)), h]).shape[0],
    "after a view": lambda fc, h: h * fc(picked(h)).T[:2].flatten().shape[0],
    "after attention": lambda fc, h: h * F.scaled_dot_product_attention(
        fc(picked(h))[None], picked(h)[None], picked(h)[None]).shape[1],
    "a loop": lambda fc, h: sum(row.tanh() for row in fc(picked(h))),
    "parts": lambda fc, h: fc(picked(h)).split(2)[-1].sum() * h,
    "repeated": lambda fc, h: fc(h) * h.repeat_interleave((h[:, 0] > 0).long(), 0).shape[0],
    "found once": lambda fc, h: fc(h) * h.argmax(-1).unique().shape[0],
    "counted": lambda fc, h: fc(h) * torch.bincount(h.argmax(-1)).shape[0],
    "experts that rest": lambda fc, h: experts(fc, h, skip=True),
}  # fmt: skip
FIXED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "the other axis": lambda fc, h: h * fc(picked(h)).size(-1),
    "a sum": lambda fc, h: h * fc(picked(h)).sum(0).shape[0],
    "put back": lambda fc, h: fc(h).index_add(0, torch.where(h[:, 0] > 0)[0], picked(h)).view(
        h.shape[0], -1),
    "written in place": lambda fc, h: h * fc(h).masked_fill(h > 0, 0).shape[0],
    "a mask that is assigned to": lambda fc, h: _assigned(fc(h)),
    "chosen by numbers": lambda fc, h: h * fc(h)[h.argmax(-1)].shape[0],
    "halves of each row": lambda fc, h: fc(h) + fc(picked(h)).chunk(2, -1)[0].sum(),
    "a constant mask": lambda fc, h: fc(h) * torch.ones(3, 3).triu().nonzero().shape[0],
    "nothing asked": lambda fc, h: fc(picked(h)),
    "experts": lambda fc, h: experts(fc, h, skip=False),
}  # fmt: skip


def _assigned(h: Tensor) -> Tensor:
    h = h.clone()
    h[h > 0] = 1.0
    return h * h.shape[0]


def run_of(then: Callable[[Any, Tensor], Tensor]) -> tuple[Any, Tensor]:
    """A transformed model, and data of which other numbers are positive."""
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    x[:4, 0], x[4:, 0] = 1.0, -1.0
    other = x.flip(1)
    other[0, 0], other[1:, 0] = 9.0, -1.0
    return biofx.transform(Net(then), example_inputs=x), other


@pytest.mark.parametrize("name", LISTED)
def test_a_size_of_data_is_an_assumption(name: str) -> None:
    bio, other = run_of(LISTED[name])
    assumptions = biofx.info(bio).assumptions
    assert {(a.kind, a.where.partition(":")[0]) for a in assumptions} == {
        ("data", "test_data_sizes.py")
    }
    expected = bio(other)
    bio.recompile()
    try:
        same = torch.equal(bio(other), expected)
    except (RuntimeError, IndexError, biofx.ModelError):
        same = False
    assert not same  # so it had to be said


@pytest.mark.parametrize("name", FIXED)
def test_no_other_size_is_one(name: str) -> None:
    bio, other = run_of(FIXED[name])
    assert not biofx.info(bio).assumptions
    expected = bio(other)
    bio.recompile()
    assert torch.equal(bio(other), expected)


def test_it_is_read_as_a_sentence() -> None:
    bio, _ = run_of(LISTED["a branch"])
    [assumption] = biofx.info(bio).assumptions
    assert assumption.what == "the size of a tensor gave torch.Size([4, 4])"
    shown = " ".join(str(biofx.diff(bio)).split())
    assert "takes a value from data: the size of a tensor was torch.Size([4, 4])" in shown
