"""Weight splitting: both modes against the formulas, on every layer type that can be split."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import biofx
from biofx.modules.graph_layer import layer_graph
from biofx.modules.lowering import group_repeat, group_sum


class Pair(nn.Module):
    """A layer to split, and an output layer that must stay whole."""

    def __init__(self, layer: nn.Module, channels: int, axis: int) -> None:
        super().__init__()
        self.layer, self.axis = layer, axis
        self.out = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x).movedim(self.axis, -1))


LAYERS = {
    "linear": (lambda: nn.Linear(6, 8), (5, 6), -1),
    "linear without bias": (lambda: nn.Linear(6, 8, bias=False), (5, 6), -1),
    "linear on 3-D": (lambda: nn.Linear(6, 8), (2, 5, 6), -1),
    "linear on 1-D": (lambda: nn.Linear(6, 8), (6,), -1),
    "conv1d": (lambda: nn.Conv1d(3, 8, 3), (2, 3, 9), -2),
    "conv2d": (lambda: nn.Conv2d(3, 8, 3, padding=1, stride=2), (2, 3, 9, 9), -3),
    "conv2d unbatched": (lambda: nn.Conv2d(3, 8, 3), (3, 9, 9), -3),
    "conv2d circular": (
        lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"),
        (2, 3, 9, 9),
        -3,
    ),
    "conv2d same": (lambda: nn.Conv2d(3, 8, 3, padding="same"), (2, 3, 9, 9), -3),
    "conv2d grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), (2, 4, 9, 9), -3),
    "conv2d depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), (2, 8, 9, 9), -3),
    "conv3d": (lambda: nn.Conv3d(2, 8, 2), (2, 2, 4, 4, 4), -4),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(3, 8, 3, stride=2), (2, 3, 9), -2),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(3, 8, 3, output_padding=0), (2, 3, 5, 5), -3),
    "conv_transpose2d grouped": (lambda: nn.ConvTranspose2d(4, 8, 3, groups=2), (2, 4, 5, 5), -3),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 8, 2), (2, 2, 3, 3, 3), -4),
}
PHI = {"identity": lambda x: x, "relu": F.relu, "tanh": torch.tanh}


def make(name: str) -> tuple[nn.Module, Tensor, int]:
    torch.manual_seed(0)
    build, shape, axis = LAYERS[name]
    return Pair(build(), 8, axis).double(), torch.randn(shape, dtype=torch.float64), axis


def config(**fields: object) -> biofx.BioConfig:
    return biofx.BioConfig(weight_splitting_Gamma=2).replace(**fields)


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("gamma", [2, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_group_mode_sums_groups_and_repeats_the_sums(name: str, gamma: int, phi: str) -> None:
    model, x, axis = make(name)
    bio = biofx.transform(
        model,
        config(weight_splitting_Gamma=gamma, weight_splitting_activation_function=phi),
    )
    assert biofx.info(bio).layers["layer"].action == "split"
    units = PHI[phi](model.layer(x)).movedim(axis, -1)
    sums = torch.stack([units[..., i : i + gamma].sum(-1) for i in range(0, 8, gamma)], -1)
    expected = torch.stack([sums[..., i // gamma] for i in range(8)], -1).movedim(-1, axis)
    torch.testing.assert_close(bio.layer(x), expected)
    torch.testing.assert_close(bio(x), model.out(expected.movedim(axis, -1)))
    assert list(bio.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", LAYERS)
def test_expand_mode_keeps_the_function_and_multiplies_the_synapses(name: str) -> None:
    model, x, _ = make(name)
    bio = biofx.transform(model, config(weight_splitting_mode="expand"))
    layer = biofx.info(bio).layers["layer"]
    if name == "conv_transpose2d grouped":
        assert layer.reason == "not split: a grouped transposed convolution cannot be expanded"
        return
    assert layer.action == "split"
    torch.testing.assert_close(bio(x), model(x))
    assert bio.layer.weight.numel() == 2 * model.layer.weight.numel()
    synapses = biofx.info(bio).synapses["layer.weight"]
    assert synapses.gamma == 2
    assert synapses.shape == tuple(bio.layer.weight.shape)
    assert bio.out.weight is model.out.weight


@pytest.mark.parametrize("name", LAYERS)
def test_group_mode_has_the_gradients_of_the_plain_computation(name: str) -> None:
    model, x, axis = make(name)
    bio = biofx.transform(model, config())
    bio(x).square().sum().backward()
    got = bio.layer.weight.grad.clone()
    model.zero_grad()
    units = model.layer(x)
    units = group_repeat(group_sum(units, 2, axis), 2, axis)
    model.out(units.movedim(axis, -1)).square().sum().backward()
    torch.testing.assert_close(got, model.layer.weight.grad)


@pytest.mark.parametrize("mode", ["group", "expand"])
def test_copies_and_pickles_of_split_models(mode: str) -> None:
    model, x, _ = make("linear")
    bio = biofx.transform(model, config(weight_splitting_mode=mode))
    for twin in (copy.deepcopy(bio), pickle.loads(pickle.dumps(bio))):
        assert torch.equal(twin(x), bio(x))
        twin.layer.weight.data.zero_()
        assert not torch.equal(twin(x), bio(x))


def test_a_plain_checkpoint_loads_into_an_expanded_model() -> None:
    model, x, _ = make("conv2d")
    bio = biofx.transform(model, config(weight_splitting_mode="expand"))
    torch.manual_seed(1)
    other = Pair(nn.Conv2d(3, 8, 3, padding=1, stride=2), 8, -3).double()
    bio.load_state_dict(other.state_dict())
    torch.testing.assert_close(bio(x), other(x))
    again = biofx.transform(model, config(weight_splitting_mode="expand"))
    again.load_state_dict(bio.state_dict())
    assert torch.equal(again(x), bio(x))


def test_splitting_adds_nodes_that_say_where_they_come_from() -> None:
    model, _, _ = make("linear")
    bio = biofx.transform(model, config())
    inserted = {
        node.meta["biofx"].new: node.meta["biofx"]
        for node in bio.graph.nodes
        if getattr(node.meta.get("biofx"), "status", None) == "inserted"
    }
    assert set(inserted) == {"group_sum", "group_repeat"}
    assert all(p.by == "split" and p.reason == "Γ=2" for p in inserted.values())
    own = [node.target for node in layer_graph(bio.layer).nodes if node.op == "call_function"]
    assert own == [node.target for node in bio.graph.nodes if node.op == "call_function"]


REASONS = {
    "output layer": (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "1", "output layer"),
    "indivisible": (
        nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 2)),
        "0",
        "Γ=2 does not divide its 5 output units",
    ),
    "embedding": (
        nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)),
        "0",
        "is a lookup, not a sum",
    ),
    "parametrized": (
        nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4), nn.Linear(4, 2)
        ),
        "0",
        "parametrized",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_layer_that_is_not_split_says_why(case: str) -> None:
    model, name, reason = REASONS[case]
    bio = biofx.transform(model, config())
    layer = biofx.info(bio).layers[name]
    assert (layer.action, layer.reason) == ("augmented", f"not split: {reason}")


def test_gamma_that_divides_nothing_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(biofx.ConfigError, match="does not divide its 5 output units"):
        biofx.transform(model, config(weight_splitting_Gamma=3))


def test_phi_with_parameters_is_an_error() -> None:
    model, _, _ = make("linear")
    with pytest.raises(biofx.ConfigError, match="must have no parameters"):
        biofx.transform(model, config(weight_splitting_activation_function=nn.PReLU()))
    with pytest.raises(biofx.ConfigError, match=r"not a function of torch\.nn\.functional"):
        biofx.transform(model, config(weight_splitting_activation_function="rleu"))


class ReadsWeight(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(self.fc(x), self.fc.weight))


class ReadsWeightInPython(ReadsWeight):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else self.fc(x @ self.fc.weight.T)


@pytest.mark.parametrize("make_model", [ReadsWeight, ReadsWeightInPython])
def test_a_weight_that_is_read_without_its_layer_is_not_split(make_model: type) -> None:
    bio = biofx.transform(make_model(), config(), example_inputs=torch.ones(2, 4))
    assert biofx.info(bio).layers["fc"].action == "augmented"
    assert "without calling it" in biofx.info(bio).layers["fc"].reason


def test_overrides_and_excludes_split_single_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    settings = biofx.BioConfig(overrides={"1": {"weight_splitting_Gamma": 2}}, exclude=("2",))
    layers = biofx.info(biofx.transform(model, settings)).layers
    assert [layers[str(i)].action for i in range(4)] == [
        "augmented",
        "split",
        "skipped",
        "augmented",
    ]


def test_a_transformer_layer_does_not_bypass_its_split_layers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 2)
    )
    bio = biofx.transform(model, config(), example_inputs=torch.randn(3, 5, 8))
    assert biofx.info(bio).layers["0.layers.0.linear1"].action == "split"
    x = torch.randn(3, 5, 8)
    trained = bio.train()(x)
    with torch.no_grad():  # where the plain module would take its fused path
        evaluated = bio.eval()(x)
    torch.testing.assert_close(trained, evaluated)
    assert not torch.allclose(evaluated, model.eval()(x), atol=1e-3)


class Upsamples(nn.Module):
    """Calls a transposed convolution with the size that it should give."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.out = nn.ConvTranspose2d(2, 4, 3, stride=2), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(x, output_size=(10, 10)))


