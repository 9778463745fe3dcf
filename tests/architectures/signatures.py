"""Ways in and out of `forward`: arguments, defaults, containers, outputs."""

from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .table import architecture, floats


@architecture("dict_output", floats((4, 8)), tags={"captured"})
class DictOutput(nn.Module):
    """A dict out of the root and out of a submodule."""

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            y = self.fc(x)
            return {"hidden": y, "norms": {"l2": y.norm(dim=-1)}}

    def __init__(self):
        super().__init__()
        self.body, self.head = self.Body(), nn.Linear(8, 3)

    def forward(self, x):
        out = self.body(x)
        return {"logits": self.head(out["hidden"]), **out}


@dataclass
class Output:
    """What the dataclass models return."""

    logits: Tensor
    hidden: Tensor | None = None
    steps: int = 1


@architecture("dataclass_output", floats((4, 8)), tags={"captured", "outputs"})
class DataclassOutput(nn.Module):
    """A dataclass out of the root and out of a submodule whose fields the parent reads."""

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return Output(self.fc(x), steps=2)

    def __init__(self):
        super().__init__()
        self.body, self.head = self.Body(), nn.Linear(8, 3)

    def forward(self, x):
        out = self.body(x)
        return Output(logits=self.head(out.logits) * out.steps, hidden=out.logits)


class Scores(NamedTuple):
    """What the namedtuple model returns."""

    logits: Tensor
    value: Tensor


@architecture("namedtuple_output", floats((4, 8)), tags={"captured"})
class NamedTupleOutput(nn.Module):
    """A named tuple out of a submodule, read by field and by position."""

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.policy, self.critic = nn.Linear(8, 3), nn.Linear(8, 1)

        def forward(self, x):
            return Scores(self.policy(x), self.critic(x))

    def __init__(self):
        super().__init__()
        self.body = self.Body()

    def forward(self, x):
        out = self.body(x)
        return Scores(out.logits - out[1], value=out.value)


@architecture("nested_output", floats((4, 8)), tags={"captured"})
class NestedOutput(nn.Module):
    """Tensors, numbers, strings and `None` in lists, tuples and dicts."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.a(x)
        return [y, (self.b(y), None, 3), {"name": "b", "shape": y.shape, "all": [x, y]}]


@architecture("deep_supervision_list", floats((2, 3, 8, 8)), tags={"captured"})
class DeepSupervision(nn.Module):
    """A list with one output a stage."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(c, 6, 3, padding=1) for c in (3, 6, 6))
        self.heads = nn.ModuleList(nn.Conv2d(6, 2, 1) for _ in range(3))

    def forward(self, x):
        outs = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = torch.relu(stage(x))
            outs.append(head(x))
        return outs[::-1]


