"""The registry: what it says of a layer's axes is what the layer does with its numbers."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import biofx
from biofx.errors import ModelError
from biofx.synapses import Axes, Synapses, axes_of, registry
from tests.architectures import seed

GAMMA = biofx.BioConfig(weight_splitting_Gamma=2)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- what a weight's axes do: only output unit j hears of its slice j, which hears only of input i


def effect(
    call: Callable[[Tensor], Tensor], weight: Tensor, axis: int, j: int, x: Tensor
) -> Tensor:
    """Where the output changes when a slice of the weight does."""
    with torch.no_grad():
        before = call(x).clone()
        slice_j = weight.select(axis, j)
        kept = slice_j.clone()
        slice_j += 1.5
        after = call(x).clone()
        slice_j.copy_(kept)
    return (before - after).abs() > 1e-6


def units_of(changed: Tensor, axis: int) -> set[int]:
    """The units along an axis for which anything is set."""
    return set(changed.movedim(axis, 0).flatten(1).any(1).nonzero().flatten().tolist())


def only(x: Tensor, axis: int, units: set[int], *, keep: bool) -> Tensor:
    """The input with these units alone, or without them."""
    chosen = torch.zeros(x.shape[axis], dtype=torch.bool)
    chosen[list(units)] = True
    shape = [1] * x.dim()
    shape[axis] = -1
    return x * (chosen if keep else ~chosen).view(shape)


def check_axes(
    call: Callable[[Tensor], Tensor],
    weight: Tensor,
    synapses: Synapses,
    x: Tensor,
    *,
    into: int = -1,
    out: int = -1,
) -> None:
    """The declared axes are those along which the units of input and output lie."""
    assert synapses.shape == tuple(weight.shape)
    assert synapses.post_axis != synapses.pre_axis
    outputs, inputs = call(x).shape[out], x.shape[into]
    posts, pres = weight.shape[synapses.post_axis], weight.shape[synapses.pre_axis]
    # of a grouped convolution, one of the axes runs over one group's units
    for j in range(posts):
        heard = units_of(effect(call, weight, synapses.post_axis, j, x), out)
        assert heard == set(range(j, outputs, posts)), f"post-synaptic slice {j}"
    for i in range(pres):
        units = set(range(i, inputs, pres))
        for keep in (True, False):
            seen = effect(call, weight, synapses.pre_axis, i, only(x, into, units, keep=keep))
            assert seen.any().item() == keep, f"pre-synaptic slice {i}"
    assert synapses.groups == max(outputs // posts, inputs // pres)


@dataclass(frozen=True)
class Case:
    """A layer, an input, and on which axes of input and output the units lie.

    Attributes:
        parameter: the name under which the weight is trained.
        whole: part of the reason why the layer is not split, or None if it is.
    """

    name: str
    make: Callable[[], nn.Module]
    x: tuple[int, ...] = (5, 6)
    into: int = -1
    out: int = -1
    parameter: str = "weight"
    whole: str | None = None

    def __str__(self) -> str:
        return self.name


def materialised(layer: nn.Module, *shape: int) -> nn.Module:
    layer(torch.ones(shape))
    return layer


class TransposedLinear(nn.Module):
    """y = x @ W + b with W of shape (inputs, outputs), as `Conv1D` of the Transformers library."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x):
        shape = x.size()[:-1] + (4,)  # noqa: RUF005
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


# found by its qualified name
Conv1D = type("Conv1D", (TransposedLinear,), {"__module__": "transformers.pytorch_utils", "nf": 4})


class Kernel(nn.Module):
    """A layer type that its user registers."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return x @ self.kernel


class SpecialKernel(Kernel):
    """What is registered holds for subclasses."""


class LinearKernel(nn.Module):
    """A registered layer whose weight op is that of a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        return F.linear(x, self.kernel)