class UpsamplesInPython(Upsamples):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(x, (10, 10) if x.sum() > 0 else (9, 9)))


@pytest.mark.parametrize("mode", ["group", "expand"])
@pytest.mark.parametrize("kind", [Upsamples, UpsamplesInPython])
def test_a_layer_called_with_an_output_size_is_not_split(kind: type, mode: str) -> None:
    model = kind()
    x = torch.rand(1, 2, 4, 4)
    bio = biofx.transform(model, config(weight_splitting_mode=mode), example_inputs=x)
    layer = biofx.info(bio).layers["up"]
    assert layer.action == "augmented"
    assert "output_size" in str(layer.reason)
    torch.testing.assert_close(bio(x), model(x))


def test_a_part_that_is_split_is_left_as_it_is() -> None:
    part = biofx.transform(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), config())
    model = nn.Sequential(part, nn.Linear(4, 4), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    expected = model[0](x)
    bio = biofx.transform(model, config())
    actions = {name: layer.action for name, layer in biofx.info(bio).layers.items()}
    assert actions == {"0.0": "augmented", "0.1": "augmented", "1": "split", "2": "augmented"}
    assert biofx.info(bio).layers["0.0"].reason == "not split: it was split before"
    assert "was transformed before" in str(biofx.info(bio).layers["0.1"].reason)
    torch.testing.assert_close(bio[0](x), expected)


def test_a_split_layer_refuses_calls_that_it_was_not_split_for() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.Conv2d(4, 2, 1))
    bio = biofx.transform(model, config())
    with pytest.raises(biofx.ModelError, match="captured for output_size = None"):
        bio[0](torch.randn(1, 2, 4, 4), [6, 6])


