"""What hangs on a module: attributes, containers, sharing, tying, freezing."""

import functools
import threading
import weakref
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from .state import double
from .table import architecture, floats

# Attributes ----------------------------------------------------------------------------------


@architecture("tensor_attribute", floats((4, 8)), tags={"captured"})
class TensorAttribute(nn.Module):
    """Plain tensors, not buffers, on a submodule and in a list."""

    def __init__(self):
        super().__init__()
        self.fc, self.scale = nn.Linear(8, 8), torch.randn(8)
        self.shifts = [torch.randn(8), torch.randn(8)]

    def forward(self, x):
        return self.fc(x) * self.scale + self.shifts[0] - self.shifts[1]


@architecture("lambda_attribute", floats((4, 8)), tags={"captured", "no_pickle"})
class LambdaAttribute(nn.Module):
    """Lambdas as attributes."""

    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(8, 8), lambda x: x * torch.sigmoid(x)

    def forward(self, x):
        return self.act(self.fc(x))


@architecture("partial_attribute", floats((4, 8)), tags={"captured"})
class PartialAttribute(nn.Module):
    """`functools.partial` of a function, as an attribute and as a layer factory."""

    def __init__(self, linear=functools.partial(nn.Linear, bias=False)):
        super().__init__()
        self.fc, self.act = linear(8, 8), functools.partial(F.leaky_relu, negative_slope=0.2)

    def forward(self, x):
        return self.act(self.fc(x))


@architecture("bound_method_attribute", floats((4, 8)), tags={"captured"})
class BoundMethodAttribute(nn.Module):
    """Bound methods of the module and of a child kept as attributes (they close over `self`)."""

    def __init__(self):
        super().__init__()
        self.fc, self.gate = nn.Linear(8, 8), nn.Linear(8, 8)
        self.run, self.gate_fn = self.gated, self.gate.forward

    def gated(self, x):
        return self.fc(x) * self.gate_fn(x).sigmoid()

    def forward(self, x):
        return self.run(x)


@architecture("property_attributes", floats((4, 8)), tags={"captured"})
class PropertyAttributes(nn.Module):
    """Properties compute a weight, a scale and a layer."""

    def __init__(self):
        super().__init__()
        self.layers, self.raw = nn.ModuleList([nn.Linear(8, 8)]), nn.Parameter(torch.randn(8, 8))

    @property
    def symmetric(self):
        return self.raw + self.raw.T

    @property
    def last(self):
        return self.layers[-1]

    def forward(self, x):
        return self.last(x) @ self.symmetric


@architecture("getattr_delegation", floats((4, 8)), tags={"captured"})
class GetattrDelegation(nn.Module):
    """`__getattr__` overridden to look through to a wrapped model (PEFT, DDP-like wrappers)."""

    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head, self.scale = nn.Linear(8, 8), nn.Linear(8, 4), 0.5

        def forward(self, x):
            return self.head(torch.relu(self.fc(x)))

    def __init__(self):
        super().__init__()
        self.base = self.Base()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x):
        return self.base(x) + self.head(x) * self.scale


def swish_forward(self, x):
    """Replaces `nn.Linear.forward` on one instance."""
    y = F.linear(x, self.weight, self.bias)
    return y * y.sigmoid()


@architecture(
    "instance_forward", floats((4, 8)), tags={"captured", "instance-forward", "no_pickle"}
)
def instance_forward():
    """`forward` replaced on two instances, a leaf and a container, by a method and a partial."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 4))
    net[0].forward = swish_forward.__get__(net[0])
    inner = net[1]
    inner.forward = functools.partial(doubled_forward, inner)
    return net


def doubled_forward(module, x):
    """Replaces `nn.Sequential.forward` on one instance."""
    return module[0](x) * 2


@architecture("super_forward", floats((4, 8)), tags={"captured"})
class SuperForward(nn.Linear):
    """`super().forward`, in a Linear subclass that is the root."""

    def __init__(self):
        super().__init__(8, 8)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return super().forward(x) * self.gain


@architecture("calls_forward_directly", floats((4, 8)), tags={"hooks"})
class CallsForward(nn.Module):
    """`self.fc.forward(x)`, which skips the hooks, next to `self.fc(x)`, which runs them."""

    def __init__(self):
        super().__init__()
        self.fc, self.block = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.fc.register_forward_hook(double)
        self.block.register_forward_hook(double)

    def forward(self, x):
        return self.block.forward(self.fc(x)) + self.block(self.fc.forward(x))


@architecture("reads_child_weight", floats((2, 4, 6, 6)), tags={"captured", "direct-weights"})
class ReadsChildWeight(nn.Module):
    """`self.conv.weight` read directly, next to a call of `self.conv`."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        y = self.conv(x) - F.conv2d(x, self.conv.weight.sum((2, 3), keepdim=True))
        return self.fc(y.mean((2, 3))) + F.linear(x.mean((2, 3)), self.fc.weight, self.fc.bias)