class OfConstants(nn.Module):
    """Its weight is made of a parameter and of values that are neither weights nor data."""

    def __init__(self, make: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.make = make
        self.kernel = nn.Parameter(torch.randn(6, 6))
        self.register_buffer("constant", torch.ones(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.make(self.kernel, self.constant))


@pytest.mark.parametrize(
    "make",
    [
        lambda w, c: w * c,
        lambda w, c: w + 0.1 * torch.randn(6, 6),
        lambda w, c: w + c * torch.empty(6, 6).normal_(),
        lambda w, c: c.tril() * w,
    ],
    ids=["mask", "noise", "noise in place", "triangle"],
)
def test_constants_in_a_weight_are_no_data(make: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), OfConstants(make), OfConstants(make))
    wiring = biofx.info(biofx.transform(model, example_inputs=torch.randn(2, 4))).wiring
    assert wiring.edges == (("0", "2"), ("2", "3"))
    assert wiring.outputs == ("3",)


def test_a_constant_goes_through_a_layer_as_data_does() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.places, self.b = nn.Linear(4, 6), Direct((6, 5), F.linear), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + self.places(torch.eye(5)[:2]))

    wiring = biofx.info(biofx.transform(Placed(), example_inputs=torch.randn(2, 4))).wiring
    assert wiring.edges == (("a", "b"), ("places", "b"))


def test_data_that_is_put_into_a_constant() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            room = torch.zeros(len(x), 6)
            room[:, :3] = self.a(x)
            room[:, 3:].add_(1)
            return self.b(room)

    wiring = biofx.info(biofx.transform(Placed(), example_inputs=torch.randn(2, 4))).wiring
    assert wiring.edges == (("a", "b"),)
    assert wiring.outputs == ("b",)


class Direct(nn.Module):
    """Uses a parameter of its own in some way."""

    def __init__(self, shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.use = use

    def forward(self, x):
        return self.use(x, self.weight)


class LowRank(nn.Module):
    """W + B A by hand."""

    def __init__(self, *, transposed: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.b, self.a = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 6))
        self.transposed = transposed

    def forward(self, x):
        if self.transposed:
            return x @ (self.a.T @ self.b.T)
        return F.linear(x, self.weight) + F.linear(x, self.b @ self.a)