class Penalised(nn.Module):
    """Holds the weight of its layer another time, for what the forward does not do."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.penalised = kind([self.fc.weight])

    def forward(self, x):
        return self.head(self.fc(x).relu())


@pytest.mark.parametrize("kind", [list, nn.ParameterList])
def test_a_weight_that_is_held_twice_stays_one(kind: type) -> None:
    model, x = Penalised(kind), torch.randn(3, 4)
    config = biofx.BioConfig(weight_splitting_Gamma=2, weight_splitting_mode="expand")
    bio = biofx.transform(model, config, example_inputs=x)
    assert biofx.info(bio).layers["fc"].reason == (
        "not split: the model also holds its weight as penalised"
        + (".0" if kind is not list else "")
    )
    assert bio.penalised[0] is bio.fc.weight
    biofx.verify(bio, model, x)


def test_a_linear_layer_tied_to_an_embedding_keeps_its_own_axes() -> None:
    embedding, linear = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
    linear.weight = embedding.weight
    bio = biofx.transform(nn.Sequential(embedding, linear, nn.Linear(10, 2)), config())
    layer = biofx.info(bio).layers["1"]
    assert layer.reason == "not split: its weight is tied to that of 0, a layer of another kind"
    bio(torch.tensor([[1, 2]])).sum().backward()


class Reader(nn.Module):
    """May read the weight of its first layer, in one way or another."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            raise ValueError
        return self.last(self.run(x).relu())

    def run(self, x: Tensor) -> Tensor:
        return self.first(x)


