"""State that changes in `forward`: hooks, buffers, Python attributes."""

import torch
import torch.nn.functional as F
from torch import nn

from .table import architecture, floats

# Hooks ---------------------------------------------------------------------------------------


def double(module, args, output):
    """Forward hook: change the output."""
    return output * 2


def shift_first(module, args):
    """Forward pre-hook: change the arguments."""
    return (args[0] + 1, *args[1:])


def scale_keyword(module, args, kwargs):
    """Forward pre-hook with keywords: change a keyword argument."""
    return args, {**kwargs, "scale": kwargs.get("scale", 1.0) * 3}


def count(module, args, output):
    """Forward hook: change the module's state, not its output."""
    module.calls = getattr(module, "calls", 0) + 1


class Scaled(nn.Module):
    """A linear layer with a keyword argument, for hooks to change."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x, scale=1.0):
        return self.fc(x) * scale


@architecture("hook_changes_output", floats((4, 8)), tags={"hooks"})
def hook_changes_output():
    net = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh()))
    net[0].register_forward_hook(double)
    net[1].register_forward_hook(double)
    return net


@architecture("pre_hook_changes_args", floats((4, 8)), tags={"hooks"})
class PreHookChangesArgs(nn.Module):
    """Pre-hooks on a layer and on a block, one of them changing keyword arguments."""

    def __init__(self):
        super().__init__()
        self.fc, self.block = nn.Linear(8, 8), Scaled()
        self.fc.register_forward_pre_hook(shift_first)
        self.block.register_forward_pre_hook(scale_keyword, with_kwargs=True)

    def forward(self, x):
        return self.block(self.fc(x), scale=0.5)


@architecture("hooks_on_root", floats((4, 8)), tags={"hooks"})
def hooks_on_root():
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    net.register_forward_pre_hook(shift_first)
    net.register_forward_hook(double)
    return net


@architecture("hook_with_state", floats((4, 8)), tags={"hooks", "stateful_python"})
def hook_with_state():
    net = nn.Sequential(nn.Linear(8, 8), Scaled())
    net[0].register_forward_hook(count)
    net[1].register_forward_hook(count)
    return net


def halve_gradient(module, grad_input, grad_output):
    """Backward hook: halve the gradient to the input."""
    return tuple(None if grad is None else grad / 2 for grad in grad_input)


@architecture("backward_hooks", floats((4, 8)), tags={"hooks"})
class BackwardHooks(nn.Module):
    """A module backward hook, and a hook on an intermediate tensor."""

    def __init__(self):
        super().__init__()
        self.fc, self.block = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.block.register_full_backward_hook(halve_gradient)

    def forward(self, x):
        y = self.fc(x)
        if y.requires_grad:
            y.register_hook(torch.tanh)
        return self.block(y)


@architecture("parameter_hooks", floats((4, 8)), tags={"hooks", "lossy_copy"})
def parameter_hooks():
    """A gradient hook on a parameter and one after accumulation; deepcopy forgets both."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    net[0].weight.register_hook(torch.sign)
    net[0].bias.register_post_accumulate_grad_hook(double_gradient)
    return net


def double_gradient(parameter):
    """Post-accumulate hook: double the gradient."""
    parameter.grad.mul_(2)


@architecture("features_caught_by_hooks", floats((4, 8)), tags={"hooks"})
class FeatureCatcher(nn.Module):
    """Hooks that are bound methods store features that `forward` then uses."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head, self.features = nn.Linear(8, 2), []
        for layer in (self.body[0], self.body[2]):
            layer.register_forward_hook(self.catch)

    def catch(self, module, args, output):
        self.features.append(output)

    def forward(self, x):
        self.features.clear()
        self.body(x)
        out = self.head(self.features[0] + self.features[1])
        self.features.clear()
        return out


# Buffers -------------------------------------------------------------------------------------


@architecture("buffer_in_place", floats((4, 8)), tags={"stateful"})
class BufferInPlace(nn.Module):
    """A running mean by `mul_().add_()` under `no_grad`, in both modes."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        x = self.fc(x)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return x - self.mean


