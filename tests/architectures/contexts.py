"""Around the operations: random numbers, factories, contexts, autograd, other runtimes."""

import random
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .table import architecture, floats

# Random numbers, factories, contexts ---------------------------------------------------------


@architecture("python_random", floats((4, 8)), tags={"rng"})
class PythonRandom(nn.Module):
    """`random.random()` and `random.choice` in `forward`."""

    def __init__(self):
        super().__init__()
        self.paths = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        return random.choice(list(self.paths))(x) * (0.5 + random.random())


@architecture("torch_rand_constant", floats((4, 8)), tags={"rng"})
class TorchRandConstant(nn.Module):
    """`torch.rand(8)`, whose shape depends on nothing: a constant to a careless tracer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x) * torch.rand(8) + torch.normal(0.0, 0.1, (8,))


@architecture("torch_rand_in_submodule", floats((4, 8)), tags={"rng"})
class TorchRandInSubmodule(nn.Module):
    """`torch.rand` of a fixed shape hidden in a submodule."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), TorchRandConstant(), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x):
        return self.net(x)


@architecture("rand_like", floats((4, 8)), tags={"captured", "rng"})
class RandLike(nn.Module):
    """`torch.rand_like(x)`, `x.new_empty(..).normal_()`, `torch.bernoulli`."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        y = self.fc(x) + torch.rand_like(x)
        y = y * torch.bernoulli(y.detach().sigmoid())
        return y + x.new_empty(x.shape).normal_()


@architecture("factory_calls", floats((2, 5, 8)), tags={"factories"})
class FactoryCalls(nn.Module):
    """`torch.zeros/ones/arange/full(..., device=x.device, dtype=x.dtype)` sized by the input."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        steps = torch.arange(x.size(1), device=x.device, dtype=x.dtype)
        pad = torch.zeros(x.shape[0], 1, 8, device=x.device, dtype=x.dtype)
        eye = torch.eye(x.size(1), device=x.device)
        x = eye @ self.fc(x) + steps[None, :, None] + torch.linspace(0, 1, 8)
        return torch.cat([pad, x, x.new_full((x.size(0), 1, 8), 2.0)], 1)


@architecture(
    "arange_mask",
    lambda: ((torch.randn(3, 5, 8), torch.tensor([5, 2, 3])), {}),
    tags={"captured", "factories"},
)
class ArangeMask(nn.Module):
    """A padding mask by `torch.arange(x.size(1))[None] < lengths[:, None]`."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x, lengths):
        mask = torch.arange(x.size(1), device=x.device)[None] < lengths[:, None]
        return (self.fc(x) * mask[..., None]).sum(1) / lengths[:, None]


@architecture("no_grad_context", floats((4, 8)), tags={"grad-mode", "context"})
class NoGradContext(nn.Module):
    """`with torch.no_grad():` around a child, `enable_grad` inside it, `detach` beside it."""

    def __init__(self):
        super().__init__()
        self.teacher, self.student, self.head = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        with torch.no_grad():
            target = self.teacher(x)
            with torch.enable_grad():
                kept = self.head(x)
        return self.student(x) - target, kept * self.head(x).detach()


@architecture("no_grad_method", floats((4, 8)), tags={"grad-mode", "context"})
class NoGradMethod(nn.Module):
    """`@torch.no_grad()` on the forward of a submodule, `inference`-like helper method."""

    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        @torch.no_grad()
        def forward(self, x):
            return self.fc(x)

    def __init__(self):
        super().__init__()
        self.teacher, self.student = self.Teacher(), nn.Linear(8, 8)

    def forward(self, x):
        return self.student(x) * self.teacher(x)


@architecture("autocast_context", floats((4, 8)), tags={"context"})
class AutocastContext(nn.Module):
    """`torch.autocast` to bfloat16 around part of `forward`, switched off in a nested block."""

    def __init__(self):
        super().__init__()
        self.low, self.high, self.head = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.low(x)
            with torch.autocast("cpu", enabled=False):
                z = self.high(x)
            y = self.head(y)
        return y.float() + z


class StraightThrough(torch.autograd.Function):
    """Sign forward, identity backward."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-1, 1)


