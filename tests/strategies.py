"""Hypothesis strategies: random networks, as specs that build module-level (picklable) classes."""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from tests.architectures import Architecture, floats

ACTIVATIONS = ("relu", "tanh", "sigmoid")
SAME_WIDTH = ("activation", "dropout", "norm", "group_norm")
MODE_DEPENDENT = ("functional_dropout", "root_dropout", "training_branch", "root_branch")
NOT_TRACEABLE = (*MODE_DEPENDENT, "data_branch", "running_mean")
WIDE = ("layer", "block", "training_branch", "data_branch")


@dataclass(frozen=True)
class Step:
    """One operation of a random network.

    `source` and `other` number earlier values (0 is the input), `width` is that of the result,
    `earlier` is the step whose layer is called again or whose weight is tied.
    """

    kind: str
    source: int
    width: int
    other: int = 0
    earlier: int = 0
    activation: str = "relu"
    inner: "Spec | None" = None


@dataclass(frozen=True)
class Spec:
    """A random network: vectors `(4, width)` or images `(2, width, 4, 4)` in."""

    width: int
    steps: tuple[Step, ...]
    image: bool = False
    output: Literal["tensor", "tuple", "dict"] = "tensor"

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of all steps, nested ones too."""
        inner = (step.inner.kinds for step in self.steps if step.inner)
        return frozenset(step.kind for step in self.steps).union(*inner)

    @property
    def architecture(self) -> Architecture:
        """The network with its inputs, like an entry of the table."""
        tags = {
            "captured": not self.kinds & set(NOT_TRACEABLE),
            "data": "data_branch" in self.kinds,
            "shared": "again" in self.kinds,
            "stateful": bool(self.kinds & {"norm", "block", "running_mean"}),
            "tied": "tied" in self.kinds,
            "training": bool(self.kinds & set(MODE_DEPENDENT)),
        }
        shape = (2, self.width, 4, 4) if self.image else (4, self.width)
        return Architecture(
            name="random network",
            make=functools.partial(RandomNet, self),
            inputs=floats(shape),
            tags=frozenset(tag for tag, true in tags.items() if true),
        )


class FunctionalDropout(nn.Module):
    """`F.dropout` that follows the mode."""

    def forward(self, x):
        return F.dropout(x, 0.3, self.training)


class Branch(nn.Module):
    """One of two layers, chosen by the mode or by the data."""

    def __init__(self, on: Literal["training", "data"], yes: nn.Module, no: nn.Module):
        super().__init__()
        self.on, self.yes, self.no = on, yes, no

    def forward(self, x):
        chosen = self.training if self.on == "training" else x.mean() > 0
        if chosen:
            return self.yes(x)
        return self.no(x)


class RunningMean(nn.Module):
    """Subtracts a running mean, a buffer updated in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        with torch.no_grad():
            self.mean.mul_(0.9).add_(x.mean(), alpha=0.1)
        return x - self.mean