@architecture("buffer_in_place_result_unused", floats((4, 8)), tags={"stateful"})
class BufferInPlaceUnused(nn.Module):
    """In-place updates whose results nobody reads (dead code to a careless pass)."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("peak", torch.zeros(8), persistent=False)

    def forward(self, x):
        self.seen.add_(1)
        self.peak.copy_(torch.maximum(self.peak, x.detach().amax(0)))
        return self.fc(x)


@architecture("buffer_reassigned", floats((4, 8)), tags={"stateful"})
class BufferReassigned(nn.Module):
    """`self.mean = ...` on a buffer, in training only."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        x = self.fc(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


@architecture("buffer_reassigned_always", floats((4, 8)), tags={"stateful"})
class BufferReassignedAlways(nn.Module):
    """`self.state = ...` on a buffer of a submodule, with no branch to give it away."""

    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.register_buffer("state", torch.zeros(8))

        def forward(self, x):
            self.state = torch.tanh(self.state + self.fc(x).detach().mean(0))
            return self.fc(x) + self.state

    def __init__(self):
        super().__init__()
        self.memory, self.head = self.Memory(), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.memory(x))


@architecture("vector_quantizer_ema", floats((8, 4)), tags={"stateful", "training"})
class VectorQuantizer(nn.Module):
    """VQ-VAE: nearest code, straight-through gradient, codebook updated by moving averages."""

    def __init__(self, codes=6, width=4):
        super().__init__()
        self.encode, self.decode = nn.Linear(4, width), nn.Linear(width, 4)
        self.register_buffer("codebook", torch.randn(codes, width))
        self.register_buffer("usage", torch.ones(codes))

    def forward(self, x):
        z = self.encode(x)
        code = torch.cdist(z, self.codebook).argmin(-1)
        q = self.codebook[code]
        if self.training:
            hot = F.one_hot(code, len(self.codebook)).to(z.dtype)
            self.usage.mul_(0.9).add_(hot.sum(0), alpha=0.1)
            self.codebook.data += 0.1 * (hot.T @ z.detach()) / self.usage[:, None]
        return self.decode(z + (q - z).detach()), F.mse_loss(z, q.detach())


@architecture("momentum_target_network", floats((4, 8)), tags={"stateful", "frozen"})
class MomentumTarget(nn.Module):
    """BYOL: a frozen copy of the encoder follows it, parameters updated inside `forward`."""

    def __init__(self):
        super().__init__()
        self.online, self.target = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.mul_(0.9).add_(fast, alpha=0.1)
            target = self.target(x)
        return F.cosine_similarity(self.online(x), target, dim=-1)


# Python state --------------------------------------------------------------------------------


@architecture("python_counter", floats((4, 8)), tags={"stateful_python"})
class PythonCounter(nn.Module):
    """`self.calls += 1`, and the count changes the result."""

    def __init__(self):
        super().__init__()
        self.fc, self.calls = nn.Linear(8, 8), 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x) / self.calls


@architecture("python_counter_in_submodule", floats((4, 8)), tags={"stateful_python"})
def python_counter_in_submodule():
    return nn.Sequential(nn.Linear(8, 8), PythonCounter(), nn.Linear(8, 2))


@architecture("warm_up_switch", floats((4, 8)), tags={"stateful_python"})
class WarmUp(nn.Module):
    """Another branch from the second call on."""

    def __init__(self):
        super().__init__()
        self.first, self.later, self.warm = nn.Linear(8, 8), nn.Linear(8, 8), False

    def forward(self, x):
        layer = self.later if self.warm else self.first
        self.warm = True
        return layer(x)


