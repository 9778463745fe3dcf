"""Folding: equal to the unfolded model up to rounding, and smaller wherever that is possible."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, nn

import biofx
from biofx.capture import arguments_of
from biofx.copying import clone, own_tensors
from biofx.export.folding import FoldReport
from biofx.export.programs import programs
from biofx.modules.graph_layer import PackedGraphLayer
from tests.architectures import ARCHITECTURES, Architecture, seed, tensors_in
from tests.strategies import random_networks


class Lambda(nn.Module):
    """A model of layers and a function of them."""

    def __init__(self, function: Any, **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def equal_in_groups(norm: Any, gamma: int = 2) -> Any:
    """A normalisation whose parameters are random, and equal within groups of units."""
    with torch.no_grad():
        for value in (norm.weight, norm.bias, getattr(norm, "running_mean", None)):
            if value is not None:
                value.copy_(torch.randn(len(value) // gamma).repeat_interleave(gamma))
    return norm


def different_in_groups(norm: Any) -> Any:
    with torch.no_grad():
        for value in (norm.weight, norm.bias, getattr(norm, "running_mean", None)):
            if value is not None:
                value.normal_()
    return norm


def equal_filters(conv: nn.Conv2d) -> nn.Conv2d:
    with torch.no_grad():
        conv.weight.copy_(conv.weight[::2].repeat_interleave(2, 0))
        conv.bias.copy_(conv.bias[::2].repeat_interleave(2, 0))
    return conv


def stem() -> nn.Conv2d:
    return nn.Conv2d(3, 8, 3, padding=1)


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), *between, nn.Linear(8, 4))


def convs(*between: nn.Module, out: int = 8) -> nn.Sequential:
    return nn.Sequential(stem(), *between, nn.Conv2d(out, 4, 3))


def images(model: nn.Sequential, features: int) -> nn.Sequential:
    return nn.Sequential(stem(), *model, nn.Linear(features, 4))


@dataclass
class Case:
    """A model, what folding should do to it, and how."""

    make: Any
    shape: tuple[int, ...]
    unfolded: str | None = None  # the reason in the report, if something stays unfolded
    absorbed: int | None = None  # layers that take their inputs once
    examples: bool = False
    recorded: str | None = None  # the reason where example inputs are given, if it is another
    config: dict[str, Any] | None = None


def plain(bio: nn.Module, inputs: Any = None) -> nn.Module:
    """What is exported of a model without folding."""
    return next(programs(bio, arguments_of(inputs), False)).model


def folded(bio: nn.Module, inputs: Any = None) -> tuple[nn.Module, FoldReport]:
    """What is exported of a model with folding."""
    program = next(programs(bio, arguments_of(inputs), True))
    assert program.report is not None
    return program.model, program.report


def gamma_of(layer: str, gamma: int) -> dict[str, Any]:
    return {"overrides": {layer: {"weight_splitting_Gamma": gamma}}}


class Sneaky(nn.Module):
    """Python code that changes its argument."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > -1e9:
            x.tanh_()
        return x * 2


VECTOR, SERIES, IMAGE = (5, 6), (3, 4, 6), (2, 3, 8, 8)


class Residual(nn.Module):
    def __init__(self, norm: Any = lambda n: nn.Identity()) -> None:
        super().__init__()
        self.stem = stem()
        self.a, self.na = nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8)
        self.b, self.nb = nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.na(self.a(x)), inplace=True)
        x = F.relu(self.nb(self.b(y)) + x, inplace=True)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def twice(m: Any, x: Tensor) -> Tensor:
    return m.head(m.wide(F.relu(m.wide(m.up(x)))))


def twice_differently(m: Any, x: Tensor) -> Tensor:
    return m.head(m.wide(F.relu(m.wide(x))))