@architecture("iterates_parameters", floats((4, 8)), tags={"iteration"})
class IteratesParameters(nn.Module):
    """Regularisers over `self.parameters()`, `named_parameters()`, `modules()` and `children()`."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        for child in self.children():
            x = child(x)
        decay = sum(p.square().sum() for p in self.parameters())
        named = sum(p.abs().sum() for n, p in self.named_parameters() if n.endswith("weight"))
        linears = [m.weight.mean() for m in self.modules() if isinstance(m, nn.Linear)]
        x = x.to(next(self.parameters()).dtype)
        return x, decay + named + sum(linears) + self.get_submodule("fc.0").out_features


@architecture("generator_attribute", floats((4, 8)), tags={"private-rng", "stateful_python"})
class GeneratorAttribute(nn.Module):
    """A private `torch.Generator`."""

    def __init__(self):
        super().__init__()
        self.fc, self.generator = nn.Linear(8, 8), torch.Generator().manual_seed(7)

    def forward(self, x):
        noise = torch.rand(8, generator=self.generator)
        return self.fc(x) * noise


@architecture("lock_attribute", floats((4, 8)), tags={"no_pickle", "no_deepcopy", "context"})
class LockAttribute(nn.Module):
    """A lock, which cannot be copied, held during `forward`."""

    def __init__(self):
        super().__init__()
        self.fc, self.lock = nn.Linear(8, 8), threading.Lock()

    def forward(self, x):
        with self.lock:
            return self.fc(x)


@architecture(
    "weak_parent_reference",
    floats((4, 8)),
    tags={"back-reference", "captured", "no_deepcopy", "no_pickle"},
)
class WeakParent(nn.Module):
    """A child that knows its parent by a weak reference, and uses its parent's layer."""

    class Child(nn.Module):
        def __init__(self, parent):
            super().__init__()
            self.fc, self.parent = nn.Linear(8, 8), weakref.ref(parent)

        def forward(self, x):
            return self.parent().shared(self.fc(x))

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.child = self.Child(self)

    def forward(self, x):
        return self.child(self.shared(x))


@architecture(
    "weak_parent_proxy",
    floats((4, 8)),
    tags={"back-reference", "captured", "no_deepcopy", "no_pickle"},
)
class ProxyParent(nn.Module):
    """Weak proxies of the parent, in a list and in a function, and one of what is gone."""

    class Child(nn.Module):
        def __init__(self, parent):
            super().__init__()
            known = weakref.proxy(parent)
            self.fc, self.parent = nn.Linear(8, 8), [known]
            self.shift = lambda x: x + known.shared.bias
            self.gone = [weakref.proxy(threading.Event())]

        def forward(self, x):
            return self.shift(self.parent[0].shared(self.fc(x)))

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.child = self.Child(self)

    def forward(self, x):
        return self.child(self.shared(x))


@architecture("hidden_parent_reference", floats((4, 8)), tags={"captured", "back-reference"})
class HiddenParent(nn.Module):
    """A child that holds its parent in a list, unregistered: a cycle."""

    class Child(nn.Module):
        def __init__(self, parent):
            super().__init__()
            self.fc, self.owner = nn.Linear(8, 8), [parent]

        def forward(self, x):
            return self.owner[0].shared(self.fc(x))

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.child = self.Child(self)

    def forward(self, x):
        return self.child(self.shared(x))


@architecture("local_class", floats((4, 8)), tags={"captured", "no_pickle"})
def local_class():
    """A class defined inside a function."""

    class Local(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(x).relu()

    return Local()


# Containers ----------------------------------------------------------------------------------


@architecture("nested_containers", floats((4, 8)), tags={"captured"})
class NestedContainers(nn.Module):
    """ModuleList in ModuleDict in Sequential, ParameterList and ParameterDict beside them."""

    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            left, right = ([nn.Linear(8, 8), nn.Tanh()] for _ in range(2))
            self.paths = nn.ModuleDict({"l": nn.ModuleList(left), "r": nn.ModuleList(right)})

        def forward(self, x):
            outs = []
            for path in self.paths.values():
                y = x
                for layer in path:
                    y = layer(y)
                outs.append(y)
            return sum(outs)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), self.Parallel(), nn.Sequential(self.Parallel()))
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(8, 8)) for _ in range(2))
        self.biases = nn.ParameterDict({"a": torch.zeros(8), "b": torch.ones(8)})

    def forward(self, x):
        x = self.net(x) @ self.weights[0] + self.biases["a"]
        return x @ self.weights[-1] + self.biases["b"]


