"""Dale's principle in networks of many kinds: who obeys, and whether pairs say the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import biofx
from biofx.plasticity import DalesPrinciple, GradScheduler

OFF = biofx.BioConfig(fuzzy_lr_distribution="baseline")


class Recurrent(nn.Module):
    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(5, 8, 2, batch_first=True, **options)
        width = 16 if options.get("bidirectional") else options.get("proj_size", 8)
        self.hidden, self.out = nn.Linear(width, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.rnn(x)[0][:, -1]).relu())


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(5, 8), nn.Linear(5, 8)
        self.hidden, self.out = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.value(x) * self.gate(x).sigmoid()).relu())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.narrow = nn.Linear(5, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.out(h + self.narrow(self.wide(h).relu()))


def grouped(groups: int, out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, out, 3, groups=groups),
        nn.BatchNorm2d(out),
        nn.ReLU(),
        nn.Conv2d(out, 6, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 2),
    )


sequences = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
images = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))

# What reads the pairs, and the axis of its input that they run along.
NETS: dict[str, tuple[Any, Tensor, str, int]] = {
    "rnn": (lambda: Recurrent(nn.RNN), sequences, "hidden", -1),
    "lstm": (lambda: Recurrent(nn.LSTM), sequences, "hidden", -1),
    "projected": (lambda: Recurrent(nn.LSTM, proj_size=4), sequences, "hidden", -1),
    "gru": (lambda: Recurrent(nn.GRU, bidirectional=True), sequences, "hidden", -1),
    "gated": (Gated, sequences, "hidden", -1),
    "residual": (Residual, sequences, "narrow", -1),
    "grouped": (lambda: grouped(2, 8), images, "5", 1),
    "doubling": (lambda: grouped(8, 16), images, "5", 1),
}


def obeying(model: nn.Module, x: Any) -> tuple[Any, Any]:
    bio = biofx.transform(model, OFF, example_inputs=x)
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    return bio, GradScheduler(bio, optimizer, rules=[DalesPrinciple()])


def ways(scheduler: Any) -> dict[str, str]:
    return {name: numbers["dale"] for name, numbers in scheduler.metrics().items()}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("kind", NETS)
def test_pairs_of_units_begin_by_saying_the_same(kind: str) -> None:
    torch.manual_seed(0)
    make, x, reader, axis = NETS[kind]
    bio, scheduler = obeying(make(), x)
    assert ways(scheduler)[f"{reader}.weight"] == "mirrored"
    seen: list[Tensor] = []
    bio.get_submodule(reader).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    bio(x)
    first, second = seen[0].unflatten(axis, (-1, 2)).unbind(axis if axis < 0 else axis + 1)
    torch.testing.assert_close(first, second)
    assert first.std() > 0


def test_units_of_a_depthwise_convolution_read_different_inputs() -> None:
    torch.manual_seed(0)
    _, scheduler = obeying(grouped(8, 8), images)
    assert ways(scheduler)["5.weight"] == "signs: pairs of 2 read different inputs"


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.out(h)


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.RNN(5, 8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.rnn(x)
        return self.out(y), h


class Own(nn.Module):
    """A layer that reads its own units, beside the input."""

    def __init__(self) -> None:
        super().__init__()
        self.loop, self.out = nn.Linear(13, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        for step in x.unbind(1):
            h = self.loop(torch.cat([step, h], -1)).tanh()
        return self.out(h)


@pytest.mark.filterwarnings("ignore:Dale's principle starts as")
@pytest.mark.parametrize(
    ("make", "free"),
    [(Cell, ["cell.weight_ih"]), (Stateful, ["rnn.weight_ih_l0"]), (Own, [])],
)
def test_only_what_reads_no_units_is_free(make: Any, free: list[str]) -> None:
    torch.manual_seed(0)
    bio = biofx.transform(make(), OFF, example_inputs=sequences)
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    told = ways(GradScheduler(bio, optimizer, rules=[DalesPrinciple()]))
    assert [name for name, way in told.items() if way.startswith("free")] == free
    for _ in range(5):
        out = bio(sequences)
        (out[0] if isinstance(out, tuple) else out).square().mean().backward()
        optimizer.step()
    for name in told.keys() - free:
        weight = bio.get_parameter(name).detach()
        assert not ((weight > 0).any(0) & (weight < 0).any(0)).any(), name


class Tied(nn.Module):
    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.words, self.hidden = nn.Embedding(words, width), nn.Linear(width, width)
        self.out = nn.Linear(width, words, bias=False)
        self.out.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.hidden(self.words(words)).relu())


@pytest.mark.parametrize(("words", "width"), [(9, 6), (5, 8)])
def test_a_tied_embedding_obeys_in_the_sense_of_its_first_layer(words: int, width: int) -> None:
    torch.manual_seed(0)
    model = Tied(words, width)
    before = model.words.weight.detach()[:, 0::2].clone()
    _, scheduler = obeying(model, torch.randint(words, (2, 3)))
    assert ways(scheduler)["words.weight"] == "free: inputs are no units of the network"
    assert torch.equal(model.words.weight[:, 0::2], before)


class Two(nn.Module):
    """Units whose readers begin in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.each = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, groups=8)
        self.all, self.out = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.conv(x).relu()
        return self.out(self.all(h).relu()), self.each(h)


def test_a_unit_has_one_sign_in_layers_that_begin_in_different_ways() -> None:
    torch.manual_seed(0)
    bio, scheduler = obeying(Two(), images)
    assert ways(scheduler)["all.weight"] == "mirrored"
    assert ways(scheduler)["each.weight"].startswith("signs")
    pattern = torch.tensor([1.0, -1.0] * 4)
    assert torch.equal(bio.each.weight.detach().flatten().sign(), pattern)
    assert (bio.all.weight.detach().squeeze().sign() * pattern >= 0).all()