@architecture("list_appended", floats((4, 8)), tags={"stateful_python"})
class ListAppended(nn.Module):
    """Losses appended to a list in `forward`, as a side channel to the trainer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.losses = nn.Linear(8, 8), nn.Linear(8, 8), []

    def forward(self, x):
        x = torch.relu(self.a(x))
        self.losses.append(float(x.detach().mean()))
        return self.b(x) * len(self.losses)


@architecture("dict_cache", floats((2, 5, 8)), tags={"stateful_python"})
class DictCache(nn.Module):
    """A table computed once for each size and kept in a dict (rotary embeddings)."""

    def __init__(self):
        super().__init__()
        self.fc, self.cache = nn.Linear(8, 8), {}

    def table(self, size):
        if size not in self.cache:
            angle = torch.arange(size)[:, None] * 0.5 ** torch.arange(4)
            self.cache[size] = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        return self.cache[size]

    def forward(self, x):
        x = self.fc(x)
        cos, sin = self.table(x.shape[1])
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin


@architecture("lazy_attribute", floats((2, 5, 8)), tags={"stateful_python"})
class LazyAttribute(nn.Module):
    """`if self.mask is None: self.mask = ...` in a submodule."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.mask = nn.Linear(8, 24), None

        def forward(self, x):
            if self.mask is None or self.mask.shape[-1] < x.shape[1]:
                self.mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
            q, k, v = self.qkv(x).chunk(3, -1)
            return (q @ k.mT).masked_fill(~self.mask, -torch.inf).softmax(-1) @ v

    def __init__(self):
        super().__init__()
        self.attention, self.head = self.Attention(), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.attention(x))


@architecture("stored_activations", floats((2, 5, 8)), tags={"stateful_python"})
class StoredActivations(nn.Module):
    """`self.attention = ...`: an intermediate kept for plots, with its autograd history."""

    def __init__(self):
        super().__init__()
        self.qkv, self.attention = nn.Linear(8, 24), None

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        self.attention = (q @ k.mT).softmax(-1)
        return self.attention @ v


@architecture("key_value_cache", floats((2, 1, 8)), tags={"stateful_python"})
class KeyValueCache(nn.Module):
    """In eval mode keys and values of earlier calls are kept and attended to."""

    def __init__(self):
        super().__init__()
        self.qkv, self.past = nn.Linear(8, 24), None

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        if not self.training:
            if self.past is not None:
                k, v = torch.cat((self.past[0], k), 1), torch.cat((self.past[1], v), 1)
            self.past = k.detach(), v.detach()
        return (q @ k.mT).softmax(-1) @ v


@architecture("buffer_registered_in_forward", floats((4, 8)), tags={"stateful", "stateful_python"})
class BufferRegistered(nn.Module):
    """`register_buffer` at the first call."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        if not hasattr(self, "scale"):
            self.register_buffer("scale", x.detach().std(0), persistent=False)
        return self.fc(x / self.scale)


@architecture("lazy_parameter_by_hand", floats((4, 8)), tags={"captured"})
class LazyByHand(nn.Module):
    """A parameter created at the first call; here that call was made already."""

    def __init__(self):
        super().__init__()
        self.fc, self.weight = nn.Linear(8, 8), None
        self(torch.randn(4, 8))

    def forward(self, x):
        if self.weight is None:
            self.weight = nn.Parameter(torch.randn(x.shape[-1], 4))
        return self.fc(x) @ self.weight


@architecture("sets_mode_of_child", floats((4, 8)), tags={"frozen", "stateful", "training"})
class SetsModeOfChild(nn.Module):
    """`self.teacher.eval()` in `forward` (distillation)."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).requires_grad_(False)
        self.student = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

    def forward(self, x):
        self.teacher.eval()
        return F.mse_loss(self.student(x), self.teacher(x))


@architecture("mutates_inputs", floats((4, 8), grad=False), tags={"mutation"})
class MutatesInputs(nn.Module):
    """The caller's tensor changes in place."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x.mul_(2)
        x[:, 0] = 0
        return self.fc(x.clone())


@architecture(
    "mutates_dict", lambda: (({"x": torch.randn(4, 8)},), {}), tags={"mutation", "non-tensor"}
)
class MutatesDict(nn.Module):
    """Stages write their results into the caller's dict, which is also the output."""

    class Stage(nn.Module):
        def __init__(self, source, target):
            super().__init__()
            self.fc, self.source, self.target = nn.Linear(8, 8), source, target

        def forward(self, batch):
            batch[self.target] = torch.tanh(self.fc(batch[self.source]))
            return batch

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(self.Stage("x", "hidden"), self.Stage("hidden", "out"))

    def forward(self, batch):
        self.stages(batch)
        return batch