@architecture("sequential_slices", floats((4, 8)), tags={})
class SequentialSlices(nn.Module):
    """`self.features[:2]`, indexing from the end, iterating over a slice."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)
        )

    def forward(self, x):
        low = self.features[:2](x)
        high = low
        for layer in self.features[2:]:
            high = layer(high)
        return self.features[-1](low) + high


@architecture("alias_list", floats((4, 8)), tags={"captured", "shared"})
class AliasList(nn.Module):
    """A plain list and a tuple of layers that are registered under other names."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.plan, self.pairs = [self.a, self.b, self.a], ((self.b, "tanh"),)

    def forward(self, x):
        for layer in self.plan:
            x = torch.relu(layer(x))
        for layer, act in self.pairs:
            x = getattr(torch, act)(layer(x))
        return x


@architecture("plain_dict_of_modules", floats((4, 8)), tags={"unregistered"})
class PlainDict(nn.Module):
    """Layers hidden in a plain dict: no parameters of the model, yet they run."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.heads = {"a": nn.Linear(8, 2), "b": nn.ModuleList([nn.Linear(8, 3)])}

    def forward(self, x):
        x = self.fc(x)
        return self.heads["a"](x), self.heads["b"][0](x)


@architecture("shared_submodule", floats((4, 8)), tags={"captured", "shared"})
class SharedSubmodule(nn.Module):
    """One layer and one block, each registered under two names and in two parents."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = self.a
        self.block = nn.Sequential(self.a, nn.ReLU(), nn.Linear(8, 8))
        self.again = nn.ModuleList([self.block, nn.Sequential(self.block, nn.Tanh())])

    def forward(self, x):
        x = self.b(self.block(self.a(x)))
        for block in self.again:
            x = block(x)
        return x


@architecture("shared_opaque_submodule", floats((4, 8)), tags={"data", "shared"})
class SharedOpaque(nn.Module):
    """A block that cannot be traced, under two names and called three times."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(x) if x.mean() > 0 else -self.fc(x)

    def __init__(self):
        super().__init__()
        self.first = self.Block()
        self.second, self.head = nn.Sequential(self.first, nn.Tanh()), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.first(self.second(self.first(x))))


@architecture("tied_autoencoder", floats((4, 8)), tags={"captured", "tied", "direct-weights"})
class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weight, transposed."""

    def __init__(self):
        super().__init__()
        self.encoder, self.bias = nn.Linear(8, 4), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.t(), self.bias)


@architecture("tied_layers", floats((4, 8)), tags={"captured", "tied"})
class TiedLayers(nn.Module):
    """Two Linears share one weight, three share one bias."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.b.weight = self.a.weight
        self.b.bias = self.c.bias = self.a.bias

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


@architecture("frozen_backbone", floats((4, 8)), tags={"captured", "frozen"})
class FrozenBackbone(nn.Module):
    """Frozen layers, a layer with only its bias trained, a trained head."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).requires_grad_(False)
        self.middle, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
        self.middle.weight.requires_grad_(False)

    def forward(self, x):
        return self.head(self.middle(self.backbone(x)))


@architecture("unused_layers", floats((4, 8)), tags={"captured", "unused"})
class UnusedLayers(nn.Module):
    """Registered layers and buffers that `forward` never touches, and a result thrown away."""

    def __init__(self):
        super().__init__()
        self.fc, self.unused = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 3), nn.ReLU())
        self.dead, self.missing = nn.Linear(8, 5), None
        self.register_buffer("forgotten", torch.ones(2))
        self.register_parameter("bias", None)

    def forward(self, x):
        self.dead(x)
        return self.fc(x)