class RandomNet(nn.Module):
    """The network that a `Spec` describes. A layer that is called again has several names."""

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec, self.layers = spec, nn.ModuleDict()
        widths = [spec.width, *(step.width for step in spec.steps)]
        for i, step in enumerate(spec.steps):
            layer = self.build(step, widths[step.source])
            if layer is not None:
                self.layers[str(i)] = layer

    def build(self, step: Step, width: int) -> nn.Module | None:
        """The module of a step, `None` for plain operations."""
        linear = functools.partial(nn.Conv2d, kernel_size=3, padding=1)
        norm, layer = nn.BatchNorm2d, linear if self.spec.image else nn.Linear
        norm = norm if self.spec.image else nn.BatchNorm1d
        out = step.width
        match step.kind:
            case "layer" | "tied":
                built = layer(width, out)
                if step.kind == "tied":
                    built.weight = self.layers[str(step.earlier)].weight
                return built
            case "again":
                return self.layers[str(step.earlier)]
            case "activation":
                return {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[step.activation]()
            case "dropout":
                return nn.Dropout(0.3)
            case "norm":
                return norm(width)
            case "group_norm":
                return nn.GroupNorm(1, width)
            case "block":
                tail = nn.Sequential(norm(out), nn.Dropout(0.2), layer(out, out))
                return nn.Sequential(layer(width, out), nn.ReLU(), tail)
            case "functional_dropout":
                return FunctionalDropout()
            case "running_mean":
                return RunningMean()
            case "training_branch" | "data_branch":
                on = step.kind.removesuffix("_branch")
                return Branch(on, layer(width, out), layer(width, out))
            case "net":
                return RandomNet(step.inner)
        return None

    def run(self, i: int, step: Step, values: list) -> torch.Tensor:
        """The value of step `i`."""
        x = values[step.source]
        match step.kind:
            case "add":
                return x + values[step.other]
            case "cat":
                return torch.cat([x, values[step.other]], dim=1)
            case "function":
                return getattr(torch, step.activation)(x)
            case "root_dropout":
                return F.dropout(x, p=0.3, training=self.training)
            case "root_branch":
                return x * 2 if self.training else x
        return self.layers[str(i)](x)

    def forward(self, x):
        values = [x]
        for i, step in enumerate(self.spec.steps):
            values.append(self.run(i, step, values))
        match self.spec.output:
            case "tuple":
                return values[-1], values[len(values) // 2]
            case "dict":
                return {"last": values[-1], "all": values[1:]}
        return values[-1]


@st.composite
def specs(draw, *, width: int | None = None, image: bool | None = None, depth: int = 1) -> Spec:
    """Specs of random networks. They shrink to few steps in a chain, of simple kinds."""
    nested = width is not None
    width = width or draw(st.sampled_from((4, 2, 6)))
    image = draw(st.booleans()) if image is None else image
    hard = draw(st.sampled_from(((), NOT_TRACEABLE, ("training_branch", "data_branch"))))
    widths, steps = [width], []
    for _ in range(draw(st.integers(1, 3 if nested else 8))):
        source = len(widths) - 1 - draw(st.integers(0, len(widths) - 1))
        inputs = widths[source]
        step = functools.partial(Step, source=source, width=inputs)
        same = [k for k, w in enumerate(widths) if w == inputs]
        fits = [
            k
            for k, s in enumerate(steps)
            if widths[s.source] == inputs and s.kind in (*WIDE, "net")
        ]
        ties = [k for k in fits if steps[k].kind == "layer"]
        kinds = [*WIDE[:2], *SAME_WIDTH, "function", "add", *(["cat"] if inputs < 16 else [])]
        kinds += [*(["again"] if fits else []), *(["tied"] if ties else [])]
        kinds += [*(["net"] if depth else []), *hard]
        kind = draw(st.sampled_from(kinds))
        if kind in WIDE:
            new = step(kind, width=draw(st.sampled_from((4, 2, 6))))
        elif kind in ("again", "tied"):
            earlier = draw(st.sampled_from(fits if kind == "again" else ties))
            new = step(kind, earlier=earlier, width=steps[earlier].width)
        elif kind in ("activation", "function"):
            new = step(kind, activation=draw(st.sampled_from(ACTIVATIONS)))
        elif kind == "add":
            new = step(kind, other=draw(st.sampled_from(same)))
        elif kind == "cat":
            other = draw(st.integers(0, len(widths) - 1))
            new = step(kind, other=other, width=inputs + widths[other])
        elif kind == "net":
            inner = draw(specs(width=inputs, image=image, depth=depth - 1))
            new = step(kind, inner=inner, width=inner.steps[-1].width)
        else:
            new = step(kind)
        steps.append(new)
        widths.append(new.width)
    output = "tensor" if nested else draw(st.sampled_from(("tensor", "tuple", "dict")))
    return Spec(width, tuple(steps), image, output)


def random_networks() -> st.SearchStrategy[Architecture]:
    """Random networks with their inputs and tags, like entries of the table.

    Some have no weights, or none that the output depends on.
    """
    return specs().map(lambda spec: spec.architecture)