class AddLowRank(nn.Module):
    """A LoRA as a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(4, 2))

    def forward(self, weight):
        return weight + self.b @ self.a


class Halved(nn.Module):
    def forward(self, weight):
        return weight * 0.5


def parametrized(layer: nn.Module, parametrization: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", parametrization)
    return layer


def pruned() -> nn.Module:
    layer = nn.Linear(6, 4)
    prune.random_unstructured(layer, "weight", 0.01)
    return layer


ORIGINAL = "parametrizations.weight.original"
BY_HAND = "its weight is not a layer's"
CASES = [
    Case("linear", lambda: nn.Linear(6, 4)),
    Case("linear, more dimensions", lambda: nn.Linear(6, 4), (2, 3, 6)),
    Case("lazy linear", lambda: materialised(nn.LazyLinear(4), 5, 6)),
    Case("conv1d", lambda: nn.Conv1d(6, 4, 3), (2, 6, 7), 1, 1),
    Case("conv2d", lambda: nn.Conv2d(6, 4, 3), (2, 6, 5, 5), 1, 1),
    Case("conv3d", lambda: nn.Conv3d(6, 4, 2), (2, 6, 3, 3, 3), 1, 1),
    Case("lazy conv2d", lambda: materialised(nn.LazyConv2d(4, 3), 2, 6, 5, 5), (2, 6, 5, 5), 1, 1),
    Case("conv1d, no batch", lambda: nn.Conv1d(6, 4, 3), (6, 7), 0, 0),
    Case("conv2d, padded", lambda: nn.Conv2d(6, 4, 3, padding="same"), (2, 6, 5, 5), 1, 1),
    Case("conv_transpose1d", lambda: nn.ConvTranspose1d(6, 4, 3), (2, 6, 5), 1, 1),
    Case("conv_transpose2d", lambda: nn.ConvTranspose2d(6, 4, 3), (2, 6, 4, 4), 1, 1),
    Case("conv_transpose3d", lambda: nn.ConvTranspose3d(6, 4, 2), (2, 6, 3, 3, 3), 1, 1),
    Case("transposed linear", Conv1D),
    Case(
        "lora parametrization",
        lambda: parametrized(nn.Linear(6, 4), AddLowRank()),
        parameter=ORIGINAL,
        whole="parametrized",
    ),
    Case(
        "parametrized conv",
        lambda: parametrized(nn.Conv2d(6, 4, 3), Halved()),
        (2, 6, 5, 5), 1, 1,
        ORIGINAL,
        "parametrized",
    ),
    Case(
        "parametrized transposed conv",
        lambda: parametrized(nn.ConvTranspose1d(6, 4, 3), Halved()),
        (2, 6, 5), 1, 1,
        ORIGINAL,
        "parametrized",
    ),
    Case("pruned", pruned, parameter="weight_orig", whole="computed by a hook"),
    Case("registered", Kernel, parameter="kernel", whole="no single weight op"),
    Case("subclass of registered", SpecialKernel, parameter="kernel", whole="no single weight op"),
    *(
        Case(name, lambda shape=shape, use=use: Direct(shape, use), x, into, out, whole=BY_HAND)
        for name, shape, use, x, into, out in [
            ("F.linear", (4, 6), F.linear, (5, 6), -1, -1),
            ("F.linear by keyword", (4, 6), lambda x, w: F.linear(x, weight=w), (5, 6), -1, -1),
            ("x @ W", (6, 4), lambda x, w: x @ w, (5, 6), -1, -1),
            ("x @ W.T", (4, 6), lambda x, w: x @ w.T, (5, 6), -1, -1),
            ("x @ W.t()", (4, 6), lambda x, w: x @ w.t(), (5, 6), -1, -1),
            ("x @ W.mT", (4, 6), lambda x, w: torch.matmul(x, w.mT), (5, 6), -1, -1),
            ("x @ W.T.T", (6, 4), lambda x, w: x @ w.T.T, (5, 6), -1, -1),
            ("x @ W', transposed", (4, 6), lambda x, w: x @ w.transpose(0, 1), (5, 6), -1, -1),
            ("x @ W', permuted", (4, 6), lambda x, w: x @ w.permute(1, 0), (5, 6), -1, -1),
            ("W @ x", (4, 6), lambda x, w: w @ x, (6, 5), 0, 0),
            ("W.T @ x", (6, 4), lambda x, w: torch.mm(w.T, x), (6, 5), 0, 0),
            ("linear of W.T", (6, 4), lambda x, w: F.linear(x, w.T), (5, 6), -1, -1),
            ("addmm", (6, 4), lambda x, w: torch.addmm(x.sum() * 0, x, w), (5, 6), -1, -1),
            ("bmm", (2, 6, 4), torch.bmm, (2, 5, 6), -1, -1),
            ("bmm, input last", (2, 4, 6), lambda x, w: x.bmm(w.mT), (2, 5, 6), -1, -1),
            ("bmm, batch last", (4, 6, 2), lambda x, w: x @ w.permute(2, 1, 0), (2, 5, 6), -1, -1),
            ("bmm, swapped", (6, 2, 4), lambda x, w: x @ w.transpose(0, 1), (2, 5, 6), -1, -1),
            ("einsum io", (6, 4), lambda x, w: torch.einsum("bi,io->bo", x, w), (5, 6), -1, -1),
            ("einsum oi", (4, 6), lambda x, w: torch.einsum("oi, bi -> bo", w, x), (5, 6), -1, -1),
            ("einsum oi, swapped", (6, 4), lambda x, w: torch.einsum("oi,bi->bo", w.T, x), (5, 6),
             -1, -1),
            ("einsum of a list", (6, 4), lambda x, w: torch.einsum("bi,io->bo", [x, w]), (5, 6),
             -1, -1),
            ("einsum of a tuple", (4, 6), lambda x, w: torch.einsum("oi,bi->bo", (w, x)), (5, 6),
             -1, -1),
            ("einsum without output", (6, 4), lambda x, w: torch.einsum("bi,io", x, w), (5, 6),
             -1, -1),
            ("mv", (4, 6), lambda x, w: torch.mv(w, x[0])[None], (1, 6), -1, -1),
            ("mv of W.T", (6, 4), lambda x, w: w.T.mv(x[0])[None], (1, 6), -1, -1),
            ("einsum with batch", (2, 6, 4), lambda x, w: torch.einsum("hbi,hio->hbo", x, w),
             (2, 5, 6), -1, -1),
            ("F.conv1d", (4, 6, 3), F.conv1d, (2, 6, 7), 1, 1),
            ("F.conv2d", (4, 6, 3, 3), F.conv2d, (2, 6, 5, 5), 1, 1),
            ("F.conv3d", (4, 6, 2, 2, 2), F.conv3d, (2, 6, 3, 3, 3), 1, 1),
            ("F.conv_transpose1d", (6, 4, 3), F.conv_transpose1d, (2, 6, 7), 1, 1),
            ("F.conv_transpose2d", (6, 4, 3, 3), F.conv_transpose2d, (2, 6, 5, 5), 1, 1),
            ("F.conv2d by keyword", (4, 6, 3, 3), lambda x, w: F.conv2d(x, weight=w), (2, 6, 5, 5),
             1, 1),
            ("W / n", (4, 6), lambda x, w: F.linear(x, w / 6**0.5), (5, 6), -1, -1),
            ("W.div(n)", (6, 4), lambda x, w: x @ w.div(2), (5, 6), -1, -1),
            ("float", (4, 6), lambda x, w: F.linear(x, w.to(x.dtype)), (5, 6), -1, -1),
        ]
    ),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer types of a user, for the time of one test."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @biofx.register(Kernel)
    def kernel(module: Kernel) -> list[Axes]:
        return [Axes("kernel", "linear", post=1, pre=0)]

    @biofx.register(LinearKernel)
    def linear_kernel(module: LinearKernel) -> list[Axes]:
        return [Axes("kernel", "linear", post=0, pre=1)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_axes(case: Case) -> None:
    seed()
    bio = biofx.transform(case.make())
    synapses = biofx.info(bio).synapses[case.parameter]
    weight = bio.get_parameter(case.parameter)
    check_axes(bio, weight, synapses, torch.rand(case.x) + 0.5, into=case.into, out=case.out)


class Behind(nn.Module):
    """A layer that is not an output layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.LazyLinear(3)

    def forward(self, x):
        return self.head(self.layer(x).flatten(1))


