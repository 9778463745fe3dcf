"""Ways that lead out of a unit past the layers that read it: each is found, or is a reason."""

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import biofx
from biofx.synapses import Population
from tests.silencing import check, norms_without_statistics
from tests.test_units import tied


class Layers(nn.Module):
    """A model of the layers that it is given."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class AddedToScores(Layers):
    """Attention whose scores a layer biases."""

    def forward(self, x: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        a, q = self.a(pairs), self.q(x)[:, None]
        y = F.scaled_dot_product_attention(q, q, q, attn_mask=a[..., 0][:, None])
        return self.o(y), self.z(a)


class AddedToScoresOfModule(Layers):
    def forward(self, x: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        a = self.a(pairs)
        mask = a.permute(0, 3, 1, 2).flatten(0, 1)
        return self.o(self.attention(x, x, x, attn_mask=mask)[0]), self.z(a)


class Grid(Layers):
    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        grid = a[:, :2].permute(0, 2, 3, 1).tanh()
        return self.z(F.grid_sample(a, grid, align_corners=False))


class NormScale(Layers):
    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        a = self.a(c.mean(0))
        return self.o(F.layer_norm(self.q(x), (8,), weight=a)), self.z(a)


class Padded(Layers):
    """Units at the ends come twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.z(F.pad(self.a(x)[:, None], (2, 2), mode="circular")[:, 0])


class ChosenRows(Layers):
    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.z(a[a[:, 0] > 0].mean(0))


class LargestRow(Layers):
    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.z(a[a[:, 0].argmax()])


class RowOfMaximum(Layers):
    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        _, place = a[:, 0].max(0)
        return self.z(a[place])


class FirstRows(Layers):
    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.z(a.index_select(0, a[:, 0].sort().indices[:2]))


class Filled(Layers):
    """A number that a unit computes, in a tensor that has nothing else of it."""

    def forward(self, x: Tensor) -> Tensor:
        a, q = self.a(x), self.q(x)
        return self.z(a) + self.o(q + torch.zeros_like(q).fill_(a[0, 0]))


class Extremes(Layers):
    def forward(self, x: Tensor) -> Tensor:
        least, most = self.a(x).aminmax(dim=0)
        return self.z(least + most)