@architecture("dead_batch_norm", floats((4, 8)), tags={"captured", "rng", "stateful", "unused"})
class DeadBatchNorm(nn.Module):
    """Outputs thrown away, but the batch norm's statistics and the dropout's draws count."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout()

    def forward(self, x):
        x = self.fc(x)
        self.norm(x)
        self.drop(x)
        return torch.dropout(x, 0.0, False) + self.drop(x)


@architecture("no_weights", floats((4, 8)), tags={"captured", "no_weights", "rng"})
def no_weights():
    return nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Flatten())


@architecture("norms_only", floats((4, 8)), tags={"captured", "norms_only", "stateful"})
def norms_only():
    return nn.Sequential(nn.LayerNorm(8), nn.ReLU(), nn.BatchNorm1d(8), nn.PReLU(8))


@architecture("single_linear", floats((4, 8)), tags={"captured"})
def single_linear():
    return nn.Linear(8, 3)


@architecture("scalar_parameters", floats((4, 8)), tags={"captured"})
class ScalarParameters(nn.Module):
    """Learned temperature and per-layer scales around a Linear (CLIP, LayerScale)."""

    def __init__(self):
        super().__init__()
        self.fc, self.temperature = nn.Linear(8, 8), nn.Parameter(torch.tensor(0.5))
        self.gamma = nn.Parameter(1e-2 * torch.ones(8))

    def forward(self, x):
        return (x + self.gamma * self.fc(x)) * self.temperature.exp()


def cast_output(forward):
    """A decorator for `forward`, as libraries put on theirs."""

    @functools.wraps(forward)
    def wrapped(self, *args, **kwargs):
        return forward(self, *args, **kwargs) * self.factor

    return wrapped


@architecture("decorated_forward", floats((4, 8)), tags={"captured", "variadic"})
class DecoratedForward(nn.Module):
    """`forward` behind a decorator with `*args, **kwargs`, in root and submodule."""

    class Inner(nn.Module):
        factor = 2.0

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        @cast_output
        def forward(self, x, shift=0.0):
            return self.fc(x) + shift

    factor = 0.5

    def __init__(self):
        super().__init__()
        self.inner = self.Inner()

    @cast_output
    def forward(self, x):
        return self.inner(x) + self.inner(x, shift=1.0)


@architecture("call_overridden", floats((4, 8)), tags={"call"})
class CallOverridden(nn.Module):
    """A submodule whose class overrides `__call__` around `forward`."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def __call__(self, x):
            return super().__call__(x * 2) + 1

        def forward(self, x):
            return self.fc(x)

    def __init__(self):
        super().__init__()
        self.inner, self.head = self.Inner(), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.inner(x))


@architecture("returns_parameters", floats((4, 8)), tags={"captured", "direct-weights"})
class ReturnsParameters(nn.Module):
    """Parameters and buffers themselves are outputs."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x):
        return self.fc(x) * self.scale, self.fc.weight, self.scale


@architecture("names_that_clash", floats((4, 8)), tags={})
class NamesThatClash(nn.Module):
    """Children and arguments called like Python words, builtins, and graph values."""

    def __init__(self):
        super().__init__()
        self.add_module("class", nn.Linear(8, 8))
        self.add_module("1x1-conv", nn.Linear(8, 8))
        self.input, self.add, self.output = nn.Linear(8, 8), nn.Linear(8, 8), nn.Tanh()
        self.fc_1, self.fc = nn.Linear(8, 8), nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, input, add=1.0):
        x = self.add(self.input(getattr(self, "class")(input))) + add
        x = self.fc_1(self.fc[1](self.fc[0](x)))
        return self.output(getattr(self, "1x1-conv")(x))


# Names and containers ------------------------------------------------------------------------


@architecture("child_named_self", floats((4, 8)), tags={"names"})
class ChildNamedSelf(nn.Module):
    """A child whose name means something in the code of a forward."""

    def __init__(self):
        super().__init__()
        self.self, self.output = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.self(x)
        return self.output(y) + x


class Factories(OrderedDict):
    """A dict that makes what is asked for anew at each access."""

    def __getitem__(self, key):
        return super().__getitem__(key)()


ACTIVATIONS = Factories(relu=nn.ReLU, tanh=nn.Tanh)


@architecture("global_factories", floats((4, 8)), tags={"globals"})
class GlobalFactories(nn.Module):
    """Asks a global dict of a class of its own, whose elements are not what it gives."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return ACTIVATIONS["tanh"](self.fc(x)) * len(ACTIVATIONS)


@architecture("vars_of_self", floats((4, 8)), tags={"reads"})
class VarsOfSelf(nn.Module):
    """Reads an attribute past `__getattribute__`; what it stands for changes from run to run."""

    def __init__(self):
        super().__init__()
        self.fc, self.scale = nn.Linear(8, 8), 2.0

    def forward(self, x):
        if "training" in dir(self):
            return self.fc(x) * vars(self)["scale"] * (2 if vars(self)["training"] else 1)
        return x