class MethodReader(Reader):
    def run(self, x: Tensor) -> Tensor:
        return self.first(x) + self.first.weight.mean()


class ParametersReader(Reader):
    def run(self, x: Tensor) -> Tensor:
        return self.first(x) * sum(p.square().sum() for p in self.first.parameters())


class StateReader(Reader):
    def run(self, x: Tensor) -> Tensor:
        return self.first(x) + self.state_dict(keep_vars=True)["first.weight"].sum()


class AsksForDtype(Reader):
    def run(self, x: Tensor) -> Tensor:
        return self.first(x.to(self.first.weight.dtype).to(next(self.parameters()).device))


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        (Reader, "split"),
        (AsksForDtype, "split"),
        *((kind, "augmented") for kind in (MethodReader, ParametersReader, StateReader)),
    ],
)
def test_a_layer_stays_whole_if_the_run_reads_its_weight(kind: type[Reader], action: str) -> None:
    model, x = kind(), torch.randn(3, 4)
    bio = biofx.transform(model, config(weight_splitting_mode="expand"), example_inputs=x)
    layer = biofx.info(bio).layers["first"]
    assert layer.action == action
    if action != "split":
        assert layer.reason == "not split: its weight is also used without calling it"
    torch.testing.assert_close(bio(x), model(x))


def test_nothing_is_split_where_the_wiring_is_unknown() -> None:
    model, x = Reader(), torch.randn(3, 4)
    info = biofx.info(biofx.transform(model, config()))
    assert not info.wiring.known
    assert info.wiring.outputs == ()
    for layer in info.layers.values():
        assert layer.action == "augmented"
        assert "unknown without example_inputs" in str(layer.reason)
    named = biofx.info(biofx.transform(model, config(outputs=("last",))))
    assert {n: layer.action for n, layer in named.layers.items()} == {
        "first": "split", "last": "augmented",
    }  # fmt: skip
    assert named.wiring.outputs == ("last",)
    assert any(a.kind == "outputs" and "last" in a.what for a in named.assumptions)
    assert biofx.info(biofx.transform(model, config(), example_inputs=x)).wiring.known


class Keeps(nn.Module):
    """Keeps what a layer gives, for whoever trains it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.mean = nn.Linear(4, 8), nn.Linear(8, 4)
        self.decode, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.way, self.seen = way, {"past": []}

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(self.first(x).relu())
        if self.way == "attribute":
            self.latent = mean
        elif self.way == "container":
            self.seen["past"].append(mean)
        return self.last(self.decode(mean).relu())


@pytest.mark.parametrize("way", ["attribute", "container", "not at all"])
@pytest.mark.parametrize("inputs", [None, torch.ones(3, 4)], ids=["traced", "run"])
def test_a_layer_whose_units_the_model_keeps_stays_whole(way: str, inputs: Tensor | None) -> None:
    bio = biofx.transform(Keeps(way), config(), example_inputs=inputs)
    info = biofx.info(bio)
    kept = way != "not at all"
    assert {n: layer.action for n, layer in info.layers.items()} == {
        "first": "split",
        "mean": "augmented" if kept else "split",
        "decode": "split",
        "last": "augmented",
    }
    if kept:
        assert info.layers["mean"].reason == "not split: its output is a result of the model"
    if way == "attribute" and inputs is not None:
        assert [(a.kind, a.what) for a in info.assumptions] == [
            ("state", "the forward assigns latent; the graph does not")
        ]


class WhileLarge(nn.Module):
    """Runs a layer as often as the data say."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.times = 0

    def forward(self, x: Tensor) -> Tensor:
        x, self.times = self.first(x), 0
        while x.norm() > 1 and self.times < 30:
            x, self.times = self.inner(x).tanh(), self.times + 1
        return self.last(x)