@architecture("pair_with_none", floats((2, 4, 8)), tags={"captured"})
class PairWithNone(nn.Module):
    """A module returns `(out, None)` and its parent asks `is None`."""

    class Attention(nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.qk, self.v, self.weights = nn.Linear(8, 16), nn.Linear(8, 8), weights

        def forward(self, x):
            q, k = self.qk(x).chunk(2, -1)
            attention = (q @ k.mT).softmax(-1)
            return attention @ self.v(x), attention if self.weights else None

    def __init__(self):
        super().__init__()
        self.silent, self.loud = self.Attention(False), self.Attention(True)

    def forward(self, x):
        maps = []
        for block in (self.silent, self.loud):
            y, attention = block(x)
            x = x + y
            if attention is not None:
                maps.append(attention)
        return x, maps


@architecture("star_args", floats((4, 8), (4, 8), (4, 8)), tags={"variadic"})
class StarArgs(nn.Module):
    """`forward(*xs)`, and a submodule that takes `*xs` from an unpacked list."""

    class Join(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(24, 8)

        def forward(self, *xs):
            return self.fc(torch.cat(xs, -1))

    def __init__(self):
        super().__init__()
        self.towers, self.join = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), self.Join()

    def forward(self, *xs):
        return self.join(*[tower(x) for tower, x in zip(self.towers, xs, strict=True)])


@architecture(
    "star_kwargs",
    lambda: ((torch.randn(4, 8),), {"scale": torch.randn(8), "label": "a", "extra": None}),
    tags={"variadic"},
)
class StarKwargs(nn.Module):
    """`forward(x, **options)`, options handed on with `**` and `pop`."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x, scale=None, **unused):
            return self.fc(x) if scale is None else self.fc(x * scale)

    def __init__(self):
        super().__init__()
        self.inner, self.head = self.Inner(), nn.Linear(8, 4)

    def forward(self, x, **options):
        label = options.pop("label", "b")
        return {label: self.head(self.inner(x, **options) + self.inner(x))}


class Masked(nn.Module):
    """Attention-like block with an optional mask: `mask=None` and an `is None` check."""

    def __init__(self):
        super().__init__()
        self.score, self.value = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, mask=None, *, scale: float | None = None):
        scores = self.score(x) @ x.mT
        if scale is not None:
            scores = scores * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e9)
        return scores.softmax(-1) @ self.value(x)


class MaskedTwice(nn.Module):
    """One block called with a mask, without, by keyword, and with a keyword-only argument."""

    def __init__(self):
        super().__init__()
        self.block, self.other = Masked(), Masked()
        self.register_buffer("causal", torch.ones(5, 5, dtype=torch.bool).tril())

    def forward(self, x, mask=None):
        x = x + self.block(x)
        x = x + self.block(x, mask)
        x = x + self.block(x, mask=mask, scale=0.5)
        x = x + self.block(x, self.causal)
        return self.other(x, scale=2.0) + self.other(x, None)


@architecture("optional_mask_absent", floats((2, 5, 8)), tags={"optional"})
def optional_mask_absent():
    return MaskedTwice()


@architecture(
    "optional_mask_present",
    lambda: ((torch.randn(2, 5, 8), torch.rand(2, 5, 5) > 0.3), {}),
    tags={"captured", "optional"},
)
def optional_mask_present():
    return MaskedTwice()


@architecture(
    "keyword_only",
    lambda: ((), {"query": torch.randn(4, 8), "context": torch.randn(4, 8), "power": 2}),
    tags={"captured"},
)
class KeywordOnly(nn.Module):
    """`forward(*, query, context, power)`: nothing positional, here and in a submodule."""

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Bilinear(8, 8, 8)

        def forward(self, *, left, right):
            return self.fc(left, right).sigmoid()

    def __init__(self):
        super().__init__()
        self.fc, self.gate = nn.Linear(8, 8), self.Gate()

    def forward(self, *, query, context, power=1):
        return self.gate(right=context, left=query) * self.fc(context) ** power


@architecture(
    "keyword_only_behind_optional",
    lambda: ((torch.randn(4, 8),), {"bias": torch.randn(8)}),
    tags={"captured"},
)
class KeywordOnlyBehindOptional(nn.Module):
    """`forward(x, mask=None, *, bias)`: what is needed stands behind what is not."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x, mask=None, *, bias):
        x = self.fc(x) + bias
        return x if mask is None else x * mask


@architecture("default_arguments", floats((4, 8)), tags={"captured"})
class DefaultArguments(nn.Module):
    """Defaults of many types, used in arithmetic; none is passed."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x, scale=2.0, shift: int = 1, dims=(-1,)):
        return self.fc(x * scale).sum(dims) + shift


@architecture(
    "non_tensor_inputs",
    lambda: ((torch.randn(4, 8), "tanh", 2), {"heads": ["a", "c"], "flag": True}),
    tags={"non-tensor"},
)
class NonTensorInputs(nn.Module):
    """Strings, numbers, flags and lists of names choose what runs."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.heads = nn.ModuleDict({name: nn.Linear(8, 3) for name in "abc"})

    def forward(self, x, activation, repeat, heads=(), flag=False):
        for _ in range(repeat):
            x = getattr(torch, activation)(self.fc(x))
        x = -x if flag else x
        return {name: self.heads[name](x) for name in heads}


@architecture(
    "list_of_tensors",
    lambda: (([torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)], (3, 8)), {}),
    tags={"captured", "non-tensor"},
)
class ListOfTensors(nn.Module):
    """A list of tensors and a tuple of numbers, indexed but not iterated."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, xs, shape):
        return (self.a(xs[0]) * self.b(xs[1])) / shape[0], torch.cat(xs, 0)


@architecture(
    "feature_pyramid_list",
    lambda: (([torch.randn(2, c, s, s) for c, s in ((4, 8), (6, 4), (8, 2))],), {}),
    tags={"iteration", "non-tensor"},
)
class FeaturePyramid(nn.Module):
    """A list of feature maps, iterated with `zip` and `reversed`."""

    def __init__(self):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, 4, 1) for c in (4, 6, 8))
        self.smooth = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, features):
        outs, top = [], None
        for x, lateral in reversed(list(zip(features, self.lateral, strict=True))):
            x = lateral(x)
            if top is not None:
                x = x + nn.functional.interpolate(top, size=x.shape[-2:], mode="nearest")
            outs.insert(0, top := x)
        return [smooth(x) for smooth, x in zip(self.smooth, outs, strict=True)]


def batch() -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One dict batch, as data loaders give."""
    return ({"ids": torch.randint(9, (4, 3)), "dense": torch.randn(4, 8), "id": "batch-0"},), {}