class RowsAgain(Layers):
    """The rows of a layer make something else too."""

    def __init__(self, of: Callable[[Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__(**layers)
        self.of = of

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = self.of(self.a.weight)
        return self.z(self.a(x).relu()), F.linear(x[:, : made.shape[1]], made)


class Penalised(Layers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.z(self.a(x).relu()), self.a.weight.square().sum()


class ReadByPython(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.z(self.a(x).relu()) * float(self.a.weight.norm())


class Tied(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.z(F.linear(self.a(x).relu(), self.a.weight.t()))


class TurnedRound(Layers):
    """The second layer's square weights the wrong way round: its rows are read, not its columns."""

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.b(x).relu() @ self.a.weight) + self.z(self.a(x))


class TiedParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.z = nn.ParameterList([torch.randn(8, 8)]), linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.z(torch.relu(x @ self.a[0]) @ self.a[0].t())


class ScaleAgain(Layers):
    """What scales units does something else too: it is not theirs, and they are followed."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.z(self.a(x) * self.q.bias), x + self.q.bias


class Buffered(Layers):
    """A later call reads what this one writes into a buffer."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__(**layers)
        self.register_buffer("h", torch.zeros(9, 8))

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).tanh()
        y = self.z(a) + self.later(self.h)
        self.keep(a.detach())
        return y

    def keep(self, a: Tensor) -> None:
        self.h.copy_(a)


class Assigned(Buffered):
    def keep(self, a: Tensor) -> None:
        self.h = a


class Remembered(Layers):
    def __init__(self, **layers: nn.Module) -> None:
        super().__init__(**layers)
        self.past: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).tanh()
        self.past.append(a)
        return self.z(a)


class Queued(Layers):
    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).tanh()
        self.last = {"steps": collections.deque([a])}
        return self.z(a)


class Teacher(Layers):
    """An average of a layer's weights, kept up in the forward."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            self.t.weight.mul_(0.9).add_(self.a.weight, alpha=0.1)
        return self.z(self.a(x)), self.t(x)


class Clamped(Layers):
    """Weights that a forward keeps small."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.a.weight.clamp_(-1, 1)
        return self.z(self.a(x))


class Iterated(Layers):
    """`b` reads the input first, and then what `a` makes of its own units."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.a(self.b(x).relu()).relu()
        return self.z(x)


class IteratedLSTM(Layers):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.a(self.b(x)[0]).relu()
        return self.z(x)


class Unrolled(Layers):
    """A recurrent network that begins with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x)
        for part in (x, 2 * x):
            h = (self.b(part) + self.a(h)).tanh()
        return self.z(h)


class SharedBias(Layers):
    def __init__(self, **layers: nn.Module) -> None:
        super().__init__(**layers)
        self.b.bias = self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.z(self.b(self.a(x).relu()).relu())


class BiasAsScale(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.z(self.b(self.a(x).relu()).relu() * self.a.bias)


class InnerStep(Layers):
    """A step of descent on its own weights."""

    def forward(self, x: Tensor) -> Tensor:
        loss = self.z(self.a(x).tanh()).square().mean()
        (down,) = torch.autograd.grad(loss, self.a.weight, create_graph=True)
        return self.o(F.linear(x, self.a.weight - down, self.a.bias).tanh())


def linear(*sizes: int) -> nn.Linear:
    return nn.Linear(*sizes)


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape)


def row_model(kind: Callable[..., nn.Module], **more: Any) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (kind(a=linear(8, 8), z=linear(8, 3), **more), rows(9, 8))


AGAIN, ROUND = "uses their weights too", "with the weights of a turned round"
ELSE = "b reads something else in the same place"
BESIDE = "takes them beside its input"
# name: (model and input, part of the reason of some units of its layer `a`; None if none has any)
WAYS: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], str | None]] = {
    "a bias of attention": (
        lambda: (
            AddedToScores(a=linear(5, 2), q=linear(6, 8), o=linear(8, 2), z=linear(2, 3)),
            (rows(2, 5, 6), rows(2, 5, 5, 5)),
        ), BESIDE,
    ),
    "a bias of nn.MultiheadAttention": (
        lambda: (
            AddedToScoresOfModule(
                a=linear(5, 2), attention=nn.MultiheadAttention(6, 2, batch_first=True),
                o=linear(6, 2), z=linear(2, 3),
            ), (rows(2, 5, 6), rows(2, 5, 5, 5)),
        ), BESIDE,
    ),
    "a grid": (
        lambda: (Grid(a=nn.Conv2d(3, 4, 3, padding=1), z=nn.Conv2d(4, 5, 3)), rows(2, 3, 6, 6)),
        BESIDE,
    ),
    "a norm's scale": (
        lambda: (
            NormScale(a=linear(8, 8), q=linear(8, 8), o=linear(8, 2), z=linear(8, 3)),
            (rows(9, 8), rows(9, 8)),
        ), BESIDE,
    ),
    "circular padding": (lambda: (Padded(a=linear(8, 8), z=linear(12, 3)), rows(4, 8)), None),
    "a mask": (row_model(ChosenRows), BESIDE),
    "an index": (row_model(LargestRow), BESIDE),
    "an index of a maximum": (row_model(RowOfMaximum), BESIDE),
    "an order": (row_model(FirstRows), BESIDE),
    "a number": (row_model(Filled, q=linear(8, 8), o=linear(8, 3)), BESIDE),
    "two results": (row_model(Extremes), None),
    "normalised rows": (row_model(RowsAgain, of=F.normalize), AGAIN),
    "some columns": (row_model(RowsAgain, of=lambda w: w[:, :4]), AGAIN),
    "doubled rows": (row_model(RowsAgain, of=lambda w: w.clone() * 2), AGAIN),
    "a penalty": (row_model(Penalised), "their weights are a result of the model"),
    "a number of Python's": (row_model(ReadByPython), "Python reads their weights"),
    "tied": (row_model(Tied), ROUND),
    "tied without layers": (lambda: (TiedParameter(), rows(9, 8)), ROUND),
    "turned round": (row_model(TurnedRound, b=linear(8, 8), o=linear(8, 3)), AGAIN),
    "a buffer": (row_model(Buffered, later=linear(8, 3)), "the model keeps them in h"),
    "an attribute": (row_model(Assigned, later=linear(8, 3)), "the model keeps them in h"),
    "a list": (row_model(Remembered), "the model keeps them in past"),
    "a queue": (row_model(Queued), "the model keeps them in last"),
    "a teacher": (
        row_model(Teacher, t=linear(8, 8)), "the model keeps what their weights make in t.weight",
    ),
    "its own weights": (row_model(Clamped), None),
    "a layer that reads the input too": (row_model(Iterated, b=linear(8, 8)), ELSE),
    "an LSTM that reads the input too": (
        row_model(IteratedLSTM, b=nn.LSTM(8, 8, batch_first=True)), ELSE,
    ),
    "zeros first": (row_model(Unrolled, b=linear(8, 8)), "several producers: b, a"),
    "a shared bias": (row_model(SharedBias, b=linear(8, 8)), "several producers: a, b"),
    "a bias that scales": (row_model(BiasAsScale, b=linear(8, 8)), "several producers: a, b"),
    "a step of descent": (row_model(InnerStep, o=linear(8, 3)), AGAIN),
    "a scale": (row_model(ScaleAgain, q=linear(8, 8)), None),
}  # fmt: skip


