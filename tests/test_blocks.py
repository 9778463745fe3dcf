"""Blocks: groups of Γ units never straddle what the graph tells apart; packed layers are split."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import biofx
from biofx.modules.lowering import group_repeat, group_sum
from biofx.modules.plain import plain
from tests.silencing import Doubled


class Part(nn.Module):
    """A layer, something that is done with its units, and an output layer."""

    def __init__(self, layer: nn.Module, then: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.first, self.layer, self.out = nn.Linear(4, 4), layer, nn.Linear(width, 3)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.then(self.layer(self.first(x))))


def gates(y: Tensor) -> Tensor:
    i, f, g, _ = y.chunk(4, -1)
    return i.sigmoid() * g.tanh() + f


def sections(y: Tensor) -> Tensor:
    a, b = y.split([3, 5], -1)
    return a.sum(-1, keepdim=True) * b


def sliced(y: Tensor) -> Tensor:
    return y[..., :5] * y[..., 3:]


def strided(y: Tensor) -> Tensor:
    return y[..., ::2] * y[..., 1::2]


def heads(y: Tensor) -> Tensor:
    y = y.view(-1, 4, 3)
    return (y.softmax(-1) * y.mean(-2, keepdim=True)).flatten(-2)


def added(y: Tensor) -> Tensor:
    """The sum with another value is cut, not the units by themselves."""
    a, b = (y + torch.ones(12)).relu().tensor_split(2, -1)
    return torch.cat([b, a * 2], -1)[..., 3:9]


# what is done with the units: (units, width, Γ that mix, Γ that do not, the operation)
CUTS = {
    gates: (20, 5, (2, 4), (5,), "chunk"),
    sections: (8, 5, (2, 4), (), "split"),
    sliced: (8, 5, (2, 4), (), "getitem"),
    strided: (8, 4, (2, 4), (), "getitem"),
    heads: (12, 12, (2, 4), (3,), "view"),
    F.glu: (12, 6, (4,), (2, 3, 6), "glu"),
    added: (12, 6, (2, 4), (3,), ""),
}


def action(bio: nn.Module, name: str = "layer") -> str:
    layer = biofx.info(bio).layers[name]
    return layer.reason or layer.action


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "traced"])
@pytest.mark.parametrize("then", CUTS, ids=lambda then: then.__name__)
def test_groups_never_mix_what_the_graph_tells_apart(then: Any, recorded: bool) -> None:
    units, width, mixing, fitting, operation = CUTS[then]
    if then is added and not recorded:
        pytest.skip("what lies behind a concatenation is known where shapes are")
    inputs = {"example_inputs": torch.randn(2, 4)} if recorded else {}
    for gamma in (*mixing, *fitting):
        model = Part(nn.Linear(4, units), then, width)
        config = biofx.BioConfig(
            weight_splitting_Gamma=gamma, overrides={"first": {"weight_splitting_Gamma": 2}}
        )
        reason = action(biofx.transform(model, config, **inputs))
        if gamma in fitting:
            assert reason == "split", (gamma, reason)
        else:
            assert f"Γ={gamma} would mix blocks of" in reason
            assert operation in reason
            assert "test_blocks.py:" in reason
        expand = config.replace(weight_splitting_mode="expand")
        assert action(biofx.transform(model, expand, **inputs)) == "split"


def test_an_operation_that_is_not_known_may_do_anything_to_units() -> None:
    model = Part(nn.Linear(4, 8), lambda y: Doubled.apply(y), 8)
    config = biofx.BioConfig(weight_splitting_Gamma=2)
    bio = biofx.transform(model, config, example_inputs=torch.randn(2, 4))
    assert "what it does to them is not known" in action(bio)
    assert action(bio, "first") == "split"


def test_another_gamma_is_asked_for_where_none_can_be_split() -> None:
    model = nn.Sequential(nn.Linear(4, 20), nn.Flatten(), nn.Linear(20, 3))
    config = biofx.BioConfig(weight_splitting_Gamma=3)
    with pytest.raises(biofx.BiofxError, match="choose another weight_splitting_Gamma"):
        biofx.transform(model, config, example_inputs=torch.randn(2, 4))


# --- recurrent layers and attention ---------------------------------------------------------------


class Sequence(nn.Module):
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.out(y[0] if isinstance(y, tuple) else y)


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer, self.out = nn.MultiheadAttention(8, 2, **options), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x, x, x, average_attn_weights=False)[0])


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.Sequential(layer, nn.Linear(8, 3))


STEPS, WIDE = (5, 2, 4), (5, 2, 8)
PACKED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "LSTM": (lambda: Sequence(nn.LSTM(4, 6), 6), STEPS, "layer"),
    "LSTM, deep": (
        lambda: Sequence(nn.LSTM(4, 6, 2, bidirectional=True, batch_first=True), 12), STEPS, "layer"
    ),
    "LSTM, projected": (lambda: Sequence(nn.LSTM(4, 6, proj_size=4), 4), STEPS, "layer"),
    "LSTM, without batch": (lambda: Sequence(nn.LSTM(4, 6), 6), STEPS[1:], "layer"),
    "GRU": (lambda: Sequence(nn.GRU(4, 6, 2, bias=False), 6), STEPS, "layer"),
    "RNN": (lambda: Sequence(nn.RNN(4, 6, nonlinearity="relu"), 6), STEPS, "layer"),
    "LSTMCell": (lambda: Sequence(nn.LSTMCell(4, 6), 6), STEPS[1:], "layer"),
    "GRUCell": (lambda: Sequence(nn.GRUCell(4, 6), 6), STEPS[1:], "layer"),
    "RNNCell": (lambda: Sequence(nn.RNNCell(4, 6), 6), STEPS[2:], "layer"),
    "attention": (Attention, WIDE, "layer"),
    "attention, batch first": (
        lambda: Attention(batch_first=True, add_bias_kv=True, add_zero_attn=True), WIDE, "layer"
    ),
    "attention, separate": (lambda: Attention(kdim=8, vdim=8, bias=False), WIDE, "layer"),
    "encoder": (encoder, WIDE, "0.self_attn"),
}  # fmt: skip


def packed(name: str, mode: str, gamma: int = 2) -> tuple[nn.Module, nn.Module, Tensor, str]:
    torch.manual_seed(0)
    make, shape, layer = PACKED[name]
    model, x = make(), torch.randn(shape)
    only = {"weight_splitting_Gamma": gamma, "weight_splitting_mode": mode}
    config = biofx.BioConfig(overrides={layer: only})
    return model, biofx.transform(model, config, example_inputs=x), x, layer


def grouped(model: nn.Module, layer: str, gamma: int) -> nn.Module:
    """The model with sums of Γ neighbouring rows in the place of each: what mode group computes."""
    model = copy.deepcopy(model)
    for name, value in model.get_submodule(layer).named_parameters(recurse=False):
        if name.startswith(("weight_", "bias_ih", "bias_hh", "in_proj")) or "_proj_w" in name:
            with torch.no_grad():
                value.copy_(group_repeat(group_sum(value, gamma, 0), gamma, 0))
    return model


@pytest.mark.parametrize("name", PACKED)
def test_packed_layers_in_mode_group_sum_rows(name: str) -> None:
    model, bio, x, layer = packed(name, "group")
    assert action(bio, layer) == "split"
    expected, got = grouped(model, layer, 2)(x), bio(x)
    assert torch.equal(got, expected)
    assert list(bio.state_dict()) == list(model.state_dict())
    got.sum().backward()
    for parameter in bio.get_submodule(layer).parameters(recurse=False):
        if "bias_k" not in name:
            assert parameter.grad is not None


@pytest.mark.parametrize("name", PACKED)
def test_packed_layers_in_mode_expand_compute_the_same(name: str) -> None:
    model, bio, x, layer = packed(name, "expand")
    assert action(bio, layer) == "split"
    assert torch.equal(bio(x), model(x))
    for entry in biofx.info(bio).synapses.values():
        if entry.layers[0] == layer:
            plain_shape = model.get_parameter(entry.parameter).shape
            assert entry.shape == (2 * plain_shape[0], *plain_shape[1:])
            assert bio.get_parameter(entry.parameter).shape == entry.shape
    with torch.no_grad():
        for parameter in bio.parameters():
            parameter.zero_()
    bio.load_state_dict(model.state_dict())
    assert torch.equal(bio(x), model(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of torch's own checks of shapes
@pytest.mark.parametrize("mode", ["group", "expand"])
# What `torch.export` says of every recurrent layer of torch's.
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
@pytest.mark.parametrize("name", PACKED)
def test_packed_layers_copy_pickle_and_leave_biofx(name: str, mode: str) -> None:
    _, bio, x, layer = packed(name, mode)
    bio.eval()
    expected = bio(x)
    assert torch.equal(copy.deepcopy(bio)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(bio))(x), expected)
    bio.graph.lint()
    shown = [node for node in bio.graph.nodes if node.target is group_sum]
    own = bio.get_submodule(layer)._biofx_layer_graph.nodes
    assert len(shown) == sum(node.target is group_sum for node in own) > 0
    ordinary = plain(bio)
    assert not any(type(module).__module__.startswith("biofx") for module in ordinary.modules())
    torch.testing.assert_close(ordinary(x), expected)
    scripted, file = torch.jit.trace(ordinary, x, check_trace=False), io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), expected)
    torch.testing.assert_close(torch.export.export(ordinary, (x,)).module()(x), expected)


def test_packed_layers_take_what_they_took() -> None:
    torch.manual_seed(0)
    model, bio, x, _ = packed("LSTM", "expand")
    first = torch.randn(1, 2, 6), torch.randn(1, 2, 6)
    for got, expected in (
        (bio.layer(x, first), model.layer(x, first)),
        (bio.layer(x[:, 0]), model.layer(x[:, 0])),
        (bio.layer(hx=first, input=x), model.layer(x, first)),
    ):
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1][1], expected[1][1])
    sequence = nn.utils.rnn.pack_sequence([x[:, 0], x[:3, 1]])
    got, expected = bio.layer(sequence)[0], model.layer(sequence)[0]
    assert torch.equal(got.data, expected.data)
    model, bio, x, _ = packed("attention", "expand")
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    for options in ({"key_padding_mask": mask}, {"need_weights": False},
                    {"attn_mask": torch.ones(5, 5).tril() == 0}):  # fmt: skip
        torch.testing.assert_close(bio.layer(x, x, x, **options), model.layer(x, x, x, **options))


def test_dropout_between_recurrent_layers_follows_the_mode() -> None:
    torch.manual_seed(0)
    model = Sequence(nn.LSTM(4, 6, 2, dropout=0.5), 6)
    config = biofx.BioConfig(weight_splitting_Gamma=2, weight_splitting_mode="expand")
    bio = biofx.transform(model, config, example_inputs=torch.randn(STEPS))
    x = torch.randn(STEPS)
    bio.train()
    assert not torch.equal(bio(x), bio(x))
    bio.eval()
    model.eval()
    assert torch.equal(bio(x), model(x))


@pytest.mark.parametrize(
    ("name", "gamma", "reason"),
    [
        ("LSTM", 4, "Γ=4 does not divide the 6 units of a gate"),
        ("LSTM, projected", 3, "Γ=3 does not divide the 4 units of a gate"),
        ("attention", 8, "Γ=8 does not divide the 4 units of an attention head"),
    ],
)
def test_blocks_that_gamma_does_not_divide_are_named(name: str, gamma: int, reason: str) -> None:
    with pytest.raises(biofx.BiofxError, match=reason):
        packed(name, "group", gamma)
    assert action(packed(name, "expand", gamma)[1], PACKED[name][2]) == "split"


def test_an_activation_cannot_act_inside_a_packed_layer() -> None:
    config = biofx.BioConfig(weight_splitting_Gamma=2, weight_splitting_activation_function="relu")
    bio = biofx.transform(PACKED["GRU"][0](), config, example_inputs=torch.randn(STEPS))
    assert "cannot act inside" in action(bio)


class Own(nn.LSTM):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(input * 2, hx)


def test_a_forward_of_ones_own_is_left_alone() -> None:
    config = biofx.BioConfig(weight_splitting_Gamma=2)
    bio = biofx.transform(Sequence(Own(4, 6), 6), config, example_inputs=torch.randn(STEPS))
    assert action(bio) == "not split: Own has a forward of its own"


@pytest.mark.parametrize("name", ["LSTM, deep", "attention", "attention, separate"])
def test_entries_of_units_follow_a_parameter_that_grows(name: str) -> None:
    model, bio, x, _ = packed(name, "expand")
    before = biofx.info(biofx.transform(model, example_inputs=x)).wiring.units
    after = biofx.info(bio).wiring.units
    assert [p.name for p in before] == [p.name for p in after]
    for old, new in zip(before, after, strict=True):
        for unit in range(old.size):
            rows = {e.name: rows_of(old, e.name, unit) for e in old.incoming}
            for parameter, indices in rows.items():
                grown = biofx.info(bio).synapses[parameter].gamma
                wide = {grown * i + k for i in indices for k in range(grown)}
                assert rows_of(new, parameter, unit) == wide


def rows_of(population: biofx.synapses.Population, name: str, unit: int) -> set[int]:
    return {
        int(i)
        for entries in population.incoming
        if entries.name == name
        for i in entries.index(torch.tensor([unit])).flatten()
    }
