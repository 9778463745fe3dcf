"""Optimizer state of few bits: that of new synapses is set to 0, the rest stays to the bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import biofx
from biofx.plasticity import GradScheduler, Rejuvenate, Schedule

from .optimizers import Own

LEVELS = torch.cat([-torch.linspace(1, 0, 129)[:-1], torch.linspace(0, 1, 128)])


class Coded(Tensor):
    """Looks like float32 numbers, and holds a byte for each: levels of a table, times a scale."""

    codes: Tensor
    qmap: Tensor
    scale: float

    @staticmethod
    def __new__(cls, codes: Tensor, qmap: Tensor, scale: float) -> "Coded":
        made: Coded = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # type: ignore[attr-defined]
        made.codes, made.qmap, made.scale = codes, qmap, scale
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].codes, args[0].qmap, args[0].scale)
        raise NotImplementedError(f"Coded has no {function}")

    def numbers(self) -> Tensor:
        return self.qmap[self.codes.long()] * self.scale

    @classmethod
    def of(cls, numbers: Tensor, qmap: Tensor) -> "Coded":
        scale = float(numbers.abs().max()) or 1.0
        near = (numbers.unsqueeze(-1) / scale - qmap).abs().argmin(-1)
        return cls(near.to(torch.uint8), qmap, scale)


class Momentum(Own):
    """SGD whose momentum is kept in few bits: as a subclass, or as codes beside their table."""

    def __init__(self, params: Any, kind: str, levels: Tensor = LEVELS) -> None:
        self.kind, self.levels = kind, levels
        super().__init__(params, lr=1e-3)

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        if self.kind == "subclass":
            known = state.get("exp_avg")
            now = 0.9 * (known.numbers() if known is not None else 0) + g
            state["exp_avg"] = Coded.of(now, self.levels)
        elif self.kind == "codes":
            known = state.get("state1")
            now = g if known is None else 0.9 * self.levels[known.long()] * state["absmax1"] + g
            made = Coded.of(now, self.levels)
            state["state1"], state["qmap1"], state["absmax1"] = made.codes, made.qmap, made.scale
        elif self.kind == "fp8":
            now = 0.9 * (state["exp_avg"].float() if "exp_avg" in state else 0) + g
            state["exp_avg"] = now.to(torch.float8_e4m3fn)
        else:
            now = g
            state["bits"] = (g > 0).to(torch.uint8)
        w.sub_(now, alpha=group["lr"])


def numbers_of(state: dict[str, Any]) -> Tensor:
    if "state1" in state:
        numbers: Tensor = LEVELS[state["state1"].long()] * state["absmax1"]
        return numbers
    value = state["exp_avg"]
    return value.numbers() if isinstance(value, Coded) else value.float()


def trained(kind: str, *, compiled: bool, levels: Tensor = LEVELS) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    bio = biofx.transform(nn.Sequential(nn.Linear(64, 64, bias=False)))
    weight = bio.get_parameter("0.weight")
    optimizer = Momentum(bio.parameters(), kind, levels)
    rule = Rejuvenate(schedule=Schedule(every=3, stop=3))
    GradScheduler(bio, optimizer, rules=[rule], compile=compiled)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        before = weight.detach().clone()
        weight.grad = torch.randn(64, 64, generator=generator)
        optimizer.step()
    return optimizer, weight, before


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", ["subclass", "codes", "fp8"])
def test_those_of_new_synapses_are_cleared(kind: str, compiled: bool) -> None:
    optimizer, weight, before = trained(kind, compiled=compiled)
    torch.manual_seed(0)
    free = nn.Parameter(torch.empty_like(weight).uniform_())
    other = Momentum([free], kind)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        free.grad = torch.randn(64, 64, generator=generator)
        other.step()
    numbers, plain = numbers_of(optimizer.state[weight]), numbers_of(other.state[free])
    new = (weight.detach() - before).abs() > 0.02
    assert 10 < int(new.sum()) < weight.numel()
    assert (numbers[new] == 0).all()
    old = numbers != 0
    assert torch.equal(numbers[old], plain[old])
    assert int((~old).sum()) < weight.numel() / 2


def test_what_cannot_be_cleared_is_refused() -> None:
    without_zero = torch.linspace(0, 1, 17)[1:]
    for kind, levels, key in (("subclass", without_zero, "exp_avg"), ("bits", LEVELS, "bits")):
        with pytest.raises(biofx.PlasticityError, match=rf"0\.weight.*'{key}'.*Rejuvenate out"):
            trained(kind, compiled=False, levels=levels)


def test_weights_of_few_bits_are_transformed_and_left_alone() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    coded = Coded.of(net[0].weight.detach(), LEVELS)
    net[0].weight = nn.Parameter(coded, requires_grad=False)
    bio = biofx.transform(net)
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"0\.weight: its weights are a Coded, .* left alone"):
        scheduler = GradScheduler(bio, optimizer)
    bio[1](torch.ones(2, 8)).sum().backward()  # type: ignore[index]
    optimizer.step()
    assert list(scheduler.metrics()) == ["1.weight"]
    assert isinstance(net[0].weight, Coded)