@architecture("dict_of_tensors", batch, tags={"captured", "non-tensor"})
class DictOfTensors(nn.Module):
    """A dict batch with tensors and a string, read by key."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(9, 8), nn.Linear(8, 8)

    def forward(self, batch):
        return self.fc(batch["dense"]) + self.embed(batch["ids"]).mean(1)


@architecture("dict_inspected", batch, tags={"non-tensor"})
class DictInspected(nn.Module):
    """`in`, `get`, `items` on a dict batch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"ids": nn.Embedding(9, 8), "dense": nn.Linear(8, 8)})

    def forward(self, batch):
        outs = {k: self.layers[k](v) for k, v in batch.items() if k in self.layers}
        if "weights" in batch or batch.get("id") is None:
            outs["dense"] = outs["dense"] * batch["weights"]
        return outs["dense"] + outs["ids"].sum(1)


@dataclass
class Sample:
    """What the dataclass-input model takes."""

    x: Tensor
    scale: float = 1.0


@architecture("dataclass_input", lambda: ((Sample(torch.randn(4, 8), 0.5),), {}), tags={"captured"})
class DataclassInput(nn.Module):
    """A dataclass in, handed to a submodule as it is."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, sample):
            return self.fc(sample.x) * sample.scale

    def __init__(self):
        super().__init__()
        self.inner, self.head = self.Inner(), nn.Linear(8, 4)

    def forward(self, sample):
        return self.head(self.inner(sample))


@architecture("called_twice", floats((4, 8)), tags={"captured", "shared"})
class CalledTwice(nn.Module):
    """One layer called twice, directly and inside a block called twice."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x):
        return self.block(self.fc(self.block(self.fc(x))))


@architecture("called_twice_other_ranks", floats((2, 3, 8)), tags={"shapes", "shared"})
class CalledTwiceOtherRanks(nn.Module):
    """One block called on 3-D and 2-D tensors, taking another branch each time."""

    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(x).mean(1) if x.ndim == 3 else self.fc(x)

    def __init__(self):
        super().__init__()
        self.pool = self.Pool()

    def forward(self, x):
        return self.pool(self.pool(x))


@architecture("siamese", floats((4, 8), (4, 8)), tags={"captured", "shared"})
class Siamese(nn.Module):
    """One encoder on two inputs."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, a, b):
        return nn.functional.cosine_similarity(self.encoder(a), self.encoder(b), dim=-1)


@architecture("single_tensor_passthrough", floats((4, 8)), tags={"captured"})
class Passthrough(nn.Module):
    """The input itself is among the outputs, twice."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return x, self.fc(x), x


@dataclass
class Record(OrderedDict):
    """A dict that is a dataclass, as model libraries return it."""

    logits: Tensor
    hidden: Tensor | None = None

    def __post_init__(self):
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


@architecture("dict_dataclass_output", floats((4, 8)), tags={"outputs"})
class DictDataclassOutput(nn.Module):
    """It stays what it is, out of the root and out of a submodule."""

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return Record(self.fc(x))

    def __init__(self):
        super().__init__()
        self.body, self.head = self.Body(), nn.Linear(8, 3)

    def forward(self, x):
        out = self.body(x)
        return Record(self.head(out.logits), hidden=out.logits)


@dataclass
class Doubled:
    """Made anew of its fields, it is another one."""

    value: Tensor

    def __post_init__(self):
        self.value = self.value * 2


@architecture("dataclass_that_computes", floats((4, 8)), tags={"outputs"})
class DataclassThatComputes(nn.Module):
    """A dataclass whose `__post_init__` changes a field, out of a submodule and into another."""

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return Doubled(self.fc(x))

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 3)

        def forward(self, doubled):
            return self.fc(doubled.value)

    def __init__(self):
        super().__init__()
        self.body, self.head = self.Body(), self.Head()

    def forward(self, x):
        return self.head(self.body(x))


@architecture("ordered_dict_argument", floats((4, 8)), tags={"non-tensor"})
class OrderedDictArgument(nn.Module):
    """A submodule that asks for the class of the dict that it gets."""

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, values):
            return self.fc(values["x"]) if type(values) is OrderedDict else values["x"]

    def __init__(self):
        super().__init__()
        self.body, self.head = self.Body(), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(OrderedDict(x=x)))


@architecture("arguments_named_like_builtins", floats((4, 8), (4, 8)), tags={"defaults"})
class ArgumentsNamedLikeBuiltins(nn.Module):
    """Names that the check of arguments uses itself."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, torch, type, len=2):
        return self.fc(torch) * len + type


@architecture("self_by_another_name", floats((4, 8)), tags={"defaults"})
class SelfByAnotherName(nn.Module):
    """`self` is an argument like any other."""

    def __init__(this):
        super().__init__()
        this.fc = nn.Linear(8, 8)

    def forward(this, self):
        return this.fc(self).relu()