@pytest.mark.parametrize("mode", ["group", "expand"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_split_or_a_reason(case: Case, mode: Any) -> None:
    seed()
    x = torch.rand(case.x)
    model = Behind(case.make())
    model(x)
    bio = biofx.transform(model, GAMMA.replace(weight_splitting_mode=mode))
    layer = biofx.info(bio).layers["layer"]
    if case.whole is None:
        assert (layer.action, layer.reason) == ("split", None)
    else:
        assert layer.action == "augmented"
        assert case.whole in layer.reason
    if mode == "expand":
        torch.testing.assert_close(bio(x), model(x))
    elif case.whole is None:
        units = bio.layer(x).movedim(case.out, 0)
        assert torch.equal(units[0::2], units[1::2])


# --- groups


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lambda: nn.Conv1d(6, 9, 3, groups=3), (2, 6, 7)),
        (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
        (lambda: nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 5)),
        (lambda: nn.ConvTranspose1d(6, 9, 3, groups=3), (2, 6, 7)),
        (lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
        (lambda: Direct((4, 3, 3), lambda x, w: F.conv1d(x, w, groups=2)), (2, 6, 7)),
        (lambda: Direct((6, 2, 3), lambda x, w: F.conv_transpose1d(x, w, groups=2)), (2, 6, 7)),
        (
            lambda: Direct((6, 2, 3), lambda x, w: F.conv_transpose1d(x, w, None, 1, 0, 0, 2)),
            (2, 6, 7),
        ),
    ],
    ids=[
        "conv1d", "conv2d", "depthwise", "transposed 1d", "transposed 2d", "F.conv1d",
        "F.conv_transpose1d", "F.conv_transpose1d by position",
    ],
)  # fmt: skip
def test_axes_of_grouped_convolutions(layer: Any, x: tuple[int, ...]) -> None:
    seed()
    bio = biofx.transform(layer())
    synapses = biofx.info(bio).synapses["weight"]
    check_axes(bio, bio.weight, synapses, torch.rand(x) + 0.5, into=1, out=1)
    share = x[1] // synapses.groups
    for group in range(synapses.groups):
        units = set(range(group * share, (group + 1) * share))
        alone = bio(only(torch.rand(x) + 0.5, 1, units, keep=True)) - bio(torch.zeros(x))
        outputs = alone.shape[1] // synapses.groups
        assert units_of(alone.abs() > 1e-6, 1) == set(range(group * outputs, (group + 1) * outputs))