def made(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any, list[Population]]:
    """A transformed model in double precision, its inputs, and its units."""
    inputs = tuple(t.double() for t in (inputs if isinstance(inputs, tuple) else (inputs,)))
    bio = biofx.transform(model.double().eval(), example_inputs=inputs)
    return bio, inputs, list(biofx.info(bio).wiring.units)


@pytest.mark.parametrize("name", WAYS)
def test_no_way_leads_out_of_a_unit_unsaid(name: str) -> None:
    torch.manual_seed(0)
    make, reason = WAYS[name]
    bio, inputs, populations = made(*make())
    found = [p.reason for p in populations if p.layer == "a"]
    if reason is None:
        assert found == [None] * len(found)
    else:
        assert any(reason in (told or "") for told in found), found
    with norms_without_statistics():
        for population in populations:
            if population.reason is None and not tied(population):
                check(bio, population, inputs)


class WrittenIntoFlat(nn.Module):
    """What is written into a view that a module makes goes into what it is a view of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.z = nn.Conv1d(2, 4, 1), nn.Conv1d(4, 2, 1)
        self.b, self.flat = nn.Linear(6, 12), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x.view(-1, 2, 3))
        flat = self.flat(a)
        flat += self.b(x)
        return self.z(a)


class WrittenIntoHalf(Layers):
    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).clone()
        top, _ = torch.vsplit(a, 2)
        top += self.b(x)[: len(top)]
        return self.z(a)


class WrittenOut(Layers):
    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).detach()
        torch.add(a, self.b(x), out=a)
        return self.z(a)


@pytest.mark.parametrize(
    "model",
    [
        WrittenIntoFlat(),
        WrittenIntoHalf(a=linear(6, 8), b=linear(6, 8), z=linear(8, 3)),
        WrittenOut(a=linear(6, 8), b=linear(6, 8), z=linear(8, 3)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_is_written_into_a_view_is_in_its_base(model: nn.Module) -> None:
    bio, _, populations = made(model.requires_grad_(not isinstance(model, WrittenOut)), rows(4, 6))
    wiring = biofx.info(bio).wiring
    assert set(wiring.edges) == {("a", "z"), ("b", "z")}
    assert wiring.outputs == ("z",)
    assert not any(p.reason is None for p in populations if p.layer in ("a", "b"))


@pytest.mark.parametrize("kind", [Buffered, Assigned])
def test_what_a_later_call_reads_is_downstream(kind: Callable[..., nn.Module]) -> None:
    model = kind(a=linear(8, 8), z=linear(8, 3), later=linear(8, 3))
    wiring = biofx.info(made(model, rows(9, 8))[0]).wiring
    assert wiring.edges == (("a", "z"), ("a", "later"))


def test_what_the_model_keeps_is_a_result() -> None:
    model = Remembered(a=linear(8, 8), z=linear(8, 3))
    config = biofx.BioConfig(weight_splitting_Gamma=2)
    bio = biofx.transform(model, config, example_inputs=rows(9, 8))
    assert "its output is a result of the model" in biofx.info(bio).layers["a"].reason


class WrittenConstant(Layers):
    """Data is in what shares memory with a constant that it was written into."""

    def forward(self, x: Tensor) -> Tensor:
        held = torch.zeros(len(x), 8, dtype=x.dtype)
        held.view(-1)[:] = x.reshape(-1)
        return self.z(self.a(x) + held)


def test_a_constant_that_data_is_written_into() -> None:
    _, _, populations = made(WrittenConstant(a=linear(8, 8), z=linear(8, 3)), rows(9, 8))
    assert "joins them with what no weight layer makes" in (populations[0].reason or "")
