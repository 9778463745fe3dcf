"""Units: what is claimed about where a unit is read, held against what the numbers do."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import biofx
from biofx.passes.units import populations
from biofx.synapses import Population
from tests.silencing import Doubled, check, norms_without_statistics

SEVERAL = "several producers"


def mlp() -> tuple[nn.Module, Any]:
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Dropout(), nn.Linear(6, 3)
    ), torch.randn(5, 4)  # fmt: skip


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.GELU(), nn.AvgPool2d(2),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(6 * 4, 10), nn.ReLU(), nn.Linear(10, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class ChannelsLast(nn.Module):
    """Channels behind space in the flattened vector: a unit's columns are every sixth."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 3), nn.Linear(6 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).relu().permute(0, 2, 3, 1).reshape(len(x), -1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        self.a, self.b = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(F.relu(self.a(F.relu(x))))
        return self.out(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, 3, groups=8, padding=1)
        self.project, self.out = nn.Conv2d(16, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depthwise(F.hardswish(self.norm(self.expand(x)))))
        return self.out(self.project(x).relu().mean((2, 3)))


class Dense(nn.Module):
    """As in DenseNet: each layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 5, 3, padding=1)
        self.c, self.out = nn.Conv2d(12, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.a(x).relu()], 1)
        x = torch.cat([x, self.b(x).relu()], 1)
        return self.out(self.c(x).amax((-1, -2)))


class Gated(nn.Module):
    """GLU, a chunk that is multiplied, and two layers that are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.glu, self.packed = nn.Linear(4, 16), nn.Linear(8, 12)
        self.gate, self.up = nn.Linear(6, 10, bias=False), nn.Linear(6, 10, bias=False)
        self.down = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.packed(F.glu(self.glu(x))).chunk(2, -1)
        x = a * b.sigmoid()
        return self.down(F.silu(self.gate(x)) * self.up(x))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.b, self.next, self.out = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        x = x * self.b(self.a(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.out(self.next(x).relu().mean((2, 3)))


class Attention(nn.Module):
    """Written by hand, with packed q, k and v."""

    def __init__(self, kernel: str) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        if self.kernel == "matmul":
            y = ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1) @ v
        elif self.kernel == "einsum":
            weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
            y = torch.einsum("bhqk,bhkd->bhqd", weights, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.head(self.out(y.transpose(1, 2).reshape(batch, time, width)).relu())


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, bias=True, add_bias_kv=True)
        self.value, self.query = nn.Linear(6, 6), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended, _ = self.attention(self.query(query), key, self.value(value).tanh())
        return self.out(attended.relu())


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.norm, self.down = nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        parts = self.qkv(self.a(x)).split(width, 2)
        q, k, v = (t.view(batch, time, 2, width // 2).transpose(1, 2) for t in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(batch, time, width))
        return x + self.down(self.norm(F.gelu(self.up(self.b(x)))))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Linear(4, 6), kind(6, 5, batch_first=True, **options)
        width = (options.get("proj_size") or 5) * (2 if options.get("bidirectional") else 1)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(x).relu())[0][:, -1])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(4, 5), nn.GRUCell(5, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, hidden = None, None
        for step in x.unbind(1):
            state = self.lstm(step, state)
            hidden = self.gru(state[0], hidden)
        return self.out(hidden)


class Functional(nn.Module):
    """Weights that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(6, 8))
        self.bias, self.c = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear((x @ self.a).relu(), self.b, self.bias).tanh() @ self.c.T


class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, stride=2), nn.ConvTranspose2d(8, 12, 2, stride=2)
        self.shuffled, self.out = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.up(F.relu(self.down(x))), 2)
        x = F.interpolate(self.shuffled(x).relu(), scale_factor=2)
        return self.out(F.pad(x, (1, 1, 1, 1)))


class Scaled(nn.Module):
    """LayerScale, and rows written into a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale * self.a(x)
        y = torch.zeros(len(x), 5, dtype=x.dtype)
        y[:, :] = self.b(x)
        return self.out(y.mul_(2).relu_())


class UNet(nn.Module):
    """A skip connection joins what comes back up: one layer is read at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down, self.up = nn.Conv2d(6, 8, 3, padding=1), nn.ConvTranspose2d(8, 5, 2, stride=2)
        self.merge, self.out = nn.Conv2d(11, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.norm(self.stem(x)).relu()
        x = self.up(self.down(F.max_pool2d(skip, 2)).relu())
        return self.out(F.leaky_relu(self.merge(torch.cat([x, skip], 1)), 0.1))


class SwiGLU(nn.Module):
    """Value and gate packed into one layer, behind RMSNorm and under a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
        self.norms = nn.ModuleList([nn.RMSNorm(6) for _ in range(2)])
        self.packed = nn.ModuleList([nn.Linear(6, 20, bias=False) for _ in range(2)])
        self.down = nn.ModuleList([nn.Linear(10, 6, bias=False) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, packed, down in zip(self.norms, self.packed, self.down, strict=True):
            value, gate = packed(norm(x)).tensor_split(2, -1)
            x = x + down(F.silu(gate).mul(value))
        return self.out(x)


class Separable(nn.Module):
    """Depthwise, then pointwise, with batch norms, added to what came in; flattened at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.pointwise, self.after = nn.Conv2d(6, 6, 1, bias=False), nn.Conv2d(6, 4, 2, stride=2)
        self.a, self.b, self.c = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(4)
        self.out = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.elu(self.b(self.pointwise(F.elu(self.a(self.depthwise(x)))))) + x
        return self.out(torch.flatten(F.dropout2d(self.c(self.after(x)), 0.5, self.training), 1))


class Mixer(nn.Module):
    """One layer mixes places, the next channels: units lie along the one axis, then the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.places = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))
        self.channels = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.places(self.norm(x).transpose(1, 2)).mT
        x = x + self.channels(self.norm(x))
        return self.out(x.mean(1))


class TwoTowers(nn.Module):
    """Two inputs through layers of their own into one that they share, then compared."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)
        self.shared, self.last = nn.Linear(6, 8), nn.Linear(24, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = (self.shared(t.relu()).tanh() for t in (self.left(x), self.right(y)))
        return self.out(self.last(torch.cat([a, b, (a - b).abs()], -1)).relu())


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


# name: (model and input, populations followed without a reason, at the least)
TABLE: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], int]] = {
    "MLP": (mlp, 2),
    "conv net": (lambda: (ConvNet(), image()), 3),
    "channels last": (lambda: (ChannelsLast(), torch.randn(2, 3, 4, 4)), 1),
    "residual": (lambda: (Residual(), image()), 1),
    "depthwise": (lambda: (Depthwise(), image()), 3),
    "dense": (lambda: (Dense(), image()), 3),
    "gated": (lambda: (Gated(), torch.randn(5, 4)), 3),
    "squeeze and excite": (lambda: (SqueezeExcite(), image()), 3),
    "attention, matmul": (lambda: (Attention("matmul"), torch.randn(2, 5, 8)), 2),
    "attention, einsum": (lambda: (Attention("einsum"), torch.randn(2, 5, 8)), 2),
    "attention, fused": (lambda: (Attention("fused"), torch.randn(2, 5, 8)), 2),
    "transformer layer": (
        lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)), 2,
    ),
    "transformer": (
        lambda: (
            nn.Transformer(8, 2, 2, 2, 16, batch_first=True),
            (torch.randn(2, 5, 8), torch.randn(2, 4, 8)),
        ), 10,
    ),
    "nn.MultiheadAttention": (
        lambda: (
            CrossAttention(), (torch.randn(5, 2, 8), torch.randn(4, 2, 4), torch.randn(4, 2, 6)),
        ), 3,
    ),
    "GPT": (lambda: (GPT(), torch.randint(11, (2, 5))), 4),
    "LSTM": (lambda: (Recurrent(nn.LSTM), torch.randn(2, 5, 4)), 2),
    "LSTM, deep": (
        lambda: (Recurrent(nn.LSTM, num_layers=2, bidirectional=True), torch.randn(2, 5, 4)), 5,
    ),
    "LSTM, projected": (lambda: (Recurrent(nn.LSTM, proj_size=3), torch.randn(2, 5, 4)), 3),
    "GRU": (lambda: (Recurrent(nn.GRU, num_layers=2), torch.randn(2, 5, 4)), 3),
    "RNN": (lambda: (Recurrent(nn.RNN), torch.randn(2, 5, 4)), 2),
    "functional": (lambda: (Functional(), torch.randn(5, 4)), 2),
    "upsampled": (lambda: (Upsampled(), image()), 3),
    "U-Net": (lambda: (UNet(), image()), 4),
    "SwiGLU": (lambda: (SwiGLU(), torch.randn(5, 4)), 2),
    "separable": (lambda: (Separable(), image()), 2),
    "mixer": (lambda: (Mixer(), torch.randn(2, 5, 4)), 2),
    "two towers": (lambda: (TwoTowers(), (torch.randn(5, 4), torch.randn(5, 3))), 2),
    "scaled": (lambda: (Scaled(), torch.randn(5, 4)), 2),
}  # fmt: skip


def transformed(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, inputs = TABLE[name][0]()
    model = model.double().eval()
    for module in model.modules():  # statistics and scales that are no identity
        for key, buffer in module.named_buffers(recurse=False):
            if key.startswith("running"):
                buffer.uniform_(0.5, 1.5)
    inputs = _double(inputs)
    return biofx.transform(model, example_inputs=inputs), inputs


def _double(inputs: Any) -> Any:
    if isinstance(inputs, tuple):
        return tuple(map(_double, inputs))
    return inputs.double() if inputs.is_floating_point() else inputs


def followed(population: Population) -> bool:
    """Whether all of its readers are said to be known."""
    return population.reason is None or population.reason.startswith(SEVERAL)


def tied(population: Population) -> bool:
    """Whether one parameter holds incoming and outgoing weights: both move at once."""
    return bool({e.name for e in population.incoming} & {r.weight.name for r in population.readers})


@pytest.mark.parametrize("name", TABLE)
def test_a_unit_acts_through_the_entries_listed_for_it_alone(name: str) -> None:
    bio, inputs = transformed(name)
    populations = biofx.info(bio).wiring.units
    with norms_without_statistics():
        for population in populations:
            if followed(population) and not tied(population):
                assert check(bio, population, inputs), f"{population.name} does nothing"
    whole = [p for p in populations if p.reason is None]
    assert len(whole) >= TABLE[name][1], [(p.name, p.reason) for p in populations]
    assert len({p.name for p in populations}) == len(populations)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = self.b(x)
        if sum(x[0].tolist()) > 100:
            x = x + 1
        return self.c(x)


class Softmaxed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x).softmax(-1))


class Rolled(nn.Sequential):
    """Units that cannot be told apart: each is added to its neighbour."""

    def forward(self, x: Tensor) -> Tensor:
        x = self[0](x)
        return self[1](x + x.roll(1, -1))


class Custom(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](Doubled.apply(self[0](x)))


class Masked(nn.Sequential):
    """What is written into a view is seen through its base too."""

    def forward(self, x: Tensor) -> Tensor:
        x = self[0](x)
        part = x[:, :3]
        part.copy_(x[:, 3:].clone())
        return self[1](x)


class InputAdded(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x) + x)


class HeadGate(nn.Module):
    """One gate for a whole head."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.out = nn.Linear(4, 6), nn.Linear(4, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = self.value(x).unflatten(-1, (2, 3)) * self.gate(x).sigmoid()[..., None]
        return self.out(values.flatten(-2))


def pair(kind: type[nn.Module], width: int = 6) -> nn.Module:
    return kind(nn.Linear(4, width), nn.Linear(width, 3))  # type: ignore[call-arg]


REASONS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "softmax": (lambda: pair(Softmaxed), "0", "softmax (test_units.py:"),
    "python": (Branching, "b", "Python reads their values"),
    "custom": (
        lambda: pair(Custom),
        "0",
        "is not an operation that biofx can follow",
    ),
    "view": (lambda: pair(Masked), "0", "writes into a tensor that is also seen elsewhere"),
    "input": (lambda: pair(InputAdded, 4), "0", "joins them with what no weight layer makes"),
    "gate": (HeadGate, "gate", "scales several units by each of them"),
    "output": (Branching, "c", "they are a result of the model"),
}


@pytest.mark.parametrize("name", REASONS)
def test_units_that_cannot_be_followed_say_why(name: str) -> None:
    make, layer, reason = REASONS[name]
    bio = biofx.transform(make(), example_inputs=torch.randn(5, 4))
    found = [p for p in biofx.info(bio).wiring.units if p.layer == layer]
    assert all(reason in (p.reason or "") for p in found), found
    assert not any(p.readers for p in found)


def test_units_that_are_mixed_are_one() -> None:
    bio = biofx.transform(pair(Rolled), example_inputs=torch.randn(5, 4))
    population = biofx.info(bio).wiring.units[0]
    assert population.size == 1
    assert population.readers[0].weight.index(torch.tensor([0])).tolist() == [list(range(6))]


def test_a_gated_head_keeps_its_units_apart() -> None:
    bio = biofx.transform(HeadGate(), example_inputs=torch.randn(5, 4))
    population = next(p for p in biofx.info(bio).wiring.units if p.layer == "value")
    assert population.reason is None
    assert population.size == 6


def test_a_grouped_convolution_shares_columns() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    bio = biofx.transform(model, example_inputs=image())
    first, second, _ = biofx.info(bio).wiring.units
    assert first.reason == "1, which reads them, is a grouped convolution"
    assert second.reason is None


def test_norms_over_units_are_named() -> None:
    bio, _ = transformed("GPT")
    population = next(p for p in biofx.info(bio).wiring.units if p.layer == "blocks.0.up")
    assert len(population.norms) == 1
    assert "blocks.0.norm" in population.norms[0]
    bio, _ = transformed("conv net")
    named = {p.layer: p.norms for p in biofx.info(bio).wiring.units}
    assert named["features.0"] == ()  # a batch norm takes its statistics of each channel
    assert "features.5" in named["features.4"][0]


def test_units_need_example_inputs() -> None:
    assert biofx.info(biofx.transform(mlp()[0])).wiring.units == ()


def test_populations_are_worked_out_when_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    work_out = populations.populations_of
    monkeypatch.setattr(
        populations, "populations_of", lambda *given: asked.append(1) or work_out(*given)
    )
    model, x = mlp()
    bio = biofx.transform(model, example_inputs=x)
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    biofx.GradScheduler(bio, optimizer)
    bio(x).sum().backward()
    optimizer.step()
    assert not asked
    units = biofx.info(bio).wiring.units
    assert [unit.layer for unit in units] == list(biofx.info(bio).wiring.order)
    assert units == biofx.info(pickle.loads(pickle.dumps(bio))).wiring.units
    assert units == biofx.info(copy.deepcopy(bio)).wiring.units
    assert asked == [1]


def test_wiring_and_units_are_shown_in_a_line_each() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
    wiring = biofx.info(biofx.transform(model, example_inputs=torch.ones(1, 3, 4, 4))).wiring
    shown = "<Wiring: known; layers: 2, edges: 1, outputs: 1, populations of units: 2>"
    assert repr(wiring) == shown
    conv, linear = wiring.units
    assert repr(conv) == "<Population 0: 8 units; read by 3>"
    assert repr(linear) == "<Population 3: 5 units; they are a result of the model>"