def joined(m: Any, x: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    return m.head(torch.cat([F.relu(a), x, torch.tanh(b)], dim=1))


def dense(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    for layer in (m.a, m.b):
        x = torch.cat([x, layer(F.relu(x))], 1)
    return m.head(x)


def aliased(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    y = F.relu(x, inplace=True)
    return m.b(x + y.square())


def aliased_by_view(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    y = x.view(-1, 8)
    y.relu_()
    return m.b(x)


def partly_in_place(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    x[:, 1].zero_()
    return m.b(x)


def in_place(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    x += 1
    return m.b(x.relu_())


def gate(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.b(x * torch.sigmoid(m.gate(x)))


def squeeze_excite(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    s = x.mean((2, 3))
    s = torch.sigmoid(m.up(F.relu(m.down(s))))
    return m.b(x * s[:, :, None, None])


def tied(m: Any, x: Tensor) -> Tensor:
    return F.linear(F.relu(m.a(x)), m.a.weight.t())


def attend(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.b(m.attention(x, x, x, need_weights=False)[0])


CASES = {
    # straight lines
    "mlp": Case(lambda: mlp(nn.ReLU()), VECTOR, absorbed=1),
    "deep": Case(
        lambda: mlp(nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)), VECTOR, absorbed=3
    ),
    "3-D inputs": Case(lambda: mlp(nn.ReLU(), nn.Dropout()), SERIES, absorbed=1),
    "dropout": Case(lambda: mlp(nn.Dropout(), nn.Tanh(), nn.AlphaDropout()), VECTOR, absorbed=1),
    "inplace activation": Case(lambda: mlp(nn.ReLU(inplace=True)), VECTOR, absorbed=1),
    "Γ = 4": Case(lambda: mlp(nn.SiLU()), VECTOR, absorbed=1, config={"weight_splitting_Gamma": 4}),
    "conv": Case(lambda: convs(nn.ReLU()), IMAGE, absorbed=1),
    "unbatched": Case(lambda: convs(nn.ReLU()), (3, 8, 8), absorbed=1),
    "conv1d": Case(
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 4, 1)),
        (2, 3, 9), absorbed=1,
    ),
    "conv3d": Case(
        lambda: nn.Sequential(nn.Conv3d(2, 8, 3), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(8, 4, 1)),
        (1, 2, 6, 6, 6), absorbed=1,
    ),
    "circular padding": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 4, 3),
        ), IMAGE, absorbed=2,
    ),
    # pooling, resizing, flattening
    "pooling": Case(
        lambda: convs(nn.MaxPool2d(2), nn.ZeroPad2d(1), nn.AvgPool2d(2, 1), nn.ReflectionPad2d(1)),
        IMAGE, absorbed=1,
    ),
    "adaptive pooling": Case(lambda: convs(nn.AdaptiveMaxPool2d(4)), IMAGE, absorbed=1),
    "upsampling": Case(lambda: convs(nn.Upsample(scale_factor=2)), IMAGE, absorbed=1),
    "pooling with indices": Case(
        lambda: Lambda(lambda m, x: m.b(m.pool(m.a(x))[0]),
                       a=stem(), b=nn.Conv2d(8, 4, 1), pool=nn.MaxPool2d(2, return_indices=True)),
        IMAGE, unfolded="indices",
    ),
    "pooling over units": Case(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.MaxPool1d(2), nn.Linear(4, 2)),
        SERIES, unfolded="mixes what repeats",
    ),
    "flatten": Case(
        lambda: nn.Sequential(stem(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 4)),
        IMAGE, absorbed=1,
    ),
    "flatten twice": Case(
        lambda: nn.Sequential(
            stem(), nn.Flatten(2), nn.ReLU(), nn.Flatten(1), nn.Linear(512, 8), nn.Linear(8, 2)
        ), IMAGE, absorbed=2,
    ),
    "flatten over units first": Case(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Flatten(1), nn.Linear(32, 2)),
        SERIES, unfolded="other axes into", examples=True,
    ),
    "flatten of unknown rank": Case(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Flatten(1), nn.Linear(32, 2)),
        SERIES, unfolded="give example_inputs", recorded="flattens other axes",
    ),
    "view": Case(
        lambda: Lambda(lambda m, x: m.b(F.relu(m.a(x)).view(x.size(0), -1)),
                       a=stem(), b=nn.Linear(512, 4)), IMAGE, absorbed=1,
    ),
    "view of its own size": Case(
        lambda: Lambda(lambda m, x: (lambda y: m.b(y.reshape(y.shape[0], -1)))(m.a(x)),
                       a=stem(), b=nn.Linear(512, 4)), IMAGE, absorbed=1,
    ),
    "view to a number": Case(
        lambda: Lambda(lambda m, x: m.b(F.max_pool2d(m.a(x), 2).view(-1, 128)),
                       a=stem(), b=nn.Linear(128, 4)), IMAGE,
        unfolded="not known to keep", recorded="full width", absorbed=0,
    ),
    "mean": Case(
        lambda: Lambda(lambda m, x: m.b(m.a(x).mean((2, 3))), a=stem(), b=nn.Linear(8, 4)),
        IMAGE, absorbed=1,
    ),
    "mean, kept": Case(
        lambda: Lambda(lambda m, x: m.b(m.a(x).mean([-1, -2], keepdim=True)),
                       a=stem(), b=nn.Conv2d(8, 4, 1)), IMAGE, absorbed=1,
    ),
    "mean of units": Case(
        lambda: Lambda(lambda m, x: m.b(m.a(x).mean(-1, keepdim=True)),
                       a=nn.Linear(6, 8), b=nn.Linear(1, 4)),
        VECTOR, unfolded="runs over what repeats",
    ),
    "patches": Case(
        lambda: Lambda(lambda m, x: m.b(m.a(x).flatten(2).transpose(1, 2))[:, 0],
                       a=stem(), b=nn.Linear(8, 4)), IMAGE, absorbed=1,
    ),
    "permute": Case(
        lambda: Lambda(lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1)), a=stem(), b=nn.Linear(8, 4)),
        IMAGE, absorbed=1,
    ),
    "first token": Case(
        lambda: Lambda(lambda m, x: m.b(m.a(x)[:, 0]), a=nn.Linear(6, 8), b=nn.Linear(8, 4)),
        SERIES, absorbed=1, examples=True,
    ),
    "half of the units": Case(
        lambda: Lambda(lambda m, x: m.b(m.a(x)[..., :4]), a=nn.Linear(6, 8), b=nn.Linear(4, 4)),
        SERIES, unfolded="selects some", examples=True,
    ),
    # normalisation
    "batch norm, fresh": Case(lambda: convs(nn.BatchNorm2d(8), nn.ReLU()), IMAGE, absorbed=1),
    "batch norm, equal": Case(
        lambda: convs(equal_in_groups(nn.BatchNorm2d(8)), nn.ReLU()), IMAGE, absorbed=1
    ),
    "batch norm, different": Case(
        lambda: convs(different_in_groups(nn.BatchNorm2d(8)), nn.ReLU()),
        IMAGE, unfolded=r"1 \(BatchNorm2d\)", absorbed=0,
    ),
    "batch norm of vectors": Case(
        lambda: mlp(equal_in_groups(nn.BatchNorm1d(8)), nn.ReLU()), VECTOR, absorbed=1
    ),
    "batch norm of series": Case(
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 1)),
        (2, 3, 9), absorbed=1,
    ),
    "batch norm over time": Case(  # channels are the axis before the units
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)),
        (3, 8, 6), unfolded="another axis", examples=True,
    ),
    "instance norm": Case(
        lambda: convs(equal_in_groups(nn.InstanceNorm2d(8, affine=True))), IMAGE, absorbed=1
    ),
    "layer norm": Case(lambda: mlp(nn.LayerNorm(8), nn.ReLU()), SERIES, absorbed=1),
    "layer norm, equal": Case(lambda: mlp(equal_in_groups(nn.LayerNorm(8))), SERIES, absorbed=1),
    "layer norm, different": Case(
        lambda: mlp(different_in_groups(nn.LayerNorm(8))), SERIES, unfolded="differ inside a group"
    ),
    "group norm": Case(lambda: convs(equal_in_groups(nn.GroupNorm(2, 8))), IMAGE, absorbed=1),
    "group norm across": Case(
        lambda: convs(nn.GroupNorm(8, 8)), IMAGE, unfolded="groups of channels"
    ),
    "prelu": Case(lambda: convs(nn.PReLU(), nn.PReLU(8)), IMAGE, absorbed=1),
    "softmax over units": Case(
        lambda: mlp(nn.Softmax(-1)), VECTOR, unfolded="runs over what repeats"
    ),
    # several branches
    "residual": Case(Residual, IMAGE, absorbed=3),
    "residual, batch norm": Case(lambda: Residual(nn.BatchNorm2d), IMAGE, absorbed=3),
    "residual, different norm": Case(
        lambda: Residual(lambda n: different_in_groups(nn.BatchNorm2d(n))), IMAGE,
        unfolded="differ inside a group", absorbed=0,
    ),
    "residual from the input": Case(
        lambda: Lambda(lambda m, x: m.b(m.a(x) + x), a=nn.Linear(6, 6), b=nn.Linear(6, 4)),
        VECTOR, unfolded="nothing is known about the other", absorbed=0,
    ),
    "residual of unsplit": Case(
        lambda: Lambda(lambda m, x: m.b(m.a(x) + m.c(x)),
                       a=nn.Linear(6, 8), c=nn.Linear(6, 8), b=nn.Linear(8, 4)),
        VECTOR, unfolded="does not repeat", config=gamma_of("c", 1),
    ),
    "different Γ": Case(
        lambda: Lambda(lambda m, x: m.b(m.a(x) * m.c(x)),
                       a=nn.Linear(6, 8), c=nn.Linear(6, 8), b=nn.Linear(8, 4)),
        VECTOR, unfolded="repeat differently", config=gamma_of("c", 4),
    ),
    "gate of one channel": Case(
        lambda: Lambda(gate, a=stem(), gate=nn.Conv2d(8, 1, 1), b=nn.Conv2d(8, 4, 1)),
        IMAGE, absorbed=2, config=gamma_of("gate", 1),
    ),
    "squeeze and excite": Case(
        lambda: Lambda(squeeze_excite, a=stem(), down=nn.Linear(8, 4), up=nn.Linear(4, 8),
                       b=nn.Conv2d(8, 4, 1)), IMAGE, absorbed=3,
    ),
    "concatenation": Case(
        lambda: Lambda(joined, a=nn.Linear(6, 8), b=nn.Linear(6, 4), head=nn.Linear(18, 3)),
        VECTOR, unfolded="nothing is known about the other",
    ),
    "dense blocks": Case(
        lambda: Lambda(dense, stem=stem(), a=nn.Conv2d(8, 4, 3, padding=1),
                       b=nn.Conv2d(12, 6, 1), head=nn.Conv2d(18, 2, 1)),
        IMAGE, absorbed=3, config=gamma_of("a", 1),
    ),
    "concatenation of batches": Case(
        lambda: Lambda(lambda m, x: m.b(torch.cat([m.a(x), m.a(-x)], 0)), a=stem(),
                       b=nn.Conv2d(8, 4, 1)), IMAGE, absorbed=1,
    ),
    # weights
    "grouped conv": Case(lambda: convs(nn.Conv2d(8, 8, 3, groups=2)), IMAGE, absorbed=2),
    "finely grouped conv": Case(
        lambda: convs(nn.Conv2d(8, 8, 3, groups=8)), IMAGE, unfolded="groups of channels"
    ),
    "depthwise conv": Case(
        lambda: convs(nn.Conv2d(8, 8, 3, groups=8)), IMAGE,
        unfolded="weights differ inside a group", config=gamma_of("1", 1),
    ),
    "depthwise conv, equal": Case(
        lambda: convs(equal_filters(nn.Conv2d(8, 8, 3, groups=8))), IMAGE, absorbed=1,
        config=gamma_of("1", 1),
    ),
    "transposed conv": Case(
        lambda: nn.Sequential(
            stem(), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ReLU(),
            nn.ConvTranspose2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 3, 3),
        ), IMAGE, absorbed=3,
    ),
    "called twice": Case(
        lambda: Lambda(twice, up=nn.Linear(6, 8), wide=nn.Linear(8, 8), head=nn.Linear(8, 3)),
        VECTOR, absorbed=2,
    ),
    "called twice, differently": Case(
        lambda: Lambda(twice_differently, wide=nn.Linear(6, 6), head=nn.Linear(6, 3)),
        VECTOR, unfolded="repeat differently", absorbed=0,
    ),
    "shared module": Case(
        lambda: (lambda layer: mlp(nn.ReLU(), layer, nn.Tanh(), layer))(nn.Linear(8, 8)),
        VECTOR, absorbed=2,
    ),
    "tied weight": Case(
        lambda: Lambda(tied, a=nn.Linear(6, 8, bias=False)), VECTOR, absorbed=0
    ),
    "scale, equal": Case(
        lambda: Lambda(lambda m, x: m.b(m.a(x) * m.scale), a=stem(), b=nn.Conv2d(8, 4, 1),
                       scale=nn.Parameter(torch.randn(4, 1, 1).repeat_interleave(2, 0))),
        IMAGE, absorbed=1,
    ),
    "scale, different": Case(
        lambda: Lambda(lambda m, x: m.b(m.a(x) * m.scale), a=stem(), b=nn.Conv2d(8, 4, 1),
                       scale=nn.Parameter(torch.randn(8, 1, 1))),
        IMAGE, unfolded="differs inside a group",
    ),
    # what ends a repetition
    "attention": Case(
        lambda: Lambda(attend, a=nn.Linear(6, 8), attention=nn.MultiheadAttention(8, 2),
                       b=nn.Linear(8, 4)), SERIES, unfolded="at attention",
    ),
    "recurrent": Case(
        lambda: Lambda(lambda m, x: m.b(m.lstm(m.a(x))[0]), a=nn.Linear(6, 8), lstm=nn.LSTM(8, 5),
                       b=nn.Linear(5, 4)), SERIES, unfolded="nothing is known",
    ),
    "dropout that never stops": Case(
        lambda: Lambda(lambda m, x: m.b(F.dropout(m.a(x), 0.5)),
                       a=nn.Linear(6, 8), b=nn.Linear(8, 4)),
        VECTOR, unfolded="random numbers",
    ),
    # aliases
    "in place": Case(
        lambda: Lambda(in_place, a=nn.Linear(6, 8), b=nn.Linear(8, 4)), VECTOR, absorbed=1
    ),
    "in place, seen elsewhere": Case(
        lambda: Lambda(aliased, a=nn.Linear(6, 8), b=nn.Linear(8, 4)), VECTOR,
        absorbed=1,
    ),
    "in place, seen through a view": Case(
        lambda: Lambda(aliased_by_view, a=nn.Linear(6, 8), b=nn.Linear(8, 4)), VECTOR,
        unfolded="not known to keep", recorded="full width",
    ),
    "in place, on part of the units": Case(
        lambda: Lambda(partly_in_place, a=nn.Linear(6, 8), b=nn.Linear(8, 4)), VECTOR,
        unfolded="selects some|number of dimensions",
    ),
    "opaque, used elsewhere": Case(
        lambda: Lambda(lambda m, x: (lambda y: m.b(m.o(y) + y))(m.a(x)),
                       a=nn.Linear(6, 8), o=Sneaky(), b=nn.Linear(8, 4)),
        VECTOR, unfolded="nothing is known about what it keeps", recorded="another way",
    ),
    # modes
    "φ": Case(lambda: mlp(nn.ReLU()), VECTOR, absorbed=1,
              config={"weight_splitting_activation_function": "tanh"}),
    "φ, convolutions": Case(lambda: convs(nn.MaxPool2d(2), nn.Conv2d(8, 8, 1)), IMAGE, absorbed=2,
                            config={"weight_splitting_activation_function": "relu"}),
    "expand": Case(lambda: convs(nn.ReLU(), nn.Conv2d(8, 8, 3)), IMAGE, absorbed=0,
                   config={"weight_splitting_mode": "expand"}),
}  # fmt: skip