# --- layers of several inputs or weights


def test_bilinear() -> None:
    seed()
    bio = biofx.transform(nn.Bilinear(6, 3, 4))
    other = torch.rand(5, 3) + 0.5
    synapses = biofx.info(bio).synapses["weight"]
    check_axes(lambda x: bio(x, other), bio.weight, synapses, torch.rand(5, 6) + 0.5)
    direct = biofx.transform(Direct((4, 6, 3), lambda x, w: F.bilinear(x, x[..., :3], w)))
    found = biofx.info(direct).synapses["weight"]
    assert (found.post_axis, found.pre_axis) == (synapses.post_axis, synapses.pre_axis) == (0, 1)


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.Embedding(7, 4), (5,)),
        (lambda: nn.Embedding(7, 4, padding_idx=0), (2, 5)),
        (lambda: nn.EmbeddingBag(7, 4, mode="sum"), (3, 2)),
        (lambda: nn.EmbeddingBag(7, 4, mode="mean"), (3, 2)),
        (lambda: Direct((7, 4), F.embedding), (5,)),
    ],
    ids=["embedding", "padded", "bag of sums", "bag of means", "F.embedding"],
)
def test_embeddings(make: Any, x: tuple[int, ...]) -> None:
    seed()
    bio = biofx.transform(make())
    synapses = biofx.info(bio).synapses["weight"]
    assert synapses.shape == (7, 4)
    tokens = torch.randint(7, x)
    for j in range(4):
        assert units_of(effect(bio, bio.weight, synapses.post_axis, j, tokens), -1) == {j}
    for token in range(7):
        present = (tokens == token).any().item()
        assert effect(bio, bio.weight, synapses.pre_axis, token, tokens).any().item() == present