@architecture("autograd_function", floats((4, 8)), tags={"autograd-function"})
class BinaryNet(nn.Module):
    """A straight-through estimator on activations and on weights (binary network)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = StraightThrough.apply(self.a(x))
        return F.linear(x, StraightThrough.apply(self.b.weight), self.b.bias)


@architecture("gradient_inside_forward", floats((4, 8)), tags={"autograd-function"})
class EnergyGradient(nn.Module):
    """`torch.autograd.grad(..., create_graph=True)` in `forward`: forces from an energy."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            energy = self.energy(x).sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return energy, -force


class Checkpointed(nn.Module):
    """Blocks with dropout run under activation checkpointing."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.use_reentrant = use_reentrant
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3)) for _ in range(2)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.use_reentrant)
        return self.head(x)


@architecture("checkpoint_reentrant", floats((4, 8)), tags={"rng", "checkpoint", "backward_only"})
def checkpoint_reentrant():
    return Checkpointed(use_reentrant=True)


@architecture("checkpoint_non_reentrant", floats((4, 8)), tags={"rng", "checkpoint"})
def checkpoint_non_reentrant():
    return Checkpointed(use_reentrant=False)


@architecture("functional_call_inside", floats((4, 8)), tags={"functional"})
class FunctionalCallInside(nn.Module):
    """One inner gradient step with `functional_call` (meta-learning)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x):
        with torch.enable_grad():
            weights = dict(self.net.named_parameters())
            loss = F.mse_loss(self.net(x), x.detach())
            grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        fast = {k: w - 0.1 * g for (k, w), g in zip(weights.items(), grads, strict=True)}
        return torch.func.functional_call(self.net, fast, (x,))


@architecture("vmap_inside", floats((3, 8)), tags={"functional"})
class VmapInside(nn.Module):
    """`torch.vmap` over a submodule."""

    def __init__(self):
        super().__init__()
        self.net, self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.vmap(self.net)(x))


# Interplay -----------------------------------------------------------------------------------


class Activation(nn.Module):
    """A small module for TorchScript."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return torch.relu(self.fc(x))


@architecture(
    "scripted_submodule", floats((4, 8)), tags={"no_deepcopy", "no_pickle", "torchscript"}
)
def scripted_submodule():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(Activation())
    return nn.Sequential(nn.Linear(8, 8), scripted, nn.Linear(8, 4))


@architecture("numpy_scalar", floats((4, 8)), tags={"numpy"})
class NumpyScalar(nn.Module):
    """`np.sqrt` of a size: a float that does not write itself as one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.fc(x) / np.sqrt(x.shape[-1]))


@architecture("force", floats((4, 8)), tags={"autograd"})
class Force(nn.Module):
    """The gradient of an energy by the input, which is made to require one inside."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.energy = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            place = x.detach().requires_grad_()
            other = x.detach().clone()
            other.requires_grad = True
            energy = self.energy(torch.tanh(self.fc(place) + other)).sum()
            first, second = torch.autograd.grad(energy, (place, other), create_graph=True)
        return first + second


@architecture("numpy_inside", floats((4, 8)), tags={"numpy", "data"})
class NumpyInside(nn.Module):
    """`x.detach().numpy()` in a submodule, and back."""

    class Rank(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            order = np.argsort(x.detach().numpy(), axis=-1)
            return self.fc(x).gather(-1, torch.from_numpy(order))

    def __init__(self):
        super().__init__()
        self.body, self.rank, self.head = nn.Linear(8, 8), self.Rank(), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.rank(torch.tanh(self.body(x))))


@architecture("record_function_context", floats((4, 8)), tags={"context"})
class RecordFunction(nn.Module):
    """`with torch.profiler.record_function(...)` around stages."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        with torch.profiler.record_function("body"):
            x = torch.relu(self.body(x))
        return self.head(x)


@architecture("asserts_on_data", floats((4, 8)), tags={"data"})
class AssertsOnData(nn.Module):
    """`assert torch.isfinite(x).all()` between layers."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.body(x)
        assert torch.isfinite(x).all(), "the body diverged"
        return self.head(x)


@architecture("sparse_matmul", floats((5, 8)), tags={"captured", "sparse"})
class SparseMatmul(nn.Module):
    """An adjacency buffer made sparse, and `torch.sparse.mm`."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("adjacency", torch.eye(5) + torch.eye(5).roll(1, 0))

    def forward(self, x):
        return torch.sparse.mm(self.adjacency.to_sparse(), self.fc(x))