def transformed(case: Case, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = case.make().to(dtype).eval()
    config = biofx.BioConfig(**{"weight_splitting_Gamma": 2, **(case.config or {})})
    return biofx.transform(model, config).eval(), torch.randn(case.shape, dtype=dtype)


def distance(mine: Any, other: Any) -> float:
    """Largest difference of any two results, relative to the largest value."""
    largest = 0.0
    for a, b in zip(tensors_in(mine), tensors_in(other), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        wide = torch.complex128 if a.is_complex() else torch.float64
        a, b = (torch.nan_to_num(t.to(wide)) for t in (a, b))
        if a.numel():
            largest = max(largest, ((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item())
    return largest


@pytest.mark.parametrize("known", [False, True], ids=["traced", "recorded"])
@pytest.mark.parametrize("name", CASES)
def test_folded_equals_unfolded(name: str, known: bool) -> None:
    case = CASES[name]
    if case.examples and not known:
        pytest.skip("needs example inputs")
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        bio, x = transformed(case, dtype)
        before = {key: value.clone() for key, value in bio.state_dict().items()}
        small, report = folded(bio, x if known else None)
        with torch.no_grad():
            torch.manual_seed(1)
            want = bio(x.clone())
            torch.manual_seed(1)
            got = small(x.clone())
        assert distance(want, got) <= tolerance
        assert all(torch.equal(before[key], value) for key, value in bio.state_dict().items())
    unfolded = case.unfolded if not known or case.recorded is None else case.recorded
    if case.absorbed is not None and case.recorded is None:
        assert len(report.absorbed) == case.absorbed, str(report)
    if not unfolded:
        assert report.unfolded == {}
    else:
        reasons = "; ".join(report.unfolded.values())
        assert re.search(unfolded, reasons), str(report)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not c.unfolded and c.absorbed])
def test_nothing_is_repeated_any_more(name: str) -> None:
    case = CASES[name]
    bio, x = transformed(case, torch.float32)
    small, report = folded(bio, x)
    graphs = [m.graph for m in small.modules() if isinstance(m, torch.fx.GraphModule)]
    assert graphs
    assert not any(node.target == "repeat_interleave" for g in graphs for node in g.nodes)
    before, after = report.parameters
    assert after < before
    assert after == sum(p.numel() for p in small.parameters())


def test_expand_gives_back_the_plain_shapes() -> None:
    model = convs(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    config = biofx.BioConfig(weight_splitting_Gamma=2, weight_splitting_mode="expand")
    bio = biofx.transform(model.eval(), config)
    small, report = folded(bio)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in small.state_dict().items()} == shapes
    assert report.parameters[1] == sum(p.numel() for p in model.parameters())
    assert report.unfolded == {}


def test_names_stay() -> None:
    case = CASES["residual, batch norm"]
    bio, _ = transformed(case, torch.float32)
    small, _ = folded(bio)
    assert set(dict(small.named_parameters())) == set(dict(bio.named_parameters()))


def test_a_rank_that_was_assumed_is_no_silent_error() -> None:
    bio, x = transformed(CASES["flatten"], torch.float32)
    small, _ = folded(bio)
    with pytest.raises(RuntimeError):
        bio(x[0])
    with pytest.raises(RuntimeError):
        small(x[0])


def test_code_that_wants_the_full_width_is_left_alone() -> None:
    bio, x = transformed(CASES["view to a number"], torch.float32)
    small, report = folded(bio, x)
    assert set(report.unfolded) == {"a"}
    assert "full width" in report.unfolded["a"]
    with torch.no_grad():
        assert torch.allclose(small(x), bio(x), atol=1e-6)


class BranchesOnData(nn.Module):
    """The head sees the hidden layer, or for other data the padded input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) if x.sum() > 0 else F.pad(x, (0, 2)))


class BranchesInPython(BranchesOnData):
    """TorchScript cannot keep its branches."""

    def forward(self, x: Tensor) -> Tensor:
        return {True: super().forward, False: super().forward}[bool(x.sum() > 0)](x)


def test_a_file_that_keeps_branches_is_not_folded_for_one(tmp_path: Path) -> None:
    x = torch.ones(3, 6)
    config = biofx.BioConfig(weight_splitting_Gamma=2)
    bio = biofx.transform(BranchesOnData().eval(), config, example_inputs=x)
    assert biofx.info(bio).layers["a"].action == "split"
    done = biofx.export(bio, tmp_path / "m.pt", example_inputs=x)
    assert done.fold is not None
    assert "another way for other data" in done.fold.unfolded["a"]
    loaded: Any = torch.jit.load(tmp_path / "m.pt")
    with torch.no_grad():
        for sign in (1, -1):
            assert torch.allclose(loaded(sign * x), bio(sign * x), atol=1e-6)


def test_a_file_of_one_way_is_folded_for_that(tmp_path: Path) -> None:
    config = biofx.BioConfig(weight_splitting_Gamma=2)
    x = torch.ones(3, 6)
    for example, count in ((x, 1), (-x, 0)):
        bio = biofx.transform(BranchesInPython().eval(), config, example_inputs=x)
        done = biofx.export(bio, tmp_path / "m.pt", example_inputs=example)
        assert done.fold is not None
        assert len(done.fold.summed) == count, str(done.fold)
        assert any("takes for granted" in note for note in done.notes)
        loaded: Any = torch.jit.load(tmp_path / "m.pt")
        with torch.no_grad():
            assert torch.allclose(loaded(example), bio(example), atol=1e-6)


def test_the_report_reads_well() -> None:
    bio, _ = transformed(CASES["batch norm, different"], torch.float32)
    _, report = folded(bio)
    assert str(report) == (
        "1 split layers summed, 0 layers take their inputs once; parameters 532 → 420 (79%)\n"
        "not folded behind 0: its parameters differ inside a group (at 1 (BatchNorm2d))"
    )


def results(model: nn.Module, entry: Architecture) -> list[Tensor]:
    """Results for fresh inputs, of a copy: a run may change the model."""
    model = clone(model, tensor=own_tensors())
    seed(1)
    args, kwargs = entry.inputs()
    seed(2)
    with torch.no_grad():
        found = [t.clone() for t in tensors_in(model(*args, **kwargs))]
    return [t.to_dense() if t.is_sparse else t for t in found]


def same(model: nn.Module, other: nn.Module, entry: Architecture) -> float:
    mine, theirs = results(model, entry), results(other, entry)
    return distance(mine, theirs) if mine else 0.0


@pytest.mark.parametrize("entry", ARCHITECTURES, ids=str)
def test_architectures(entry: Architecture) -> None:
    if entry.tags & {"no_weights", "norms_only", "backward_only"}:
        pytest.skip("nothing to compare")
    seed()
    model = entry.make().eval()
    seed(3)
    inputs = entry.inputs()
    config = biofx.BioConfig(weight_splitting_Gamma=2)
    try:
        bio = biofx.transform(model, config, example_inputs=inputs).eval()
    except (biofx.ConfigError, biofx.ModelError) as error:
        pytest.skip(str(error))
    try:
        unfolded = plain(bio)
    except biofx.ExportError as error:
        pytest.skip(str(error))
    small, report = folded(bio, inputs)
    half = any(t.dtype in (torch.bfloat16, torch.float16) for t in model.parameters())
    # A split recurrent or attention layer leaves as one of torch's, with kernels of its own.
    packed = any(isinstance(module, PackedGraphLayer) for module in bio.modules())
    rounded = "parametrized" in entry.tags or packed
    assert same(bio, unfolded, entry) <= (1e-6 if rounded else 0)
    assert same(bio, small, entry) <= (2e-2 if half else 1e-5 if report.changed or packed else 0)
    before, after = report.parameters
    if not entry.tags & {"shared", "tied"}:  # one weight may serve several layouts
        assert after <= before


@given(random_networks())
def test_random_networks(entry: Architecture) -> None:
    seed()
    model = entry.make().eval()
    seed(3)
    inputs = entry.inputs()
    for given_inputs in (None, inputs):
        try:
            config = biofx.BioConfig(weight_splitting_Gamma=2)
            bio = biofx.transform(model, config, example_inputs=inputs).eval()
        except (biofx.ModelError, biofx.ConfigError):
            return
        small, _ = folded(bio, given_inputs)
        assert same(bio, plain(bio), entry) == 0
        assert same(bio, small, entry) <= 1e-4