def identity_out(attention: nn.MultiheadAttention) -> nn.MultiheadAttention:
    with torch.no_grad():
        attention.out_proj.weight.copy_(torch.eye(attention.embed_dim))
    return attention


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_multihead_attention(packed: bool) -> None:
    seed()
    sizes = {} if packed else {"kdim": 8, "vdim": 8}
    layer = nn.MultiheadAttention(8, 2, bias=False, batch_first=True, **sizes)
    if not packed:  # equal sizes are packed
        layer = nn.MultiheadAttention(8, 2, bias=False, batch_first=True, kdim=8, vdim=6)
    bio = biofx.transform(identity_out(layer))
    info = biofx.info(bio)
    inputs = [torch.rand(2, 3, 8) + 0.5, torch.rand(2, 3, 8) + 0.5, torch.rand(2, 3, 8) + 0.5]
    if not packed:
        inputs[2] = inputs[2][..., :6]
    names = ["in_proj_weight"] if packed else [f"{p}_proj_weight" for p in "qkv"]
    assert [*names, "out_proj.weight"] == list(info.synapses)
    blocks = {}
    for name in names:
        synapses = info.synapses[name]
        parts = bio.get_parameter(name).chunk(len(synapses.bundles), synapses.post_axis)
        blocks.update(zip(synapses.bundles, parts, strict=True))
    assert list(blocks) == ["q", "k", "v"]
    for position, (part, block) in enumerate(blocks.items()):
        synapses = info.synapses[names[0] if packed else f"{part}_proj_weight"]
        post, pre = synapses.post_axis, synapses.pre_axis

        def call(x: Tensor, position: int = position) -> Tensor:
            given = [x if i == position else other for i, other in enumerate(inputs)]
            return bio(*given, need_weights=False)[0]

        for j in range(block.shape[post]):
            heard = units_of(effect(call, block, post, j, inputs[position]), -1)
            head = range(j // 4 * 4, j // 4 * 4 + 4)
            assert heard == ({j} if part == "v" else set(head)), f"{part}, slice {j}"
        for i in range(block.shape[pre]):
            for keep in (True, False):
                # the scores of a query alone say nothing: it needs some key, and the reverse
                x = only(inputs[position], -1, {i}, keep=keep)
                assert effect(call, block, pre, i, x).any().item() == keep, f"{part}, slice {i}"


def test_the_output_of_attention() -> None:
    seed()
    bio = biofx.transform(nn.MultiheadAttention(8, 2, batch_first=True), GAMMA)
    x = torch.rand(2, 3, 8)
    synapses = biofx.info(bio).synapses["out_proj.weight"]

    def call(x: Tensor) -> Tensor:
        return F.linear(x, bio.out_proj.weight)

    check_axes(call, bio.out_proj.weight, synapses, x + 0.5)
    heard = effect(lambda x: bio(x, x, x)[0], bio.out_proj.weight, synapses.post_axis, 3, x)
    assert units_of(heard, -1) == {3}
    assert biofx.info(bio).layers["out_proj"].action == "augmented"


# --- recurrent layers: computed anew from the blocks that the registry names


def recurrent_step(
    kind: str, x: Tensor, h: Tensor, c: Tensor, ih: dict[str, Tensor], hh: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """One step of a recurrent layer without biases, by the names of its gates."""
    a = {name: x @ block.T for name, block in ih.items()}
    b = {name: h @ block.T for name, block in hh.items()}
    if kind == "LSTM":
        c = torch.sigmoid(a["forget"] + b["forget"]) * c + torch.sigmoid(
            a["input"] + b["input"]
        ) * torch.tanh(a["cell"] + b["cell"])
        return torch.sigmoid(a["output"] + b["output"]) * torch.tanh(c), c
    if kind == "GRU":
        reset = torch.sigmoid(a["reset"] + b["reset"])
        update = torch.sigmoid(a["update"] + b["update"])
        new = torch.tanh(a["new"] + reset * b["new"])
        return (1 - update) * new + update * h, c
    return torch.tanh(a["hidden"] + b["hidden"]), c


def blocks_of(bio: nn.Module, name: str) -> dict[str, Tensor]:
    """The blocks of a weight by their names, output units first."""
    synapses = biofx.info(bio).synapses[name]
    weight = bio.get_parameter(name).movedim((synapses.post_axis, synapses.pre_axis), (0, 1))
    return dict(zip(synapses.bundles, weight.chunk(len(synapses.bundles)), strict=True))


@pytest.mark.parametrize(("kind", "projected"), [("RNN", 0), ("GRU", 0), ("LSTM", 0), ("LSTM", 3)])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_recurrent_layers(kind: str, projected: int, layers: int, bidirectional: bool) -> None:
    seed()
    more = {"proj_size": projected} if projected else {}
    layer = getattr(nn, kind)(6, 4, layers, bias=False, bidirectional=bidirectional, **more)
    bio = biofx.transform(layer)
    ways = ["", "_reverse"] if bidirectional else [""]
    x = value = torch.randn(1, 2, 6)
    h = torch.randn(layers * len(ways), 2, projected or 4)
    c = torch.randn(layers * len(ways), 2, 4)
    for depth in range(layers):
        found = []
        for way, suffix in enumerate(ways):
            state = h[depth * len(ways) + way], c[depth * len(ways) + way]
            weights = (blocks_of(bio, f"weight_{part}_l{depth}{suffix}") for part in ("ih", "hh"))
            result, _ = recurrent_step(kind, value[0], *state, *weights)
            if projected:
                name = f"weight_hr_l{depth}{suffix}"
                synapses = biofx.info(bio).synapses[name]
                assert synapses.bundles == ()
                assert (synapses.post_axis, synapses.pre_axis) == (0, 1)
                result = result @ bio.get_parameter(name).T
            found.append(result)
        value = torch.cat(found, -1)[None]
    expected, _ = bio(x, (h, c) if kind == "LSTM" else h)
    torch.testing.assert_close(value, expected)
    assert len(biofx.info(bio).synapses) == layers * len(ways) * (3 if projected else 2)


class OwnCell(nn.LSTMCell):
    """A user's cell."""


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell, OwnCell])
def test_recurrent_cells(cell: Any) -> None:
    seed()
    kind = "LSTM" if cell is OwnCell else cell.__name__.removesuffix("Cell")
    bio = biofx.transform(cell(6, 4, bias=False))
    x, h, c = torch.randn(2, 6), torch.randn(2, 4), torch.randn(2, 4)
    weights = (blocks_of(bio, f"weight_{part}") for part in ("ih", "hh"))
    found, state = recurrent_step(kind, x, h, c, *weights)
    expected = bio(x, (h, c)) if kind == "LSTM" else (bio(x, h), c)
    torch.testing.assert_close((found, state), expected)