@pytest.mark.parametrize("mode", ["group", "expand"])
def test_a_loop_on_data_is_that_of_the_unsplit_model_and_said_to_be(mode: str) -> None:
    torch.manual_seed(0)
    model, x = WhileLarge(), torch.ones(3, 4)
    bio = biofx.transform(model, config(weight_splitting_mode=mode), example_inputs=x)
    said = [a.what for a in biofx.info(bio).assumptions if "unsplit" in a.what]
    assert len(said) == (mode == "group")
    model(x)
    calls = sum(
        node.target is F.linear and "inner" in node.meta["nn_module_stack"]
        for node in bio.graph.nodes
    )
    assert calls == model.times
    bio(x)
    assert (bio.times == model.times) == (mode == "expand")


class Padded(nn.Module):
    """An encoder that makes nested tensors of what it is given with a mask, in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.out(self.encoder(x, src_key_padding_mask=padding))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_split_layers_take_nested_tensors() -> None:
    torch.manual_seed(0)
    x, padding = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    model = Padded().eval()
    config = biofx.BioConfig(weight_splitting_Gamma=2, weight_splitting_mode="expand")
    bio = biofx.transform(model, config, example_inputs=(x, padding)).eval()
    assert biofx.info(bio).synapses["encoder.layers.0.linear1.weight"].split == "expand"
    with torch.no_grad():
        torch.testing.assert_close(bio(x, padding), model(x, padding))


class Measures(nn.Module):
    """Computes with the size of a weight, as a scale of attention does."""

    def __init__(self, ask: Callable[[nn.Module], float]) -> None:
        super().__init__()
        self.a, self.out, self.ask = nn.Linear(4, 8), nn.Linear(8, 6), ask

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x)) * self.ask(self.a)


@pytest.mark.parametrize(
    "ask",
    [
        lambda layer: layer.weight.shape[0] ** -0.5,
        lambda layer: layer.weight.size(0),
        lambda layer: layer.weight.numel(),
        lambda layer: len(layer.weight),
    ],
    ids=["shape", "size", "numel", "len"],
)
def test_a_weight_whose_size_is_asked_for_is_not_expanded(
    ask: Callable[[nn.Module], float],
) -> None:
    model, x = Measures(ask), torch.randn(3, 4)
    config = biofx.BioConfig(weight_splitting_Gamma=2, weight_splitting_mode="expand")
    bio = biofx.transform(model, config, example_inputs=x)
    assert torch.equal(bio(x), model(x))
    reason = "not split: the forward asks for the size of its weight"
    assert biofx.info(bio).layers["a"].reason == reason
    bio = biofx.transform(model, biofx.BioConfig(weight_splitting_Gamma=2), example_inputs=x)
    assert biofx.info(bio).layers["a"].action == "split"  # its weight keeps its shape
    model = Measures(lambda layer: 1.0 if layer.weight.dtype is torch.float32 else 0.0)
    bio = biofx.transform(model, config, example_inputs=x)
    assert biofx.info(bio).layers["a"].action == "split"


def test_the_size_of_a_weight_is_no_way_for_data() -> None:
    """Else the layer whose size is asked for would lie behind the output."""
    bio = biofx.transform(Measures(lambda layer: layer.weight.shape[0] ** -0.5))
    assert [n for n, layer in biofx.info(bio).layers.items() if layer.output] == ["out"]