# --- weights that are computed


def test_a_normalised_weight_is_trained_under_another_name() -> None:
    def names(layer: nn.Module) -> dict[str, tuple[int, int]]:
        found = biofx.info(biofx.transform(layer)).synapses
        return {name: (s.post_axis, s.pre_axis) for name, s in found.items()}

    direction = "parametrizations.weight.original1"
    assert names(parametrizations.weight_norm(nn.Linear(6, 4))) == {direction: (0, 1)}
    assert names(parametrizations.weight_norm(nn.Linear(1, 4))) == {direction: (0, 1)}
    assert names(parametrizations.weight_norm(nn.Conv2d(6, 4, 3))) == {direction: (0, 1)}
    assert names(parametrizations.weight_norm(nn.ConvTranspose1d(6, 4, 3))) == {direction: (1, 0)}
    assert names(parametrizations.spectral_norm(nn.Linear(6, 4))) == {ORIGINAL: (0, 1)}
    assert names(parametrizations.orthogonal(nn.Linear(6, 6))) == {ORIGINAL: (0, 1)}
    assert names(nn.utils.weight_norm(nn.Linear(6, 4))) == {"weight_v": (0, 1)}
    assert names(nn.utils.spectral_norm(nn.Linear(6, 4))) == {"weight_orig": (0, 1)}


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_factors_of_a_weight(transposed: bool) -> None:
    seed()
    bio = biofx.transform(LowRank(transposed=transposed))
    x = torch.rand(5, 6) + 0.5
    synapses = biofx.info(bio).synapses
    assert ("weight" in synapses) != transposed, "unused where it is transposed"
    check_axes(lambda h: F.linear(h, bio.b), bio.b, synapses["b"], torch.rand(5, 3) + 0.5)
    check_axes(lambda x: F.linear(x, bio.a), bio.a, synapses["a"], x)


class Adapted(nn.Module):
    """A frozen layer with low-rank adapters beside it, as PEFT wraps layers."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})
        self.active = ["default"]

    def forward(self, x):
        result = self.base_layer(x)
        for name in self.active:
            result = result + self.lora_B[name](self.lora_A[name](x)) * 2.0
        return result


def test_adapters_beside_a_frozen_layer() -> None:
    seed()
    bio = biofx.transform(nn.Sequential(Adapted(nn.Linear(6, 4)), nn.Linear(4, 2)))
    info = biofx.info(bio)
    assert info.layers["0.base_layer"].action == "skipped"
    assert info.layers["0.base_layer"].reason.startswith("frozen")
    for name, width in (("0.lora_A.default", 6), ("0.lora_B.default", 2)):
        layer = bio.get_submodule(name)
        synapses = info.synapses[f"{name}.weight"]
        check_axes(layer, layer.weight, synapses, torch.rand(5, width) + 0.5)
    assert info.layers["0.lora_A.default"].depth < info.layers["0.lora_B.default"].depth


# --- registering


def test_the_units_of_a_registered_layer_are_asked_for() -> None:
    model = nn.Sequential(LinearKernel(), nn.ReLU(), nn.Linear(4, 3))
    layer = biofx.info(biofx.transform(model, GAMMA)).layers["0"]
    assert layer.action == "augmented"
    assert "units" in layer.reason

    @biofx.register(LinearKernel)
    def with_units(module: LinearKernel) -> list[Axes]:
        return [Axes("kernel", "linear", post=0, pre=1, units=-1)]

    assert biofx.info(biofx.transform(model, GAMMA)).layers["0"].action == "split"


@pytest.mark.parametrize(
    ("shape", "use"),
    [
        ((3, 6, 4), lambda x, w: x @ w),
        ((3, 4, 6), lambda x, w: x @ w.T),
        ((3, 4, 6), F.linear),
    ],
    ids=["product", "transposed", "linear"],
)
def test_weights_of_an_ensemble(
    shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor]
) -> None:
    model = Direct(shape, lambda x, w: torch.vmap(use, in_dims=(None, 0))(x, w))
    synapses = biofx.info(biofx.transform(model, example_inputs=torch.randn(5, 6))).synapses
    assert shape[synapses["weight"].pre_axis] == 6
    assert shape[synapses["weight"].post_axis] == 4


def test_a_parameter_that_is_no_weight_is_named() -> None:
    model = nn.Sequential(Direct((5, 6), torch.mul), nn.Linear(6, 2))
    layers = biofx.info(biofx.transform(model, example_inputs=torch.randn(5, 6))).layers
    assert layers["0"].reason == "no operation is known to use its parameter 'weight' as a weight"


def test_weights_that_no_layer_explains_are_named() -> None:
    model = Direct((4, 6), lambda x, w: F.linear(x, w) if x.sum() > 0 else x)
    with pytest.raises(
        ModelError,
        match=r"no weight layer .*\(the model: how its parameter 'weight'.*; pass example_inputs,",
    ):
        biofx.transform(model)


def test_the_nearest_class_counts() -> None:
    @biofx.register(SpecialKernel)
    def special(module: SpecialKernel) -> list[Axes]:
        return [Axes("kernel", "special", post=1, pre=0)]

    assert [axes.kind for axes in axes_of(SpecialKernel())] == ["special"]
    assert [axes.kind for axes in axes_of(Kernel())] == ["linear"]
    assert axes_of(nn.LayerNorm(4)) == []


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned None; return a list with one Axes for each"),
        (Axes("kernel", "linear", 1, 0), "an Axes without a list around it; return a list"),
        ([3], r"returned 3; .*\[Axes\(\"weight\", \"linear\", post=0, pre=1\)\]"),
        ("kernel", "returned 'k'"),
        ([Axes("weight", "linear", 1, 0)], r"no parameter of that name; it has kernel \(6, 4\)"),
        ([Axes(3, "linear", 1, 0)], "no parameter of that name"),  # type: ignore[arg-type]
        ([Axes("kernel", "linear", 2, 0)], r"shape is \(6, 4\), so post is from 0 to 1"),
        ([Axes("kernel", "linear", 0, -3)], "so pre is from 0 to 1"),
        ([Axes("kernel", "linear", 1, 1)], "are the same axis"),
        ([Axes("kernel", "linear", 1, -1)], "are the same axis"),
        ([Axes("kernel", "linear", "1", 0)], "post must be the number of an axis"),  # type: ignore[arg-type]
        ([Axes("kernel", "linear", 1, True)], "pre must be the number of an axis"),
        ([Axes("kernel", "linear", 1, 0, units=1)], "units=1 must be a negative axis"),
        ([Axes("kernel", "linear", 1, 0, groups=0)], "groups=0 must be a positive int"),
        ([Axes("bias", "linear", 0, 1)], r"shape is \(4,\); a weight has an axis of output"),
    ],
    ids=repr,
)
def test_what_a_registered_function_returns(returned: Any, message: str) -> None:
    class Biased(Kernel):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(4))

    @biofx.register(Biased)
    def biased(module: Biased) -> Any:
        return returned

    with pytest.raises(biofx.ConfigError, match=message) as caught:
        biofx.transform(nn.Sequential(nn.Linear(2, 6), Biased()))
    assert "biased, which is registered for Biased, returned" in str(caught.value)


def test_a_registered_function_may_find_nothing_or_generate() -> None:
    returned: list[Axes] = []

    @biofx.register(SpecialKernel)
    def special(module: SpecialKernel) -> Iterator[Axes]:
        yield from returned

    assert axes_of(SpecialKernel()) == []
    returned.append(Axes("kernel", "special", post=-1, pre=0))
    assert axes_of(SpecialKernel()) == returned


def test_every_registered_type_is_tested() -> None:
    """A new entry of the registry needs a case here."""
    known = {nn.modules.linear.NonDynamicallyQuantizableLinear, "transformers.pytorch_utils.Conv1D"}
    known |= {nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention}
    known |= {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase, nn.RNNCellBase}
    known |= {nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}
    ours = {key for key in registry._REGISTRY if isinstance(key, str) or "torch" in key.__module__}
    assert ours == known  # others are those of tests
